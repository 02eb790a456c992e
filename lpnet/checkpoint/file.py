"""The checkpoint file: HDF5, written at once or not at all, checked whenever it is read. Nothing is pickled.

/                attributes: format, schema, lpnet (version), check (CRC-32 of table)
/meta            JSON (NaN and infinities allowed)
/table           JSON: of meta its bytes and CRC-32; of each tensor its type of torch, its shape, and its blocks in
                 order, [rows, CRC-32]
/data/NAME       tensors, as torch has them; bool as uint8, bfloat16 as int16. Of the layers, (N, ...): the first axis
                 is the layer

Whatever HDF5 writes besides has check sums of its own. All data sets are in one piece: no filters, no links, no data of
other files, no types but numbers and texts of fixed length, which is also all that a reader takes.
"""

import json
import os
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from lpnet import folders
from lpnet.checkpoint.content import Content
from lpnet.checkpoint.layout import Layout, Piece, checksum, kept, named
from lpnet.checkpoint.stored import Stored, read
from lpnet.checkpoint.stream import gathered
from lpnet.checkpoint.target import Target, can_be_filled, fill, reach
from lpnet.errors import InputError, OutputError
from lpnet.launch import share, together
from lpnet.phases import phase
from lpnet.slab import Comm

__all__ = ["Stored", "Written", "read", "write"]


@dataclass(frozen=True)
class Written:
    """What was written.

    Args:
        bytes: of all tensors.
        seconds: that this rank took.
    """

    bytes: int
    seconds: float


def write(path: str | Path, comm: Comm, content: Content) -> Written:
    """Write a checkpoint, all at once or not at all; collective.

    Ranks send their rows to rank 0 in blocks of some megabytes, or write them themselves with an HDF5 that is built for
    it: no rank holds much more than its own rows.

    Args:
        path: the file, replaced if it exists; it is on the disk when this returns.
        comm: the ranks.
        content: what each rank has.

    Raises:
        OutputError: it cannot be written; on all ranks, and what had its name before still has it.
        InputError: something that no file can hold.
    """
    began, path = time.perf_counter(), Path(os.path.expanduser(path))
    layout, meta = Layout.of(content, comm), _meta(comm, content)
    part = path.with_name(path.name + folders.PART)
    filled = can_be_filled(comm)
    own = _Own(content)
    with _held(path, part, comm) as target, own:
        with together(comm), _unwritable(path):
            if target is not None:
                target.make(layout)
        with together(comm), _unwritable(path):
            _put(comm, layout, target, own, not filled)
        table = _table(comm, layout, own, meta)
        with together(comm), _unwritable(path):
            if target is not None:
                target.describe(table, meta)
                target.close()
        if filled:
            with together(comm), _unwritable(path):
                reach(part)
            with together(comm), _unwritable(path):
                fill(part, comm, ((piece, own.rows(piece)) for piece in layout.of_rank(comm.rank)))
        with together(comm), _unwritable(path):
            if comm.rank == 0:
                folders.settle(part, path)
    return Written(layout.size, time.perf_counter() - began)


def _meta(comm: Comm, content: Content) -> str:
    """The meta data of rank 0 as text, on all ranks; collective."""
    text = ""
    with together(comm):
        if comm.rank == 0:
            try:
                text = json.dumps(content.meta)
            except (TypeError, ValueError, RecursionError) as error:
                raise InputError(f"checkpoint: meta data given ({error}), values of JSON allowed") from None
    return share(comm, text)


@contextmanager
def _held(path: Path, part: Path, comm: Comm) -> Iterator[Target | None]:
    """The file that is written to, on rank 0; it is gone where something goes wrong. Collective."""
    target: Target | None = None
    with folders.gone_on_failure(part) if comm.rank == 0 else nullcontext():
        try:
            with together(comm), _unwritable(path):
                if comm.rank == 0:
                    target = Target(part)
            yield target
        except BaseException:
            if target is not None:
                target.drop()
            raise


@contextmanager
def _unwritable(path: Path) -> Iterator[None]:
    """What the system refuses is an `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(f"checkpoint: {str(path)!r} cannot be written ({folders.reason(error)})") from error


class _Own:
    """This rank's blocks, and their check sums, which a thread takes while they are written or sent."""

    def __init__(self, content: Content) -> None:
        self._tensors = content.whole | {name: rows.local for name, rows in content.rows.items()}
        self._sums: list[Future[int]] = []
        self._beside = ThreadPoolExecutor(1, "checksums")

    def __enter__(self) -> "_Own":
        return self

    def __exit__(self, *_: object) -> None:
        self._beside.shutdown()

    def rows(self, piece: Piece) -> Tensor:
        """A block."""
        x = self._tensors[piece.entry.name]
        return kept(x[piece.own : piece.own + piece.hi - piece.lo] if x.ndim else x)

    def __call__(self, piece: Piece) -> Tensor:
        """A block whose check sum is to be taken."""
        data = self.rows(piece)
        self._sums.append(self._beside.submit(checksum, data))
        if len(self._sums) > 2:
            self._sums[-3].result()  # so that not many copies wait
        return data

    def sums(self) -> list[int]:
        """Those of all blocks so far."""
        return [one.result() for one in self._sums]


def _put(comm: Comm, layout: Layout, target: Target | None, own: _Own, streamed: bool) -> None:
    """Write all blocks through rank 0, or take their check sums alone; collective."""
    if not streamed:
        for piece in layout.of_rank(comm.rank):
            own(piece)
        return
    with closing(gathered(comm, layout.pieces, own)) as coming:
        for piece, data in coming:  # on rank 0 alone, which has the file
            assert target is not None
            with phase(comm, "write"):
                target.put(piece, data)


def _table(comm: Comm, layout: Layout, own: _Own, meta: str) -> str:
    """What has to be known to read and to check the file, the same on all ranks; collective."""
    counts = layout.counts(comm.size)
    everyone = comm.allgather(np.array(own.sums(), dtype=np.int64), counts)
    of_rank = [iter(part.tolist()) for part in np.split(everyone, np.cumsum(counts)[:-1])]
    blocks: dict[str, list[list[int]]] = {entry.name: [] for entry in layout.entries}
    for piece in layout.pieces:
        blocks[piece.entry.name].append([piece.hi - piece.lo, next(of_rank[piece.rank])])
    tensors = {
        entry.name: {"type": named(entry.dtype), "shape": entry.shape, "blocks": blocks[entry.name]}
        for entry in layout.entries
    }
    raw = meta.encode()
    return json.dumps({"meta": {"bytes": len(raw), "check": zlib.crc32(raw)}, "tensors": tensors})
