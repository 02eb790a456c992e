"""Coarse steps for parts of the batch, which go through the ranks one behind the other."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from lpnet.coarse_steps import CoarseSteps
from lpnet.propagator import Layers


class Parted(NamedTuple):
    """The coarse steps of a level, once for each part of the batch.

    Attributes:
        layers: know how states are split.
        steps: for each part.
        act: (steps of a part, k, u) -> value of the coarse step k in the direction of the solve.
    """

    layers: Layers
    steps: list[CoarseSteps]
    act: Callable[[CoarseSteps, int, Tensor], Tensor]

    def split(self, u: Tensor) -> list[Tensor]:
        """Parts of a state; fewer than asked for where the batch is small."""
        return self.layers.split(u, len(self.steps))

    def join(self, us: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return self.layers.join(us)

    def step(self, q: int, k: int, u: Tensor) -> Tensor:
        """The coarse step k for part q."""
        return self.act(self.steps[q], k, u)

    def linearize_all(self, ks: Sequence[int], xs: Sequence[Tensor], tangents: bool = True) -> None:
        """As `CoarseSteps.linearize_all`, at states x of the whole batch."""
        if xs:
            for steps, parts in zip(self.steps, zip(*map(self.split, xs), strict=True), strict=False):
                steps.linearize_all(ks, parts, tangents)

    def forget(self) -> None:
        """Drop what `linearize` remembered."""
        for steps in self.steps:
            steps.forget()
