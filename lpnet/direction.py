"""The levels and the ranks as the forward or the adjoint solve meets them: one in mirror image of the other."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from lpnet import hierarchy
from lpnet.coarsen import Span
from lpnet.hierarchy import Level
from lpnet.options import MGRIT
from lpnet.slab import Slab


class State(NamedTuple):
    """A coarse step k, the layer where its state is, and the ranks of both."""

    k: int
    layer: int
    owner: int
    source: int


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

        self._levels: dict[Any, list[tuple[int, ...]]] = {}
        self._views: dict[Any, list[Level]] = {}
        self._spans: dict[tuple[int, ...], list[Span]] = {}
        self._owners: dict[tuple[Span, ...], list[int]] = {}
        self._states: dict[tuple[int, ...], list[State]] = {}
        self._points: dict[tuple[int, ...], tuple[list[int], np.ndarray]] = {}

    # All of this depends on the options alone and grows with N/m, so that a solve does not do it again.

    def levels(self, options: MGRIT) -> list[tuple[int, ...]]:
        """Bounds of the levels in this direction."""
        key = options.coarsening, options.levels
        if key not in self._levels:
            found = hierarchy.bounds(self.slab.layers, options)
            self._levels[key] = hierarchy.mirrored(found) if self.adjoint else found
        return self._levels[key]

    def view(self, bounds: Sequence[tuple[int, ...]]) -> list[Level]:
        """All levels of these bounds as this rank sees them."""
        key = tuple(bounds[1:])
        if key not in self._views:
            self._views[key] = hierarchy.build(bounds, self.starts, self.order, self.slab.comm.rank)
        return self._views[key]

    def spans(self, bound: tuple[int, ...]) -> list[Span]:
        """Spans of the steps of one level in the layer index, first layer first."""
        if bound not in self._spans:
            n, spans = self.slab.layers, list(pairwise(bound))
            self._spans[bound] = [(n - b, n - a) for a, b in reversed(spans)] if self.adjoint else spans
        return self._spans[bound]

    def owners(self, spans: Sequence[Span]) -> list[int]:
        """Rank of each step: that of the layer which this direction meets first."""
        key = tuple(spans)
        if key not in self._owners:
            self._owners[key] = [self.slab.owner(b - 1 if self.adjoint else a) for a, b in spans]
        return self._owners[key]

    def states(self, bound: tuple[int, ...]) -> list[State]:
        """What coarse steps of a level are linearised at, where this rank has the step or the state."""
        if bound not in self._states:
            rank, spans = self.slab.comm.rank, self.spans(bound)
            found = [
                State(k, a, owner, self.slab.owner(a))
                for k, ((a, _), owner) in enumerate(zip(spans, self.owners(spans), strict=True))
            ]
            # Step 0 is the last one of the adjoint, which no coarse problem evaluates.
            self._states[bound] = [s for s in found[1:] if rank in (s.owner, s.source)]
        return self._states[bound]

    def points(self, bound: tuple[int, ...]) -> tuple[list[int], np.ndarray]:
        """How many C-points each rank has, and where those of the direction are among those in the order of ranks."""
        if bound not in self._points:
            at_place = hierarchy.counts(bound, self.starts)
            counts = [at_place[self.order.index(rank)] for rank in range(len(self.order))]
            at = np.split(np.arange(sum(counts)), np.cumsum(counts)[:-1])
            self._points[bound] = counts, np.concatenate([at[rank] for rank in self.order])
        return self._points[bound]
