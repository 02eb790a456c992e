"""The file that a checkpoint is written to: HDF5 made by one rank, or by all of them where HDF5 is built for that."""

import io
import os
import zlib
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from torch import Tensor

from lpnet.checkpoint.layout import Layout, Piece
from lpnet.slab import Comm
from lpnet.version import __version__

FORMAT, SCHEMA = "lpnet-checkpoint", 1
DATA, META, TABLE = "data", "meta", "table"

_PAGE = 4096
_FLUSH = 64 * 2**20


class Disk(io.FileIO):
    """A new file that takes whatever HDF5 writes, also after the disk has refused something, which `error` keeps.

    HDF5 would not close a file that it cannot write. A thread brings the data to the disk meanwhile: the system would
    keep gigabytes of them in memory until the end, and then be silent for long.
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


class Target:
    """An HDF5 file that is being written.

    Args:
        path: of the file, replaced if it exists.
        comm: the ranks that write it together, each its own rows; None: this rank writes all.

    Raises:
        OSError: it cannot be written; so do all methods.
    """

    def __init__(self, path: Path, comm: Comm | None = None) -> None:
        # Since version 1.10 HDF5 has check sums on all that it writes besides the data.
        options: dict[str, Any] = {"libver": ("v110", "v110")}
        options |= {"alignment_threshold": _PAGE, "alignment_interval": _PAGE}
        self._disk = Disk(path) if comm is None else None
        self._speaks = comm is None or comm.rank == 0
        if comm is None:
            self._file = h5py.File(self._disk, "w", **options)
        else:
            self._file = h5py.File(path, "w", driver="mpio", comm=comm.handle(), **options)
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
        self._data[piece.entry.name][slice(piece.lo, piece.hi) if piece.entry.shape else ()] = data.numpy()
        self._check()

    def describe(self, table: str, meta: str) -> None:
        """Write the meta data, and what has to be known to read and to check the file."""
        for name, text in ((META, meta.encode()), (TABLE, table.encode())):
            room = self._room(name, np.dtype(f"S{len(text)}"), ())
            if self._speaks:
                room[()] = np.bytes_(text)
        check = zlib.crc32(table.encode())
        for key, value in (("format", np.bytes_(FORMAT)), ("lpnet", np.bytes_(__version__))):
            self._file.attrs[key] = value
        self._file.attrs["schema"], self._file.attrs["check"] = np.int64(SCHEMA), np.int64(check)
        self._check()

    def close(self) -> None:
        """Nothing more is written."""
        self._file.close()
        if self._disk is not None:
            self._disk.finish()
        self._check()

    def drop(self) -> None:
        """Nothing more is written, and what there is is of no use."""
        if self._disk is not None and not self._disk.closed:
            self._disk.error = self._disk.error or OSError("dropped")
            self._file.close()
            self._disk.finish()

    def _check(self) -> None:
        if self._disk is not None and self._disk.error is not None:
            raise self._disk.error
