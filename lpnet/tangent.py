"""Φ and G of a rank's layers, linearised at the states of a forward sweep: δx goes the way that x went.

    δx_{j+1} = (∂Φ_j/∂x) δx_j + (∂Φ_j/∂θ) δθ_j,        δu_{k+1} = (∂G_k/∂x) δu_k + (∂G_k/∂θ̄) δθ̄_k

Every instruction of a step is linearised by itself. The states are replayed from the tape, at the cost of additions, so
that f is not evaluated again (but for layers of a user's module, by torch).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lpnet.fields import Field, Slot
from lpnet.propagator import CoarseSteps, Layers, Tape, _picard_matrix
from lpnet.steppers import Picard, Program, Stage

Deltas = Mapping[str, Any] | None
"""term -> change of the stacked weights as its field holds them (`Stack.directions`); None for no change."""


class _Pair:
    """Slots of a state and of its change, as an instruction finds them."""

    def __init__(self, field: Field, count: int, x: Tensor, dot: Tensor) -> None:
        self.slots: list[Slot] = field.slots(count, x)
        self.dots = list(dot.new_zeros(count, *dot.shape[1:]).unbind())
        for slot, value in zip(self.slots, x, strict=False):
            slot.view.copy_(value)
        for d, value in zip(self.dots, dot, strict=False):
            d.copy_(value)

    def stage(self, stage: Stage, field: Field, j: int, kept: Any, delta: Any) -> None:
        """The change of a stage at layer (or part) j, and the stage itself from what it kept."""
        source, target = stage.source, stage.target
        if stage.start is not None:
            self.slots[target].view.copy_(self.slots[stage.start].view)
            self.dots[target].copy_(self.dots[stage.start])
        field.tangent(j, self.slots[source], self.dots[source], self.dots[target], stage.w, kept, delta)
        field.remove(j, self.slots[target], -stage.w, [kept], 0)

    def change(self, memory: int) -> Tensor:
        """A copy of the change of the state."""
        return torch.stack(self.dots[:memory])


def _of(deltas: Deltas, term: str) -> Any:
    return None if deltas is None else deltas[term]


class TangentLayers:
    """The linearised layers of a slab.

    Args:
        layers: those that made the tape.
        deltas: changes of their weights.
    """

    def __init__(self, layers: Layers, deltas: Deltas) -> None:
        self.layers, self.deltas = layers, deltas
        self._first = next(iter(layers.fields.values()))

    def run(self, a: int, b: int, dot: Tensor, tape: Tape) -> Tensor:
        """δx_b from δx_a = dot, at the states of the tape."""
        while a < b:
            end = min(b, tape.end_after(a))
            dot = self._segment(a, end, dot, tape)
            a = end
        return dot

    def _segment(self, a: int, b: int, dot: Tensor, tape: Tape) -> Tensor:
        layers = self.layers
        memory, lo = layers.stepper.memory, layers.lo
        pair = _Pair(self._first, memory, layers.state(a, tape), dot)
        work = [
            (stage, layers.fields[stage.term], kept, _of(self.deltas, stage.term))
            for stage, kept in zip(layers.stepper.stages(layers.h), tape.kept, strict=True)
        ]
        for j in range(a - lo, b - lo):
            for stage, field, kept, delta in work:
                pair.stage(stage, field, j, kept[j], delta)
        return pair.change(memory)

    def lift(self, x: Tensor, dot: Tensor) -> Tensor:
        """δx_0 from (δy_0, 0, …); x is the state before the lift."""
        layers = self.layers
        pair = _Pair(self._first, layers.stepper.memory, x, dot)
        for stage in layers.stepper.lift(layers.h):
            field = layers.fields[stage.term]
            kept: list[Any] = field.tape(1, x)
            field.add(0, pair.slots[stage.source], pair.slots[stage.target], stage.w, kept, 0)
            field.remove(0, pair.slots[stage.target], stage.w, kept, 0)
            pair.stage(stage, field, 0, kept[0], _of(self.deltas, stage.term))
        return pair.change(layers.stepper.memory)


class TangentSteps:
    """The linearised coarse steps of one level, for any number of changes of their weights.

    Args:
        steps: the coarse steps of this rank.
    """

    def __init__(self, steps: CoarseSteps) -> None:
        self.steps = steps
        self.deltas: Deltas = None
        self._kept: dict[int, tuple[Tensor, Any]] = {}

    def _at(self, k: int) -> tuple[Program, int]:
        place = k - self.steps.first
        return self.steps.programs[place], self.steps._offsets[place]

    def linearize(self, k: int, x: Tensor) -> None:
        """Remember G_k at x."""
        program, offset = self._at(k)
        if isinstance(program, Picard):
            self._kept[k] = x, _picard(self.steps.fields[program.term], program, offset, x)
        else:
            self._kept[k] = x, self.steps._forward(k, x, linear=False)[1]

    def step(self, k: int, dot: Tensor) -> Tensor:
        """The change of G_k(x) for the change dot of x and that of the weights, at the x of the last `linearize`."""
        program, offset = self._at(k)
        x, kept = self._kept[k]
        if isinstance(program, Picard):
            delta = _of(self.deltas, program.term)
            return _picard_tangent(self.steps.fields[program.term], program, offset, (dot, kept, delta))
        fields = self.steps.fields
        count = max(self.steps.memory, 1 + max(max(s.source, s.target) for s in program))
        pair = _Pair(fields[program[0].term], count, x, dot)
        for stage, keep in zip(program, kept, strict=True):
            pair.stage(stage, fields[stage.term], offset + stage.part, keep, _of(self.deltas, stage.term))
        return pair.change(self.steps.memory)


def _picard(field: Field, program: Picard, offset: int, x: Tensor) -> list[tuple[Tensor, Any]]:
    """Where the passes of a Picard iteration evaluate f, and what they keep."""
    parts = range(offset, offset + len(program.lengths))
    M, _ = _picard_matrix(program, x)
    y, found = x, []
    for _ in range(program.passes):
        k, kept = field.batch(parts, y)
        found.append((y, kept))
        y = x + torch.tensordot(M, k, 1)
    return found


def _picard_tangent(
    field: Field, program: Picard, offset: int, at: tuple[Tensor, Sequence[tuple[Tensor, Any]], Any]
) -> Tensor:
    dot, passes, delta = at
    parts = range(offset, offset + len(program.lengths))
    M, H = _picard_matrix(program, dot)
    y_dot = k_dot = dot
    for y, kept in passes:
        k_dot = field.batch_tangent(parts, y, y_dot, kept, delta)
        y_dot = dot + torch.tensordot(M, k_dot, 1)
    return dot + torch.tensordot(H, k_dot, 1)
