"""Where the tensors of a checkpoint lie in its file, and in which pieces they travel there.

A tensor (R, ...) is cut into blocks of rows, first at the borders of the ranks' rows, then so that a block takes at
most `BLOCK` bytes (or is one row). A block is what is sent, written and checked at once: memory for a few of them is
all that a rank needs besides its own rows.
"""

import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from lpnet.checkpoint.content import Content
from lpnet.errors import InputError
from lpnet.launch import share, together
from lpnet.slab import Comm

BLOCK = 4 * 2**20

TYPES: dict[torch.dtype, str] = {
    torch.float64: "<f8",
    torch.float32: "<f4",
    torch.float16: "<f2",
    torch.bfloat16: "<i2",
    torch.int64: "<i8",
    torch.int32: "<i4",
    torch.int16: "<i2",
    torch.int8: "|i1",
    torch.uint8: "|u1",
    torch.bool: "|u1",
}
"""How numbers of torch are kept; those that HDF5 has not are kept as whole numbers of their size."""

_KEPT_AS = {torch.bfloat16: torch.int16, torch.bool: torch.uint8}


def named(dtype: torch.dtype) -> str:
    """Its name in a file."""
    return str(dtype).removeprefix("torch.")


NAMED = {named(dtype): dtype for dtype in TYPES}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Args:
        name: its path.
        dtype: of torch.
        shape: of all its rows.
        blocks: rows of each block, in order.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: tuple[int, ...]

    @property
    def kind(self) -> np.dtype:
        """What the file holds."""
        return np.dtype(TYPES[self.dtype])

    @property
    def row(self) -> int:
        """Bytes of a row; a number without axes is one."""
        return math.prod(self.shape[1:]) * self.kind.itemsize

    @property
    def size(self) -> int:
        """Bytes of all rows."""
        return math.prod(self.shape) * self.kind.itemsize

    def spans(self) -> Iterator[tuple[int, int]]:
        """First row and end of each block."""
        lo = 0
        for rows in self.blocks:
            yield lo, lo + rows
            lo += rows

    def empty(self, rows: int) -> Tensor:
        """Room for so many rows, as the file keeps them."""
        shape = (rows, *self.shape[1:]) if self.shape else ()
        return torch.empty(shape, dtype=_KEPT_AS.get(self.dtype, self.dtype))

    def restored(self, kept: Tensor) -> Tensor:
        """Rows as they were, from those of the file."""
        return kept.bool() if self.dtype == torch.bool else kept.view(self.dtype)


def kept(x: Tensor) -> Tensor:
    """A tensor as a file keeps it, on the host; itself where it is there already."""
    held = x.detach().cpu().contiguous()
    return held.view(_KEPT_AS.get(x.dtype, x.dtype))


def checksum(x: Tensor) -> int:
    """CRC-32 of a tensor on the host."""
    return zlib.crc32(x.reshape(-1).view(torch.uint8).numpy().data) if x.numel() else 0


@dataclass(frozen=True)
class Piece:
    """A block: the rows [lo, hi) of the file, which are those from `own` on of its rank."""

    entry: Entry
    rank: int
    lo: int
    hi: int
    own: int

    @property
    def size(self) -> int:
        """Bytes."""
        return (self.hi - self.lo) * self.entry.row


@dataclass(frozen=True)
class Layout:
    """All tensors of a file, and who brings which block."""

    entries: tuple[Entry, ...]
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, content: Content, comm: Comm) -> "Layout":
        """That of what the ranks hold; collective.

        Raises:
            InputError: a name or a type of numbers that no file can have.
            RuntimeError: the ranks hold different things.
        """
        mine = ""
        with together(comm):
            _check_names([*content.whole, *content.rows])
            mine = json.dumps([[name, _type(name, x), list(x.shape)] for name, x in sorted(content.whole.items())])
            spread = [[name, _type(name, x), _row(name, x)] for name, x in _spread(content)]
        entries = [
            _cut(name, NAMED[kind], tuple(shape), [shape[0] if shape else 1])
            for name, kind, shape in json.loads(share(comm, mine))
        ]
        own = [len(x) for _, x in _spread(content)]
        table = comm.allgather(np.array([[zlib.crc32(repr(spread).encode()), *own]]), [1] * comm.size)
        others = np.flatnonzero(table[:, 0] != table[0, 0])
        if len(others):
            raise RuntimeError(f"checkpoint: rank {others[0]} has rows of other names or shapes than rank 0")
        for (name, x), counts in zip(_spread(content), table[:, 1:].T.tolist(), strict=True):
            entries.append(_cut(name, x.dtype, (sum(counts), *x.shape[1:]), counts))
        entries.sort(key=lambda cut: cut[0].name)
        return cls(tuple(entry for entry, _ in entries), tuple(piece for _, pieces in entries for piece in pieces))

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(entry.size for entry in self.entries)

    def of_rank(self, rank: int) -> Iterator[Piece]:
        """The blocks that a rank brings."""
        return (piece for piece in self.pieces if piece.rank == rank)

    def counts(self, ranks: int) -> list[int]:
        """How many blocks each rank brings."""
        return np.bincount([piece.rank for piece in self.pieces], minlength=ranks).tolist()


def _cut(name: str, dtype: torch.dtype, shape: tuple[int, ...], counts: Sequence[int]) -> tuple[Entry, list[Piece]]:
    """The tensor in blocks, of which rank r brings those of its counts[r] rows."""
    whole = Entry(name, dtype, shape, ())
    if not whole.size:
        return whole, []
    step, starts = max(1, BLOCK // whole.row), [0, *accumulate(counts)]
    spans = [(rank, a, min(a + step, count)) for rank, count in enumerate(counts) for a in range(0, count, step)]
    entry = replace(whole, blocks=tuple(b - a for _, a, b in spans))
    return entry, [Piece(entry, rank, starts[rank] + a, starts[rank] + b, a) for rank, a, b in spans]


def _spread(content: Content) -> list[tuple[str, Tensor]]:
    return [(name, rows.local) for name, rows in sorted(content.rows.items())]


def _check_names(names: Sequence[str]) -> None:
    known = set(names)
    if len(known) < len(names):
        raise InputError("checkpoint: a tensor given as a whole and as rows, one of them allowed")
    for name in names:
        parts = name.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise InputError(f"checkpoint: {name!r} given as the name of a tensor, a path such as net/trunk/K allowed")
        above = next(("/".join(parts[:k]) for k in range(1, len(parts)) if "/".join(parts[:k]) in known), None)
        if above is not None:
            raise InputError(f"checkpoint: {name!r} given beside a tensor {above!r}, other names allowed")


def _type(name: str, x: Tensor) -> str:
    if x.dtype not in TYPES or x.layout != torch.strided:
        kinds = ", ".join(NAMED)
        raise InputError(f"checkpoint: {name!r} of {x.dtype} ({x.layout}) given, a dense tensor of {kinds} allowed")
    return named(x.dtype)


def _row(name: str, x: Tensor) -> list[int]:
    """The shape of a row, the same on all ranks."""
    if not x.ndim:
        raise InputError(f"checkpoint: {name!r} without axes given as rows, (n, ...) allowed")
    return list(x.shape[1:])
