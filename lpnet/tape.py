"""What a forward sweep leaves for the adjoint.

For each instruction of each layer one tensor may be kept, for each segment of the sweep its two ends, and for steps
that cannot be undone in place the state before each layer. What of this there is depends on `store` (see `propagator`).
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

Kept = list[Any]


class Tape:
    """Kept tensors per instruction and layer, states, and the ends of the segments.

    Attributes:
        kept: for each instruction a list over the layers; empty: nothing is kept.
        shift: index of the layer (within the slab) that is first in `kept`.
        records: whether the segments are noted.
        begin: end of a segment -> its begin.
        starts, ends: states there.
        states: layer -> state before it.
        round_trip: the largest relative distance of states that were undone to the begin of a segment from those that
            the sweep began with; None: there are none.
    """

    def __init__(self, kept: list[Kept], shift: int = 0, records: bool = True) -> None:
        self.kept, self.shift, self.records = kept, shift, records
        self.begin: dict[int, int] = {}
        self.starts: dict[int, Tensor] = {}
        self.ends: dict[int, Tensor] = {}
        self.states: dict[int, Tensor] = {}
        self.round_trip: Tensor | None = None

    def clear(self) -> None:
        """Forget the states; the kept tensors are overwritten by the next sweep."""
        self.begin, self.starts, self.ends, self.states = {}, {}, {}, {}
        self.round_trip = None

    def split(self, count: int, dim: int) -> list["Tape"]:
        """The tapes of so many parts of the batch, which is dimension `dim` from the end."""
        return [self._each(lambda t, q=q: t.chunk(count, dim)[q].contiguous()) for q in range(count)]

    def _each(self, how: Callable[..., Tensor]) -> "Tape":
        kept = [[None if t is None else how(t) for t in kept] for kept in self.kept]
        other = Tape(kept, self.shift, self.records)
        other.begin = dict(self.begin)
        for name in ("starts", "ends", "states"):
            setattr(other, name, {at: how(x) for at, x in getattr(self, name).items()})
        return other

    def note(self, a: int, b: int, start: Tensor, end: Tensor | None) -> None:
        """The sweep propagated from x_a = start to x_b = end, which is left out where it can be found again."""
        self.starts[a], self.begin[b] = start, a
        if end is not None:
            self.ends[b] = end

    def undone(self, a: int, x: Tensor) -> None:
        """A segment was undone from its end to its begin a, where the state is now x."""
        start, norm = self.starts[a], torch.linalg.vector_norm
        off = norm(x - start) / norm(start).clamp_min(torch.finfo(x.dtype).tiny)
        self.round_trip = off if self.round_trip is None else torch.maximum(self.round_trip, off)

    def end_after(self, layer: int) -> int:
        """Where the segment ends that holds this layer."""
        return min(b for b in self.begin if b > layer)


def round_trip(tapes: Sequence[Tape]) -> float | None:
    """The largest of all tapes; not a number as soon as one of them is not."""
    found = [tape.round_trip for tape in tapes if tape.round_trip is not None]
    return torch.stack(found).max().item() if found else None


def joined(tapes: Sequence[Tape], dim: int) -> Tape:
    """The tape of the whole batch from those of its parts."""
    by_stage = zip(*(t.kept for t in tapes), strict=True)
    kept = [[None if ts[0] is None else torch.cat(ts, dim) for ts in zip(*kept, strict=True)] for kept in by_stage]
    whole = Tape(kept, tapes[0].shift, tapes[0].records)
    whole.begin = dict(tapes[0].begin)
    for name in ("starts", "ends", "states"):
        each = [getattr(t, name) for t in tapes]
        setattr(whole, name, {at: torch.cat([states[at] for states in each], dim) for at in each[0]})
    return whole
