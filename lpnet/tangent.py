"""Φ on the layers of one rank, linearised at the states of a forward sweep: δx goes the way that x went.

    δx_{j+1} = (∂Φ_j/∂x) δx_j + (∂Φ_j/∂θ) δθ_j

The states are replayed from the tape, at the cost of additions; where it keeps too little, f is evaluated again.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from lpnet import programs
from lpnet.programs import Kept, Pairs, Place
from lpnet.propagator import Layers, Workspace, state_of
from lpnet.steppers import Steps, slots_of
from lpnet.tape import Tape

Deltas = Mapping[str, Any] | None
"""term -> change of the stacked weights as its field holds them (`Stack.directions`); None for no change."""


class TangentLayers:
    """The linearised layers of a slab.

    Args:
        layers: those that made the tape.
    """

    def __init__(self, layers: Layers) -> None:
        self.layers = layers
        self._lift = layers.stepper.lift(layers.h)
        self._count = max(slots_of(program, layers.stepper.memory) for program in (layers.program, self._lift))
        self._work, self._dots = (Workspace(layers.field, self._count + 1) for _ in range(2))
        self.deltas: Deltas = None

    def run(self, a: int, b: int, dot: Tensor, tape: Tape) -> Tensor:
        """δx_b from δx_a = dot, at the states of the tape."""
        while a < b:
            end = min(b, tape.end_after(a))
            dot = self._segment(a, end, dot, tape)
            a = end
        return dot

    def _segment(self, a: int, b: int, dot: Tensor, tape: Tape) -> Tensor:
        layers = self.layers
        x = layers.state(a, tape)
        layers.again += (b - a) * (not tape.kept)
        tapes = tape.kept or self._tapes(layers.program, x)
        pairs = self._pairs(x, dot, anew=not tape.kept)
        for j in range(a - layers.lo, b - layers.lo):
            place = Place(j, tapes, j - tape.shift if tape.kept else 0)
            programs.tangent(layers.program, layers.fields, pairs, place)
        return state_of(pairs.dots, layers.stepper.memory)

    def lift(self, x: Tensor, dot: Tensor) -> Tensor:
        """δx_0 from (δy_0, 0, …); x is the state before the lift."""
        pairs = self._pairs(x, dot, anew=True)
        programs.tangent(self._lift, self.layers.fields, pairs, Place(0, self._tapes(self._lift, x)))
        return state_of(pairs.dots, self.layers.stepper.memory)

    def _tapes(self, program: Steps, x: Tensor) -> list[Kept]:
        """Of one place, for programs that are done again."""
        return programs.tapes_of(program, self.layers.fields, 1, x)

    def _pairs(self, x: Tensor, dot: Tensor, anew: bool) -> Pairs:
        slots = self._work(x)
        return Pairs(slots, self._dots(dot), self.deltas, slots[-1] if anew else None)
