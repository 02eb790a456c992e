"""The levels and the ranks as the forward or the adjoint solve meets them: one in mirror image of the other."""

from collections.abc import Sequence
from itertools import pairwise

from lpnet import hierarchy
from lpnet.coarsen import Span
from lpnet.options import MGRIT
from lpnet.slab import Slab


class Direction:
    """Order of ranks and slab starts as the forward or the adjoint solve sees them.

    Attributes:
        order: all ranks.
        starts: of their slabs, and N.
        first, last: of the ranks that have layers.
        previous, next: those with layers beside this one; None: there are none.
        behind: how many with layers come after this one.
    """

    def __init__(self, slab: Slab, adjoint: bool) -> None:
        self.slab, self.adjoint = slab, adjoint
        size, n = slab.comm.size, slab.layers
        self.order = list(reversed(range(size))) if adjoint else list(range(size))
        self.starts = [n - s for s in reversed(slab.starts)] if adjoint else list(slab.starts)
        busy = [r for r in self.order if slab.counts[r]]
        self.first, self.last = busy[0], busy[-1]
        place = busy.index(slab.comm.rank) if slab.comm.rank in busy else None
        self.previous = busy[place - 1] if place else None
        self.next = busy[place + 1] if place is not None and place + 1 < len(busy) else None
        self.behind = len(busy) - 1 - place if place is not None else 0

    def levels(self, options: MGRIT) -> list[tuple[int, ...]]:
        """Bounds of the levels in this direction."""
        found = hierarchy.bounds(self.slab.layers, options)
        return hierarchy.mirrored(found) if self.adjoint else found

    def spans(self, bound: tuple[int, ...]) -> list[Span]:
        """Spans of the steps of one level in the layer index, first layer first."""
        n = self.slab.layers
        spans = list(pairwise(bound))
        return [(n - b, n - a) for a, b in reversed(spans)] if self.adjoint else spans

    def owners(self, spans: Sequence[Span]) -> list[int]:
        """Rank of each step: that of the layer which this direction meets first."""
        return [self.slab.owner(b - 1 if self.adjoint else a) for a, b in spans]
