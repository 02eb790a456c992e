"""Multilevel training in the configuration: its section, and the solvers of its levels."""

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from lpnet.errors import InputError
from lpnet.multilevel.cascade import halved
from lpnet.options import MGRIT


def coarser(solver: MGRIT, factor: int) -> MGRIT:
    """The solver for a network of so many times fewer layers over the same time, with the same coarse points in time.

    Its first coarsening is smaller by that factor, or left out. With the same m the intervals H = m T/N would be longer
    and the solves less exact, the more so the coarser the level: what is trained would be the solver, not the network.

    Args:
        solver: of N layers.
        factor: N over the smaller number.
    """
    factors = [solver.factor(level) for level in range(solver.levels - 1)]
    while factors and factor > 1:
        m, *rest = factors
        nearest = (2 * m + factor) // (2 * factor)
        factors = [nearest, *rest] if nearest > 1 else rest
        factor = -(-factor // m)
    if not factors:
        return replace(solver, levels=1)
    samples = min(solver.samples, *factors)
    return replace(solver, coarsening=tuple(factors), levels=len(factors) + 1, samples=samples)


@dataclass(frozen=True)
class Multilevel:
    """Training from few layers to all of them (cascadic): N/4, N/2, N layers for three levels.

    Args:
        levels: number of levels; 1: all layers from the beginning.
        shares: of the steps on each level, the coarsest first, in any unit; null: equally many steps on each.
    """

    levels: int = 1
    shares: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or self.levels < 1:
            raise InputError(f"multilevel.levels: {self.levels!r} given, a whole number of at least 1 allowed")
        if self.shares is None:
            return
        numbers = all(isinstance(s, int | float) and not isinstance(s, bool) and 0 < s < math.inf for s in self.shares)
        if len(self.shares) != self.levels or not numbers:
            allowed = f"{self.levels} positive number{'s' * (self.levels > 1)}, one for each level,"
            raise InputError(f"multilevel.shares: {list(self.shares)} given, {allowed} allowed")

    def layers(self, finest: int) -> tuple[int, ...]:
        """Numbers of layers, the coarsest level first.

        Raises:
            InputError: they cannot be halved so often.
        """
        try:
            return halved(finest, self.levels)
        except InputError as error:
            raise InputError(f"multilevel.{error}") from None

    def ends(self, steps: int) -> tuple[int, ...]:
        """The last step of each level, of so many in all.

        Raises:
            InputError: a level would have no step.
        """
        shares = self.shares or (1.0,) * self.levels
        whole = math.fsum(shares)
        found = tuple(round(steps * math.fsum(shares[: i + 1]) / whole) for i in range(self.levels))
        if any(a >= b for a, b in pairwise((0, *found))):
            counts = [b - a for a, b in pairwise((0, *found))]
            raise InputError(f"multilevel.levels: {self.levels} given with {counts} steps, at least 1 on each allowed")
        return found
