"""The user's own examples: every form gives back what was written, and whatever is wrong in it is named in one line."""

from pathlib import Path
from typing import Any

import h5py
import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from refusal import refused

from lpnet import data, room
from lpnet.data import DataOptions, DataSet, load, read_examples
from lpnet.errors import InputError

X = np.random.default_rng(0).normal(size=(30, 3)) * [1.0, 100.0, 1e-3] + [0.0, 5.0, -1.0]
Y = np.arange(30) % 3
FORMS = [".npz", ".h5", ".hdf5", ".csv"]


def write(path: Path, x: Any = X, y: Any = Y, names: tuple[str, str] = ("x", "y")) -> Path:
    """Examples in the form that the suffix says."""
    if path.suffix == ".npz":
        np.savez(path, **{names[0]: np.asarray(x), names[1]: np.asarray(y)})
    elif path.suffix == ".csv":
        np.savetxt(path, np.column_stack((x, y)), delimiter=",", fmt="%.17g")
    else:
        with h5py.File(path, "w") as archive:
            archive[names[0]], archive[names[1]] = x, y
    return path


def from_file(path: Path, **options: Any) -> DataSet:
    return load(DataOptions(name="file", path=str(path), **options), seed=0)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_back_what_was_written(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / f"examples{form}")
    x, y = read_examples(path)
    assert np.array_equal(x, X)
    assert y is not None
    assert y.dtype == np.int64
    assert np.array_equal(y, Y)
    data = from_file(path)
    assert (data.classes, data.features, len(data.train_y), len(data.val_y)) == (3, 3, 24, 6)
    assert np.array_equal(data.train_x, from_file(write(tmp_path / "other.npz")).train_x)
    np.testing.assert_allclose(data.train_x.std(axis=0), 1)
    known = {tuple(row): label for row, label in zip(data.normalized(X), Y, strict=True)}
    assert [known[tuple(row)] for row in data.train_x] == data.train_y.tolist()


@pytest.mark.parametrize("names", [("images", "group/labels"), ("/images", "labels")])
def test_keys_can_be_named(tmp_path: Path, names: tuple[str, str]) -> None:
    path = write(tmp_path / "examples.h5", names=names)
    assert from_file(path, features=names[0], labels=names[1]).classes == 3


@pytest.mark.parametrize("dtype", ["float32", "int8", "uint64", "bool"])
def test_other_number_types_are_read(tmp_path: Path, dtype: str) -> None:
    x, y = (X > 0).astype(dtype), (Y > 0).astype(dtype)
    read_x, read_y = read_examples(write(tmp_path / "examples.npz", x, y[:, None]))
    assert np.array_equal(read_x, x)
    assert np.array_equal(read_y, y)


@pytest.mark.parametrize("head", ["", "a,b,c,label\n", '"a","b","c","label"\n', "0,1,2,label\n", "# a b c\n", "\ufeff"])
def test_a_csv_may_have_a_header(tmp_path: Path, head: str) -> None:
    path = write(tmp_path / "examples.csv")
    path.write_text(head + path.read_text() + "\n\n", encoding="utf-8")
    x, y = read_examples(path)
    assert np.array_equal(x, X)
    assert np.array_equal(y, Y)


@pytest.mark.parametrize("form", FORMS)
def test_labels_may_be_missing_where_a_network_predicts(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / f"examples{form}", X[:, :2], X[:, 2])
    if form == ".csv":
        x, y = read_examples(path, width=3)
        assert np.array_equal(x, X)
    else:
        x, y = read_examples(path, labels="none", width=2)
        assert np.array_equal(x, X[:, :2])
    assert y is None
    labelled = write(tmp_path / f"labelled{form}")
    assert np.array_equal(read_examples(labelled, width=3)[1], Y)
    refused("features", "3 features", lambda: read_examples(labelled, width=5))
    refused("labels", "label 2", lambda: read_examples(labelled, width=3, classes=2))


def test_constant_features_become_0(tmp_path: Path) -> None:
    x = X.copy()
    x[:, 1] = 0.1  # its mean is rounded
    data = from_file(write(tmp_path / "examples.npz", x))
    np.testing.assert_allclose(data.train_x[:, 1], 0, atol=1e-12)
    np.testing.assert_allclose(data.train_x.std(axis=0), [1, 0, 1], atol=1e-12)
    refused("features", "constant", lambda: from_file(write(tmp_path / "all.npz", np.full_like(X, 0.1))))
    assert np.array_equal(from_file(tmp_path / "all.npz", normalize=False).train_x, np.full((24, 3), 0.1))


