"""A checkpoint that is read: nothing in it is believed before it was checked, and nothing is followed out of the file.

What is refused: links, data of other files, filters, chunks, types without a fixed length, and data sets that would be
larger than the file. Check sums are of all rows, of the meta data, and of the table that says what there is.

A fault is one of the file, or it may be none of it (`Unread`): then the file may be good, and nobody should go past it.
"""

import errno
import json
import math
import os
import re
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from lpnet.checkpoint.layout import BLOCK, NAMED, Entry, checksum
from lpnet.checkpoint.target import DATA, FORMAT, META, SCHEMA, TABLE
from lpnet.errors import InputError
from lpnet.launch import together
from lpnet.slab import Comm

# What h5py, json and numpy raise on damaged or foreign files.
_DAMAGED = (OSError, LookupError, TypeError, ValueError, RuntimeError, ArithmeticError, AttributeError)

_SHORT = 64
"""Most characters of a text in an attribute."""


class Unread(InputError):
    """A checkpoint that may be whole: the system does not let it be read now, or a newer lpnet wrote it."""


def read(path: str | Path, comm: Comm) -> "Stored":
    """Open a checkpoint on all ranks and check all of it, each rank its share; collective.

    Raises:
        InputError: it is missing, damaged, or no checkpoint; on all ranks.
    """
    with together(comm):
        return opened(path, comm)


def opened(path: str | Path, comm: Comm) -> "Stored":
    """Open a checkpoint on this rank, and check this rank's share of it.

    Raises:
        Unread: it may be whole, but cannot be read.
        InputError: it is damaged, or no checkpoint.
    """
    stored = Stored(path)
    try:
        stored.check(stored.blocks()[comm.rank :: comm.size])
    except InputError:
        stored.close()
        raise
    return stored


@contextmanager
def believed(stored: "Stored", why: str) -> Iterator[None]:
    """Inside, meta data of another form than what reads them expects are an `InputError`: for this reason."""
    try:
        yield
    except InputError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
        raise stored.unusable(why) from error


