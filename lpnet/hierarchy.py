"""Which points are on which level, and which rank works where.

Level 0 has the N layers as its steps; level l + 1 has one step for each interval of m steps of level l (the last may be
shorter). A level is thus given by its *bounds* in layers, B_0 = (0, 1, …, N), B_{l+1} = every m-th of B_l and N, which
depend on the options alone, never on the number of ranks.

The adjoint is the same problem on the reversed index: bounds b become N − b and the ranks stand in reverse order. All
indices here are in the direction of the solve. A rank owns the steps that begin in its slab; where an interval spans
several ranks it is swept as a chain through them.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

from lpnet.options import MGRIT


class Segment(NamedTuple):
    """Local steps i0, …, i1 − 1 of one interval; `interval` is its index, i.e. that of the coarse step."""

    i0: int
    i1: int
    interval: int


@dataclass(frozen=True)
class Level:
    """One level as one rank sees it, in the direction of the solve.

    Attributes:
        bounds: layers at which the steps begin, and N; n + 1 numbers.
        lo, hi: this rank's steps.
        previous, next: ranks that own the steps before and after (None at the ends).
        segments: this rank's steps, cut at C-points (empty on the coarsest level).
        continues: the first segment goes on with an interval that began on `previous`.
        coarse_lo, coarse_hi: intervals that begin here: this rank's steps on the next coarser level.
    """

    bounds: tuple[int, ...]
    lo: int
    hi: int
    previous: int | None
    next: int | None
    segments: tuple[Segment, ...] = ()
    continues: bool = False
    coarse_lo: int = 0
    coarse_hi: int = 0

    @property
    def steps(self) -> int:
        """Number of steps of the whole level."""
        return len(self.bounds) - 1


def bounds(layers: int, options: MGRIT) -> list[tuple[int, ...]]:
    """Bounds of all levels, fine to coarse; a level is added only if it has at least two intervals."""
    found = [tuple(range(layers + 1))]
    while len(found) < options.levels and len(found[-1]) - 1 > options.factor(len(found) - 1):
        fine = found[-1]
        found.append((*fine[: -1 : options.factor(len(found) - 1)], layers))
    return found


def mirrored(levels: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """The same levels on the reversed index."""
    return [tuple(b[-1] - x for x in reversed(b)) for b in levels]


def _ranges(bound: tuple[int, ...], starts: Sequence[int]) -> list[tuple[int, int]]:
    cuts = [bisect_left(bound, s) for s in starts]
    cuts[-1] = len(bound) - 1
    return list(pairwise(cuts))


def counts(bound: tuple[int, ...], starts: Sequence[int]) -> list[int]:
    """How many steps of a level begin in each slab, in the direction of the solve."""
    return [b - a for a, b in _ranges(bound, starts)]


def _segments(fine: tuple[int, ...], coarse: tuple[int, ...], lo: int, hi: int) -> tuple[Segment, ...]:
    found: list[Segment] = []
    i = lo
    while i < hi:
        interval = bisect_left(coarse, fine[i] + 1) - 1
        end = min(hi, bisect_left(fine, coarse[interval + 1]))
        found.append(Segment(i, end, interval))
        i = end
    return tuple(found)


def build(levels: Sequence[tuple[int, ...]], starts: Sequence[int], order: Sequence[int], rank: int) -> list[Level]:
    """All levels as `rank` sees them.

    Args:
        levels: bounds in the direction of the solve.
        starts: slab starts in the direction of the solve, and N.
        order: rank that owns the slab at each place in the direction of the solve.
        rank: whose view.
    """
    place = order.index(rank)
    found: list[Level] = []
    for depth, bound in enumerate(levels):
        ranges = _ranges(bound, starts)
        busy = [p for p, (a, b) in enumerate(ranges) if a < b]
        lo, hi = ranges[place]
        before = [order[p] for p in busy if p < place]
        after = [order[p] for p in busy if p > place]
        common = (bound, lo, hi, before[-1] if before else None, after[0] if after else None)
        if depth + 1 == len(levels):
            found.append(Level(*common))
            continue
        coarse = levels[depth + 1]
        segments = _segments(bound, coarse, lo, hi)
        continues = bool(segments) and bound[segments[0].i0] != coarse[segments[0].interval]
        found.append(Level(*common, segments, continues, *_ranges(coarse, starts)[place]))
    return found