def test_classes_may_be_empty_where_their_number_is_given(tmp_path: Path) -> None:
    path = write(tmp_path / "examples.npz", y=2 * Y)
    assert from_file(path, classes=7).classes == 7
    refused("labels", "none that is 1", lambda: from_file(path))


def spoilt(value: float) -> np.ndarray:
    x = X.copy()
    x[4, 1] = value
    return x


BAD_ARRAYS = {
    "nan": ("features", "feature 1 of example 4", spoilt(np.nan), Y),
    "inf": ("features", "feature 1 of example 4", spoilt(-np.inf), Y),
    "overflow": ("features", "1e+200 as feature 1 of example 4", spoilt(1e200), Y),
    "one dimension": ("features", "shape (30,)", X[:, 0], Y),
    "three dimensions": ("features", "shape (30, 3, 1)", X[:, :, None], Y),
    "no examples": ("features", "empty", X[:0], Y[:0]),
    "no features": ("features", "empty", X[:, :0], Y),
    "words": ("features", "type", np.full((30, 3), b"a"), Y),
    "complex": ("features", "complex128", X + 1j, Y),
    "fewer labels": ("labels", "29 labels for 30 examples", X, Y[:-1]),
    "more labels": ("labels", "31 labels for 30 examples", X, np.append(Y, 0)),
    "negative label": ("labels", "label -1 of example 0", X, Y - 1),
    "huge label": ("labels", "label 10000000", X, Y * 10_000_000),
    "label beyond int64": ("labels", f"label {2**64 - 1}", X, np.full(30, 2**64 - 1, dtype=np.uint64)),
    "fraction as label": ("labels", "label 0.5 of example 0", X, Y + 0.5),
    "nan as label": ("labels", "label nan of example 1", X, np.where(Y == 1, np.nan, Y)),
    "words as labels": ("labels", "type", X, np.full(30, b"cat")),
    "one-hot labels": ("labels", "shape (30, 3)", X, np.eye(3)[Y]),
    "labels from 1": ("labels", "none that is 0", X, Y + 1),
    "one class": ("labels", "only label 0", X, 0 * Y),
    "one example": ("train, data.validation", "1 example", X[:1], Y[1:2]),
}


@pytest.mark.parametrize("form", [".npz", ".h5"])
@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays_are_refused(tmp_path: Path, case: str, form: str) -> None:
    key, words, x, y = BAD_ARRAYS[case]
    options = {"classes": 2} if case == "one example" else {}
    refused(key, words, lambda: from_file(write(tmp_path / f"examples{form}", x, y), **options))


def test_labels_must_be_below_the_number_of_classes(tmp_path: Path) -> None:
    refused("labels", "label 2 of example 2", lambda: from_file(write(tmp_path / "examples.npz"), classes=2))


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ("no examples", ""),
        ("no examples", "\n \n"),
        ("no examples", "a,b,label\n"),
        ("one column", "1\n2\n"),
        ("could not convert", "a,b,label\n1,2,0\n1,x,1\n"),
        ("could not convert", "1,x,0\n1,2,1\n"),
        ("could not convert", "1,2,O\n1,2,1\n"),
        ("could not convert", "1,,0\n"),
        ("could not convert", ",a,label\n0,1,0\n"),
        ("could not convert", "1;2;0\n1;2;1\n"),
        ("columns changed", "1,2,0\n1,2\n"),
        ("decode", "1,2,\udcff\n"),
    ],
)
def test_bad_csv_is_refused(tmp_path: Path, words: str, text: str) -> None:
    path = tmp_path / "examples.csv"
    path.write_bytes(text.encode(errors="surrogateescape"))
    refused("path", words, lambda: from_file(path))


@pytest.mark.parametrize(
    ("key", "words", "text"),
    [("labels", "label 0.5", "1,2,0.5\n"), ("features", "nan", "1,nan,0\n"), ("features", "inf", "inf,2,0\n")],
)
def test_bad_numbers_in_csv_are_refused(tmp_path: Path, key: str, words: str, text: str) -> None:
    path = tmp_path / "examples.csv"
    path.write_text(text)
    refused(key, words, lambda: from_file(path))