class Stored:
    """A checkpoint that is open to be read by this rank; its structure was checked, and its meta data.

    Args:
        path: the file.

    Attributes:
        path: the file.
        meta: what the writer gave.
        writer: the version of lpnet that it was.

    Raises:
        Unread: it is missing, cannot be read, or is of a newer lpnet.
        InputError: it is damaged, or no checkpoint.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(os.path.expanduser(path))
        self._entries: dict[str, Entry] = {}
        self._sums: dict[str, list[int]] = {}
        self._data: dict[str, h5py.Dataset] = {}
        with self._readable():
            status = self.path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise InputError("it is no file")
            if not status.st_size:
                raise InputError("it is empty")
            self._bytes = status.st_size
            self._file = h5py.File(self.path, "r", locking=False)
            self.writer = str(self._attribute("lpnet"))
            self.meta: dict[str, Any] = self._open()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """What goes wrong inside is one `InputError` that names the file, `Unread` where the file may be good."""
        try:
            yield
        except FileNotFoundError:
            raise self.unusable("it does not exist", Unread) from None
        except InputError as error:
            raise self.unusable(str(error), type(error)) from None
        except MemoryError as error:
            raise self.unusable(str(error) or "no memory for it", Unread) from error
        except _DAMAGED as error:
            refused = _refusal(error)
            if refused:
                raise self.unusable(os.strerror(refused), Unread) from error
            raise self.unusable(" ".join(str(error).split()) or type(error).__name__) from error

    def unusable(self, why: str, kind: type[InputError] = InputError) -> InputError:
        """The error that names the file."""
        return kind(f"checkpoint: {str(self.path)!r} given ({why}), a checkpoint that lpnet wrote allowed")

    # ---- what there is ---------------------------------------------------------------------------------------------

    def _open(self) -> dict[str, Any]:
        if self._attribute("format") != FORMAT:
            raise InputError("no checkpoint of lpnet")
        if self._attribute("schema") > SCHEMA:
            raise Unread(f"written by a newer lpnet, {self.writer}")
        raw = self._text(TABLE)
        if zlib.crc32(raw) != self._attribute("check"):
            raise InputError("its table is damaged")
        table = json.loads(raw)
        for name, said in table["tensors"].items():
            self._entries[name], self._sums[name] = _entry(name, said)
            self._data[name] = self._tensor(self._entries[name])
        raw = self._text(META)
        if table["meta"] != {"bytes": len(raw), "check": zlib.crc32(raw)}:
            raise InputError("its meta data are damaged")
        meta = json.loads(raw)
        if not isinstance(meta, dict):
            raise InputError("its meta data are no mapping")
        return meta

    def _attribute(self, name: str) -> Any:
        """A whole number or a short text."""
        if name not in self._file.attrs:
            raise InputError("no checkpoint of lpnet")
        found = self._file.attrs.get_id(name)
        type_, size = found.get_type(), found.get_type().get_size()
        if found.shape != () or size > _SHORT:
            raise InputError(f"its attribute {name} is of another form")
        if type_.get_class() == h5py.h5t.INTEGER:
            return int(self._file.attrs[name])
        if type_.get_class() != h5py.h5t.STRING or type_.is_variable_str():
            raise InputError(f"its attribute {name} is of another form")
        return bytes(self._file.attrs[name]).decode("ascii")

    def _found(self, name: str) -> h5py.Dataset:
        """A data set in one piece; no link is followed on the way to it."""
        place: Any = self._file
        for part in name.split("/"):
            if not isinstance(place, h5py.Group) or not place.id.links.exists(part.encode()):
                raise InputError(f"{name} is missing")
            if place.id.links.get_info(part.encode()).type != h5py.h5l.TYPE_HARD:
                raise InputError(f"{name} is a link")
            place = place[part]
        if not isinstance(place, h5py.Dataset):
            raise InputError(f"{name} is missing")
        how = place.id.get_create_plist()
        if how.get_layout() != h5py.h5d.CONTIGUOUS or how.get_external_count() or how.get_nfilters():
            raise InputError(f"{name} is not in one piece")
        return place

    def _is_inside(self, found: h5py.Dataset, size: int) -> bool:
        """Whether it has so many bytes, all of them in the file."""
        start = found.id.get_offset()
        return found.id.get_storage_size() == size and (not size or (start is not None and start + size <= self._bytes))

    def _text(self, name: str) -> bytes:
        found = self._found(name)
        type_ = found.id.get_type()
        fixed = type_.get_class() == h5py.h5t.STRING and not type_.is_variable_str()
        if not fixed or found.shape != () or not self._is_inside(found, type_.get_size()):
            raise InputError(f"its {name} is of another form")
        return bytes(found[()])

    def _tensor(self, entry: Entry) -> h5py.Dataset:
        found = self._found(f"{DATA}/{entry.name}")
        same = found.id.get_type().equal(h5py.h5t.py_create(entry.kind)) and found.shape == entry.shape
        if not same or not self._is_inside(found, entry.size):
            raise InputError(f"{entry.name} is of another type or shape")
        return found

    # ---- reading ---------------------------------------------------------------------------------------------------

    def names(self) -> list[str]:
        """Of all tensors."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of all rows of a tensor."""
        return self._known(name).shape

    def dtype(self, name: str) -> torch.dtype:
        """Of a tensor."""
        return self._known(name).dtype

    def whole(self, name: str) -> Tensor:
        """All of a tensor, on the host."""
        shape = self.shape(name)
        return self.rows(name, 0, shape[0] if shape else 1)

    def rows(self, name: str, lo: int, hi: int) -> Tensor:
        """The rows [lo, hi) of a tensor, on the host."""
        entry = self._known(name)
        return entry.restored(self._kept(entry, lo, hi))

    def _known(self, name: str) -> Entry:
        if name not in self._entries:
            raise self.unusable(f"{name} is missing")
        return self._entries[name]

    def _kept(self, entry: Entry, lo: int, hi: int) -> Tensor:
        with self._readable():
            held = _room(entry, hi - lo)
            if held.numel():
                self._data[entry.name].read_direct(held.numpy(), np.s_[lo:hi] if entry.shape else None)
        return held

    def blocks(self) -> list[tuple[str, int, int, int]]:
        """All blocks: name, first row, end, check sum."""
        return [
            (name, lo, hi, check)
            for name, entry in self._entries.items()
            for (lo, hi), check in zip(entry.spans(), self._sums[name], strict=True)
        ]

    def check(self, blocks: list[tuple[str, int, int, int]]) -> None:
        """Require that blocks are as they were written.

        Raises:
            InputError: one is not.
        """
        for name, lo, hi, check in blocks:
            if checksum(self._kept(self._entries[name], lo, hi)) != check:
                raise self.unusable(f"{name} is damaged")

    def close(self) -> None:
        """No more is read."""
        self._file.close()


def _entry(name: str, said: dict[str, Any]) -> tuple[Entry, list[int]]:
    """A tensor and its check sums, from a line of the table."""
    shape, blocks = said["shape"], said["blocks"]
    whole = all(_is_count(n) for n in shape) and all(_is_count(n) and _is_count(c) for n, c in blocks)
    if said["type"] not in NAMED or not whole:
        raise InputError(f"{name} is of another type or shape")
    entry = Entry(name, NAMED[said["type"]], tuple(shape), tuple(n for n, _ in blocks))
    if sum(entry.blocks) != (0 if not math.prod(shape) else shape[0] if shape else 1):
        raise InputError(f"{name} is not covered by check sums")
    if any(n > 1 and n * entry.row > BLOCK for n in entry.blocks):
        raise InputError(f"{name} is in blocks of more than {BLOCK} bytes")  # each would take so much memory
    return entry, [check for _, check in blocks]


def _room(entry: Entry, rows: int) -> Tensor:
    """For rows of a tensor.

    Raises:
        MemoryError: there is none.
    """
    try:
        return entry.empty(rows)
    except RuntimeError as error:  # which is what torch says then
        raise MemoryError(f"no memory for {rows * entry.row} bytes of {entry.name}") from error


def _refusal(error: Exception) -> int:
    """The number of the system's error behind one of h5py, which may have it in its text alone; 0: there is none.

    `EINVAL` is what wrong numbers in a file lead to.
    """
    said = re.search(r"errno = (\d+)", str(error))
    number = getattr(error, "errno", None) or (int(said[1]) if said else 0)
    return 0 if number == errno.EINVAL else number


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63
