"""The user's own examples: features (n, width) and labels (n,) from a .npz, .h5 or .csv file.

Nothing that is read is trusted: every array is checked for type, shape, finite values and possible labels, and
pickled objects are refused.
"""

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lpnet import room
from lpnet.data.base import LARGEST, MOST_CLASSES, DataOptions, DataSet, Floats, Ints, bad, fitting, reading, split
from lpnet.errors import counted

Raw = tuple[Any, Any]  # features and labels as they are in the file; labels None where there are none

_CHECKED = 16.0  # bytes of a number while it is checked: it and its absolute value
_FORMS = "a .npz, .h5, .hdf5 or .csv file"
_READABLE = {
    ".npz": "a readable .npz file with arrays of numbers, no pickled objects",
    ".csv": "comma-separated numbers in UTF-8, the label last, after at most one line of names",
}


@dataclass(frozen=True)
class _Asked:
    """What is wanted of a file; see `read_examples`."""

    features: str
    labels: str
    width: int | None
    labelled: bool


def read_examples(
    path: str | Path, features: str = "x", labels: str = "y", width: int | None = None, classes: int | None = None,
    labelled: bool = False,
) -> tuple[Floats, Ints | None]:  # fmt: skip
    """Checked examples of a file.

    Args:
        path: a .npz, .h5, .hdf5 or .csv file; in a .csv the last column is the label, and a line of header may be
            there.
        features: key of the features in a .npz or .h5 file.
        labels: key of the labels.
        width: number of features that a trained network needs: then labels may be missing (in a .csv, their column).
        classes: number of classes, if known: the labels must be below.
        labelled: whether labels must be there also with a width.

    Returns:
        features (n, width), and labels (n,) or None.

    Raises:
        InputError: the file is missing, unreadable or empty, no regular file (nobody may ever write into a pipe), or
            more than fits into memory; a key is not in it, or an array is not what it should be.
    """
    path = Path(os.path.expanduser(path))
    form = path.suffix.lower()
    readers: dict[str, Callable[..., Raw]] = {".npz": _npz, ".h5": _hdf5, ".hdf5": _hdf5, ".csv": _csv}
    if form not in readers:
        raise bad("path", repr(str(path)), f"{_FORMS}")
    if path.is_dir():
        raise bad("path", f"{str(path)!r} (a folder)", f"{_FORMS}")
    if path.exists() and not path.is_file():
        raise bad("path", f"{str(path)!r} (no regular file)", f"{_FORMS}")
    asked = _Asked(features, labels, width, labelled or width is None)
    with fitting("path", repr(str(path))):
        with reading(path, _READABLE.get(form, "a readable HDF5 file with arrays of numbers")):
            x, y = readers[form](path, asked)
        _require_room(path, _CHECKED * np.asarray(x).size)
        x = _checked_features(x, width)
        return x, None if y is None else _checked_labels(y, len(x), classes)


def _require_room(path: Path, needed: float) -> None:
    room.require("data.path", repr(str(path)), needed, "examples")


def file(options: DataOptions, seed: int) -> DataSet:
    """The user's examples, split into training and validation."""
    assert options.path is not None  # DataOptions has checked it
    x, y = read_examples(options.path, options.features, options.labels, classes=options.classes)
    assert y is not None  # without a width to fit, labels are required
    classes = options.classes or _counted_classes(y)
    return split(options, x, y, classes, seed)


