"""Exact propagation on level 0 of MGRIT: sweeps over the local layers, forward and pulled back.

The adjoint counts its steps from the last layer, and has the weight gradients of its layers to do in the last sweep.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor

from lpnet.mgrit import FinePropagator
from lpnet.phases import phase
from lpnet.propagator import Layers
from lpnet.slab import Slab
from lpnet.tape import Tape
from lpnet.together import Interval, pull_all, run_all


class ForwardFine(FinePropagator):
    """The layers, whose states are put on a tape."""

    def __init__(self, layers: Layers, tape: Tape) -> None:
        self.layers, self.tape = layers, tape

    def sweep(self, last: bool) -> None:
        self.tape.clear()

    def run(self, i0: int, i1: int, u: Tensor) -> Tensor:
        return self.layers.run(i0, i1, u, self.tape)

    def run_all(self, parts: Sequence[Interval], us: Sequence[Tensor]) -> Iterator[Tensor]:
        return run_all(self.layers, parts, us, self.tape)


class AdjointFine(FinePropagator):
    """Their adjoints at the states of a tape; `gradients`: of the weights too."""

    def __init__(self, layers: Layers, tape: Tape, slab: Slab, gradients: bool) -> None:
        self.layers, self.tape, self.total, self.gradients = layers, tape, slab.layers, gradients
        self.comm, self.last, self.work = slab.comm, False, "pull"

    def sweep(self, last: bool) -> None:
        self.last = last and self.gradients
        self.work = "pull, gradients" if self.last else "pull"
        if self.last:
            self.layers.reset_grads()

    def run(self, i0: int, i1: int, u: Tensor) -> Tensor:
        with phase(self.comm, self.work):
            return self.layers.pull(self.total - i1, self.total - i0, u, self.tape, self.last)

    def run_all(self, parts: Sequence[Interval], us: Sequence[Tensor]) -> Iterator[Tensor]:
        mirrored = [(self.total - i1, self.total - i0) for i0, i1 in parts]
        with phase(self.comm, self.work):
            yield from pull_all(self.layers, mirrored, us, self.tape, self.last)