@pytest.mark.parametrize("form", [".npz", ".h5"])
def test_an_unknown_key_is_refused_with_the_keys_that_there_are(tmp_path: Path, form: str) -> None:
    path = write(tmp_path / f"examples{form}", names=("images", "c"))
    refused("features", "(c, images)" if form == ".h5" else "(images, c)", lambda: from_file(path))
    refused("labels", "'y' given", lambda: from_file(path, features="images"))


@pytest.mark.parametrize("form", FORMS)
def test_missing_files_folders_and_rubbish_are_refused(tmp_path: Path, form: str) -> None:
    refused("path", "does not exist", lambda: from_file(tmp_path / f"missing{form}"))
    (tmp_path / f"folder{form}").mkdir()
    refused("path", "a folder", lambda: from_file(tmp_path / f"folder{form}"))
    for content in (b"", b"\x00" * 64, bytes(range(256)) * 4):
        (tmp_path / f"rubbish{form}").write_bytes(content)
        refused("path", "given", lambda: from_file(tmp_path / f"rubbish{form}"))


@pytest.mark.parametrize("name", ["examples.txt", "examples", "examples.pkl", "examples.npy"])
def test_other_forms_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"0,0\n1,1\n")
    refused("path", name, lambda: from_file(tmp_path / name))


def test_pickled_objects_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "examples.npz", x=np.array([[object()]], dtype=object), y=Y[:1])
    refused("path", "allow_pickle", lambda: from_file(tmp_path / "examples.npz"))
    with (tmp_path / "array.npz").open("wb") as stream:
        np.save(stream, X)
    refused("path", "single array", lambda: from_file(tmp_path / "array.npz"))


@pytest.mark.parametrize("form", [".npz", ".h5"])
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(part=st.floats(0, 0.999))
def test_truncated_files_are_refused(tmp_path: Path, form: str, part: float) -> None:
    content = write(tmp_path / f"examples{form}").read_bytes()
    path = tmp_path / f"truncated{form}"
    path.write_bytes(content[: int(part * len(content))])
    refused("path", "cannot be read", lambda: from_file(path))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 0.999), byte=st.integers(0, 255))
def test_a_corrupt_npz_is_refused_or_unharmed(tmp_path: Path, place: float, byte: int) -> None:
    content = bytearray(write(tmp_path / "examples.npz").read_bytes())
    content[int(place * len(content))] = byte
    (tmp_path / "corrupt.npz").write_bytes(content)
    try:
        x, y = read_examples(tmp_path / "corrupt.npz")
    except InputError as error:
        message = str(error)
    else:
        message = "data.: the byte carried nothing, or the checksum would have told"
        assert np.array_equal(x, X)
        assert np.array_equal(y, Y)
    assert message.startswith("data.")
    assert "\n" not in message


@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_fit_is_refused_before_it_is_read(
    tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / f"large{form}", np.zeros((100, 50)), np.arange(100) % 2)
    needed = {".csv": path.stat().st_size}.get(form, 100 * 51 * 8)
    monkeypatch.setattr(room, "most", lambda *_: needed - 1.0)
    refused("path", "memory", lambda: read_examples(path))
    monkeypatch.setattr(room, "most", lambda *_: 100 * 50 * 16 + 1000.0)
    read_examples(path)


def test_a_lack_of_memory_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise MemoryError("no room")

    path = write(tmp_path / "own.npz", X, Y)
    monkeypatch.setattr(data.files, "_checked_features", fail)
    refused("path", "no room", lambda: read_examples(path))
    monkeypatch.setitem(data.REGISTRY, "peaks", fail)
    refused("name", "no room", lambda: data.load(data.DataOptions()))


def test_labels_can_be_required_where_a_network_predicts(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=X)
    np.savetxt(tmp_path / "x.csv", X, delimiter=",")
    for name in ("x.npz", "x.csv"):
        assert read_examples(tmp_path / name, labels="z", width=X.shape[1])[1] is None
        refused("labels", "'z'", lambda name=name: read_examples(tmp_path / name, "x", "z", X.shape[1], labelled=True))
