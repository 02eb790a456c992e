"""Numbers for each example, in memory or in a file."""

import tempfile
import weakref
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lpnet.errors import InputError


class Rows(Protocol):
    """Numbers for each example: (examples, numbers)."""

    def read(self, index: Tensor) -> Tensor: ...
    def write(self, index: Tensor, rows: Tensor) -> None: ...
    def whole(self) -> Tensor:
        """All of them, without a copy in memory; not to be written to."""

    def put(self, first: int, columns: Tensor) -> None:
        """Overwrite some columns, (examples, …) from the first on."""


class Host:
    """Rows in memory."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype) -> None:
        self._rows = torch.zeros(shape, dtype=dtype)

    def read(self, index: Tensor) -> Tensor:
        return self._rows[index]

    def write(self, index: Tensor, rows: Tensor) -> None:
        self._rows[index] = rows

    def whole(self) -> Tensor:
        return self._rows

    def put(self, first: int, columns: Tensor) -> None:
        self._rows[:, first : first + columns.shape[1]] = columns


class Scratch:
    """Rows in an HDF5 file that goes away with the object."""

    def __init__(self, shape: tuple[int, int], dtype: torch.dtype, folder: Path) -> None:
        import h5py  # a second to load, which most runs need not spend

        try:
            held = tempfile.TemporaryDirectory(prefix="lpnet-", dir=folder)
            self._file = h5py.File(Path(held.name) / "states.h5", "w")
        except OSError as error:
            raise InputError(
                f"scratch: {str(folder)!r} given ({error.strerror or error}), a folder that can be written to allowed"
            ) from None
        self._rows = self._file.create_dataset("rows", shape, dtype=str(dtype).removeprefix("torch."))
        self._end = weakref.finalize(self, _remove, self._file, held)

    # HDF5 takes increasing indices only, each once.
    def read(self, index: Tensor) -> Tensor:
        once, place = torch.unique(index, return_inverse=True)
        return torch.from_numpy(self._rows[once.numpy()])[place]

    def write(self, index: Tensor, rows: Tensor) -> None:
        once, place = torch.unique(index, return_inverse=True)
        unique = rows.new_empty(len(once), rows.shape[1])
        unique[place] = rows
        self._rows[once.numpy()] = unique.numpy()

    def whole(self) -> Tensor:
        self._file.flush()
        begin = self._rows.id.get_offset()
        if begin is None:  # nothing was written yet
            return torch.from_numpy(self._rows[()])
        return torch.from_numpy(np.memmap(self._file.filename, self._rows.dtype, "c", begin, self._rows.shape))

    def put(self, first: int, columns: Tensor) -> None:
        self._rows[:, first : first + columns.shape[1]] = columns.numpy()


def _remove(file: "object", folder: "tempfile.TemporaryDirectory[str]") -> None:
    file.close()  # type: ignore[attr-defined]
    folder.cleanup()
