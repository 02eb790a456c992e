"""``metrics.jsonl``: a JSON object a line for each step, and the same lines compressed, for checkpoints.

A line is compressed once, when it comes, so that a checkpoint costs no more than the bytes of what it holds; these wait
in a file without a name, so that a run of many steps needs no more memory than a short one.
"""

import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any

from lpnet import folders
from lpnet.errors import InputError

_LARGEST_LINE = 2**20
_PIECE = 2**16


class History:
    """The lines of one run.

    Args:
        path: the file, which is made anew.
        lines: those that it begins with.

    Raises:
        OSError: the disk refuses; from all methods.
    """

    def __init__(self, path: Path, lines: Iterable[str] = ()) -> None:
        self.path = path
        self._packer, self._open = zlib.compressobj(), ExitStack()
        self._packed = self._open.enter_context(_nameless(path.parent))
        with folders.replaced(path) as part, part.open("w", encoding="utf-8") as file:
            for line in lines:
                file.write(line + "\n")
                self._pack(line)
        self._file = self._open.enter_context(path.open("ab", buffering=0))

    def add(self, line: str) -> None:
        """One line more, which is in the file at once and as a whole, or not at all."""
        before, left = os.fstat(self._file.fileno()).st_size, memoryview(f"{line}\n".encode())
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            with suppress(OSError):  # that of a failing disk says less than what is raised
                self._file.truncate(before)
            raise
        self._pack(line)

    def _pack(self, line: str) -> None:
        self._packed.write(self._packer.compress(f"{line}\n".encode()))

    def packed(self) -> bytes:
        """All lines compressed, see `unpacked`; they are on the disk now."""
        self._packed.write(self._packer.flush(zlib.Z_SYNC_FLUSH))
        os.fsync(self._file.fileno())
        self._packed.seek(0)
        return self._packed.read()

    def close(self) -> None:
        """No more lines."""
        with suppress(OSError):  # what is left in buffers is of no use any more
            self._open.close()


def _nameless(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile(dir=folder)


def unpacked(packed: bytes, steps: int) -> Iterator[str]:
    """The lines of what `History.packed` made, one after the other: the records of the steps 1, 2, …, and all of them.

    Raises:
        InputError: they are not.
    """
    step = 0
    for line in _lines(packed):
        step += 1
        if step > steps:
            raise InputError(f"the history has more than the {steps} steps that should be")
        try:
            found = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"the history has no record of step {step} ({' '.join(str(error).split())})") from None
        if found != step:
            raise InputError(f"the history has step {found!r} where step {step} should be")
        yield line
    if step != steps:
        raise InputError(f"the history has {step} steps where {steps} should be")


def _lines(packed: bytes) -> Iterator[str]:
    unpacker, rest = zlib.decompressobj(), b""
    left, piece = memoryview(packed), b""
    while (left or piece) and not unpacker.eof:
        if not piece:  # what is not consumed is copied, so that all at once would take the square of the time
            piece, left = bytes(left[:_PIECE]), left[_PIECE:]
        try:
            rest += unpacker.decompress(piece, _PIECE)
        except zlib.error as error:
            raise InputError(f"the history is damaged ({error})") from None
        piece = unpacker.unconsumed_tail
        *whole, rest = rest.split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
        if len(rest) > _LARGEST_LINE:
            raise InputError(f"the history has a line of more than {_LARGEST_LINE} bytes")
    if rest:
        raise InputError("the history ends within a line")


def records(path: Path, keys: Iterable[str]) -> list[dict[str, Any]]:
    """What the lines of a file say of some keys."""
    wanted = tuple(keys)
    with path.open(encoding="utf-8") as file:
        return [{key: record[key] for key in wanted if key in record} for record in map(json.loads, file)]
