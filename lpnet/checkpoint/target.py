"""The file that a checkpoint is written to: HDF5 made by rank 0, which all ranks may fill where HDF5 can do that."""

import io
import os
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from lpnet import folders
from lpnet.checkpoint.layout import Layout, Piece
from lpnet.phases import phase
from lpnet.slab import Comm
from lpnet.version import __version__

FORMAT, SCHEMA = "lpnet-checkpoint", 1
DATA, META, TABLE = "data", "meta", "table"

# Since version 1.10 HDF5 has check sums on all that it writes besides the data.
_LIBRARY = {"libver": ("v110", "v110")}
_PAGE = 4096
_FLUSH = 64 * 2**20


class Disk(io.FileIO):
    """A new file that takes whatever HDF5 writes, also after the disk has refused something, which `error` keeps.

    HDF5 would not close a file that it cannot write, and may end the process. A thread brings the data to the disk
    meanwhile: the system would keep gigabytes of them in memory until the end, and then be silent for long.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "w+")
        self.error: OSError | None = None
        self._beside, self._flushed = ThreadPoolExecutor(1, "flush"), 0
        self._flush: Future[None] | None = None

    def write(self, given: Any) -> int:
        left = memoryview(given).cast("B")
        total = len(left)
        try:
            while len(left) and self.error is None:
                left = left[super().write(left) :]
            self._flushed += total
            if self._flushed >= _FLUSH and self.error is None:
                self._wait()
                self._flush, self._flushed = self._beside.submit(os.fdatasync, self.fileno()), 0
        except OSError as error:
            self.error = error
        return total

    def _wait(self) -> None:
        if self._flush is not None:
            self._flush.result()

    def finish(self) -> None:
        """Nothing more is written."""
        try:
            self._wait()
        except OSError as error:
            self.error = self.error or error
        self._beside.shutdown()
        self.close()

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size) if self.error is None else size or 0
        except OSError as error:
            self.error = error
            return size or 0


@contextmanager
def written_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, to be written inside, on a disk that may become full.

    Raises:
        OSError: the disk refuses; at the end.
    """
    disk = Disk(path)
    try:
        with h5py.File(disk, "w", **_LIBRARY) as file:
            yield file
    finally:
        disk.finish()
    if disk.error is not None:
        raise disk.error


class Target:
    """An HDF5 file that is being written.

    Args:
        path: of the file, replaced if it exists.

    Raises:
        OSError: it cannot be written; so do all methods.
    """

    def __init__(self, path: Path) -> None:
        self._disk = Disk(path)
        self._file = h5py.File(self._disk, "w", **_LIBRARY, alignment_threshold=_PAGE, alignment_interval=_PAGE)
        self._data: dict[str, h5py.Dataset] = {}

    def make(self, layout: Layout) -> None:
        """Room for the tensors."""
        for entry in layout.entries:
            self._data[entry.name] = self._room(f"{DATA}/{entry.name}", entry.kind, entry.shape)
        self._check()

    def _room(self, name: str, kind: np.dtype, shape: tuple[int, ...]) -> h5py.Dataset:
        """A data set whose place is known at once, and which nothing is written to before its data."""
        how, link = h5py.h5p.create(h5py.h5p.DATASET_CREATE), h5py.h5p.create(h5py.h5p.LINK_CREATE)
        how.set_layout(h5py.h5d.CONTIGUOUS)
        how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        link.set_create_intermediate_group(True)
        space = h5py.h5s.create_simple(shape) if shape else h5py.h5s.create(h5py.h5s.SCALAR)
        return h5py.Dataset(h5py.h5d.create(self._file.id, name.encode(), h5py.h5t.py_create(kind), space, how, link))

    def put(self, piece: Piece, data: Tensor) -> None:
        """Write a piece."""
        _put(self._data[piece.entry.name], piece, data)
        self._check()

    def describe(self, table: str, meta: str) -> None:
        """Write the meta data, and what has to be known to read and to check the file."""
        for name, text in ((META, meta.encode()), (TABLE, table.encode())):
            room = self._room(name, np.dtype(f"S{len(text)}"), ())
            room[()] = np.bytes_(text)
        check = zlib.crc32(table.encode())
        for key, value in (("format", np.bytes_(FORMAT)), ("lpnet", np.bytes_(__version__))):
            self._file.attrs[key] = value
        self._file.attrs["schema"], self._file.attrs["check"] = np.int64(SCHEMA), np.int64(check)
        self._check()

    def close(self) -> None:
        """Nothing more is written."""
        self._file.close()
        self._disk.finish()
        self._check()

    def drop(self) -> None:
        """Nothing more is written, and what there is is of no use."""
        if not self._disk.closed:
            self._disk.error = self._disk.error or OSError("dropped")
            self._file.close()
            self._disk.finish()

    def _check(self) -> None:
        if self._disk.error is not None:
            raise self._disk.error


def can_be_filled(comm: Comm) -> bool:
    """Whether all ranks can fill a file together: they are several, and HDF5 is built for them."""
    return comm.size > 1 and comm.handle() is not None and bool(h5py.get_config().mpi)


def reach(path: Path) -> None:
    """Require that this rank can open a file: one that cannot would be missed where all open it together.

    Raises:
        OSError: it cannot.
    """
    os.close(os.open(path, os.O_RDWR))


def fill(path: Path, comm: Comm, pieces: Iterable[tuple[Piece, Tensor]]) -> None:
    """Write this rank's pieces into a file that has room for them; collective.

    No more than that: all that HDF5 itself has to write is there, so that it can close the file whatever happens.
    Opening and closing are collective, pieces are not: a rank that cannot write one closes the file with the others, so
    that it may fail alone. What may keep one rank alone from opening it, `reach` has found before.

    Raises:
        OSError: it cannot be written.
    """
    with h5py.File(path, "r+", driver="mpio", comm=comm.handle(), **_LIBRARY) as file:
        for piece, data in pieces:
            with phase(comm, "write"):
                _put(file[f"{DATA}/{piece.entry.name}"], piece, data)
    folders.flush(path)  # what this rank's machine holds back


def _put(room: h5py.Dataset, piece: Piece, data: Tensor) -> None:
    room[slice(piece.lo, piece.hi) if piece.entry.shape else ()] = data.numpy()