def _npz(path: Path, asked: _Asked) -> Raw:
    with path.open("rb") as stream:
        archive = np.load(stream, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise bad("path", f"{str(path)!r} (a single array)", "a .npz file with features and labels")
        assert archive.zip is not None  # it is open
        sizes = {member.filename.removesuffix(".npy"): member.file_size for member in archive.zip.infolist()}
        return _pick(path, sizes, archive.__getitem__, asked)


def _hdf5(path: Path, asked: _Asked) -> Raw:
    sizes: dict[str, int] = {}

    def note(key: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset):
            sizes[key] = item.nbytes

    with h5py.File(path, "r") as archive:
        archive.visititems(note)
        asked = replace(asked, features=asked.features.strip("/"), labels=asked.labels.strip("/"))
        return _pick(path, sizes, lambda key: archive[key][()], asked)


def _pick(path: Path, sizes: Mapping[str, int], read: Callable[[str], Any], asked: _Asked) -> Raw:
    """The arrays asked for, of those that there are, with their bytes."""
    found = "one of the keys in the file (" + (", ".join(sizes) or "there are none") + ")"
    if asked.features not in sizes:
        raise bad("features", repr(asked.features), found)
    labelled = asked.labels in sizes
    if asked.labelled and not labelled:
        raise bad("labels", repr(asked.labels), found)
    _require_room(path, sizes[asked.features] + (sizes[asked.labels] if labelled else 0))
    return read(asked.features), read(asked.labels) if labelled else None


def _csv(path: Path, asked: _Asked) -> Raw:
    _require_room(path, path.stat().st_size)
    with path.open(newline="", encoding="utf-8-sig") as stream:
        lines = [line for line in stream if line.strip() and not line.startswith("#")]
    if lines and _is_header(next(csv.reader(lines))):
        lines = lines[1:]
    if not lines:
        raise bad("path", f"{str(path)!r} (no examples in it)", "at least one line of numbers")
    table = np.loadtxt(lines, delimiter=",", ndmin=2, quotechar='"')
    if table.shape[1] == asked.width:
        if asked.labelled:
            given = f"{asked.labels!r}, and {counted(table.shape[1], 'column')}"
            raise bad("labels", given, "a column of labels behind those of the features")
        return table, None
    if table.shape[1] < 2:
        raise bad("path", f"{str(path)!r} (one column)", "columns of features, then one of labels")
    return table[:, :-1], table[:, -1]


def _is_header(cells: Sequence[str]) -> bool:
    """Whether a line is names, not numbers; also 0, 1, 2, ..., name, as pandas writes columns without names.

    A line with some other mix is a data line with a slip in it, which must not be dropped.
    """
    numbers = [_is_number(cell) for cell in cells]
    if not any(numbers):
        return all(cell.strip() for cell in cells)
    counted = [cell.strip() for cell in cells[:-1]] == [str(i) for i in range(len(cells) - 1)]
    return counted and len(cells) > 2 and bool(cells[-1].strip()) and not numbers[-1]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _numeric(key: str, array: Any) -> np.ndarray:
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise bad(key, f"an array of type {array.dtype}", "real numbers")
    return array


def _checked_features(array: Any, width: int | None) -> Floats:
    x = _numeric("features", array)
    if x.ndim != 2:
        raise bad("features", f"an array of shape {x.shape}", "(examples, features), images reshaped to rows")
    if x.size == 0:
        raise bad("features", f"an empty array of shape {x.shape}", "at least one example and one feature")
    if width is not None and x.shape[1] != width:
        raise bad("features", counted(x.shape[1], "feature"), f"the {width} that the network was trained with")
    x = x.astype(np.float64)
    wrong = np.argwhere(~(np.abs(x) <= LARGEST))  # so written, NaN is wrong too
    if len(wrong):
        i, j = wrong[0]
        given = f"{x[i, j]} as feature {j} of example {i} (counted from 0)"
        raise bad("features", given, f"finite numbers up to {LARGEST:g}")
    return x


def _checked_labels(array: Any, examples: int, classes: int | None) -> Ints:
    y = _numeric("labels", array)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.ndim != 1:
        raise bad("labels", f"an array of shape {y.shape}", "(examples,), class numbers and not rows of 0 and 1")
    if len(y) != examples:
        given = f"{counted(len(y), 'label')} for {counted(examples, 'example')}"
        raise bad("labels", given, "one label for each example")
    largest = (classes or MOST_CLASSES) - 1
    y = y.astype(np.int64) if y.dtype.kind == "b" else y
    wrong = np.flatnonzero(~((y >= 0) & (y <= largest) & (y == np.floor(y))))
    if len(wrong):
        given = f"label {y[wrong[0]]} of example {wrong[0]} (counted from 0)"
        raise bad("labels", given, f"whole numbers 0...{largest}")
    return y.astype(np.int64)


def _counted_classes(y: Ints) -> int:
    present = np.unique(y)
    classes = int(present[-1]) + 1
    if classes < 2:
        raise bad("labels", "only label 0", "at least two classes")
    if len(present) < classes:
        missing = int(np.setdiff1d(np.arange(classes), present)[0])
        given = f"labels up to {classes - 1}, but none that is {missing}"
        raise bad("labels", given, "labels 0, 1, 2, ... without a gap (or data.classes, to allow empty classes)")
    return classes
