"""Files that are no whole checkpoint: one line that names the file and the fault, whatever is in them."""

import json
import os
import re
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from checkpoints import equal, inside, on, sample, whole, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lpnet.checkpoint.file import read
from lpnet.checkpoint.stored import Stored, Unread
from lpnet.errors import InputError
from lpnet.slab import Comm

LINE = re.compile(r"checkpoint: .* given \(.+\), a checkpoint that lpnet wrote allowed")
many = settings(max_examples=250, suppress_health_check=[HealthCheck.function_scoped_fixture])


def refused(path: Path, words: str, ranks: int = 1) -> None:
    """On all ranks, in one line with these words."""

    def trial(comm: Comm) -> str:
        with pytest.raises(InputError) as caught:
            read(path, comm)
        return str(caught.value)

    (message,) = set(on(ranks, trial))
    assert LINE.fullmatch(message)
    assert repr(str(path)) in message
    assert words in message


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Of a good file."""
    return written(tmp_path_factory.mktemp("good") / "c.h5", 2).read_bytes()


def same_or_refused(path: Path, raw: bytes, changed: bytes) -> bool:
    """Whether a changed file is refused; else it has the same content."""
    good, bad = path / "good.h5", path / "bad.h5"
    if not good.exists():
        good.write_bytes(raw)
    bad.write_bytes(changed)
    try:
        stored = read(bad, Comm())
    except InputError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert LINE.fullmatch(said)
        return True
    before = read(good, Comm())
    assert equal(inside(stored), inside(before))
    assert repr(stored.meta) == repr(before.meta)
    return False


@many
@given(data=st.data())
def test_any_bytes_that_are_changed(tmp_path: Path, raw: bytes, data: st.DataObject) -> None:
    """Bytes that change nothing do no harm; all others are found."""
    changed = bytearray(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    same_or_refused(tmp_path, raw, bytes(changed))


def test_every_byte_of_tensors_and_meta_data_counts(tmp_path: Path, raw: bytes) -> None:
    for words in (np.arange(24.0, dtype="<f4").tobytes(), b'"loss": NaN', b'"shape": [6, 2, 2]'):
        place = raw.index(words)
        for k in range(place, place + len(words), 3):
            changed = bytearray(raw)
            changed[k] ^= 1 << k % 8
            assert same_or_refused(tmp_path, raw, bytes(changed))


@many
@given(length=st.floats(0, 1))
def test_any_length(tmp_path: Path, raw: bytes, length: float) -> None:
    assert same_or_refused(tmp_path, raw, raw[: int(length * (len(raw) - 1))])


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_rank_that_finds_the_damage_tells_all(tmp_path: Path, raw: bytes, ranks: int) -> None:
    """Each rank checks a share: whichever block is damaged."""
    good = written(tmp_path / "c.h5", 3).read_bytes()
    for k in range(0, 24, 4):
        place = good.index(np.arange(24.0, dtype="<f4").tobytes()) + 4 * k
        (tmp_path / "c.h5").write_bytes(good[:place] + b"\1" + good[place + 1 :])
        refused(tmp_path / "c.h5", "trunk/K is damaged", ranks)


def test_what_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("hello\n")
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")  # which would never open
    with h5py.File(tmp_path / "foreign", "w") as file:
        file["data/trunk/K"] = np.zeros(3)
    for name, words in {
        "missing": "it does not exist",
        "empty": "it is empty",
        "text": "signature",
        "text/c.h5": "Not a directory",
        "loop": "symbolic links",
        "pipe": "it is no file",
        ".": "it is no file",
        "foreign": "no checkpoint of lpnet",
    }.items():
        refused(tmp_path / name, words, 2)


def test_what_the_system_refuses_under_an_open_file(tmp_path: Path) -> None:
    """HDF5 has the number of the error, or it is in its text."""
    path = written(tmp_path / "c.h5", 1, lambda comm: sample(comm, 50_000))  # more than HDF5 reads ahead
    for read_first in (False, True):
        stored = read(path, Comm()) if read_first else Stored(path)
        (handle,) = (n for n in os.listdir("/proc/self/fd") if os.path.realpath(f"/proc/self/fd/{n}") == str(path))
        other = os.open(os.devnull, os.O_WRONLY)
        os.dup2(other, int(handle))
        os.close(other)
        with pytest.raises(Unread, match=r"given \(Bad file descriptor\), a checkpoint"):
            stored.whole("trunk/K")
        stored.close()


# ---- forged files: their check sums are right ------------------------------------------------------------------------

Change = Callable[[h5py.File], None]


def replaced(name: str, **options: Any) -> Change:
    """Another data set in the place of one."""

    def change(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, **options)

    return change


def attribute(name: str, value: Any, **options: Any) -> Change:
    """Another attribute; None: none."""

    def change(file: h5py.File) -> None:
        del file.attrs[name]
        if value is not None:
            file.attrs.create(name, value, **options)

    return change


def link(name: str, to: Any) -> Change:
    """A link in the place of a data set or group."""

    def change(file: h5py.File) -> None:
        file.move(name, "elsewhere")
        file[name] = to

    return change


def text(name: str, value: str) -> Change:
    """Another text, with the right check sum."""

    def change(file: h5py.File) -> None:
        table = json.loads(file["table"][()])
        if name == "meta":
            table["meta"] = {"bytes": len(value), "check": zlib.crc32(value.encode())}
        for key, new in (("meta", value), ("table", value if name == "table" else json.dumps(table))):
            if key in (name, "table"):
                del file[key]
                file[key] = np.bytes_(new.encode())
                file.attrs["check"] = np.int64(zlib.crc32(new.encode()))

    return change


def table(**said: Any) -> Change:
    """Another line of the table for trunk/K; type, shape and blocks as they were unless given."""

    def change(file: h5py.File) -> None:
        found = json.loads(file["table"][()])
        found["tensors"]["trunk/K"] |= said
        text("table", json.dumps(found))(file)

    return change


def virtual(file: h5py.File) -> None:
    file.move("data/trunk/K", "elsewhere")
    layout = h5py.VirtualLayout((6, 2, 2), "<f4")
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (6, 2, 2))
    file.create_virtual_dataset("data/trunk/K", layout)


def lazy(file: h5py.File) -> None:
    """Room that was never made, for more than there is memory."""
    del file["data/trunk/K"]
    how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    how.set_layout(h5py.h5d.CONTIGUOUS)
    how.set_alloc_time(h5py.h5d.ALLOC_TIME_LATE)
    space = h5py.h5s.create_simple((1, 2**40, 4))
    h5py.h5d.create(file["data/trunk"].id, b"K", h5py.h5t.IEEE_F32LE, space, how)
    table(shape=[1, 2**40, 4], blocks=[[1, 0]])(file)


def sparse(shape: list[int], blocks: list[list[int]]) -> Change:
    """Room that was made, on a disk that has not so much: in a file with a hole."""

    def change(file: h5py.File) -> None:
        del file["data/trunk/K"]
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_layout(h5py.h5d.CONTIGUOUS)
        how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        h5py.h5d.create(file["data/trunk"].id, b"K", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(tuple(shape)), how)
        table(shape=shape, blocks=blocks)(file)

    return change


def grouped(file: h5py.File) -> None:
    del file[K]
    file.create_group(K)


K = "data/trunk/K"
F = {"shape": (6, 2, 2), "dtype": "<f4"}
FORGED: dict[str, tuple[str, Change]] = {
    "soft link": (f"{K} is a link", link(K, h5py.SoftLink("/elsewhere"))),
    "soft group": ("is a link", link("data/trunk", h5py.SoftLink("/elsewhere"))),
    "external link": (f"{K} is a link", link(K, h5py.ExternalLink("/etc/passwd", "x"))),
    "external group": ("is a link", link("data", h5py.ExternalLink("/dev/zero", "x"))),
    "table elsewhere": ("table is a link", link("table", h5py.SoftLink("/elsewhere"))),
    "virtual": (f"{K} is not in one piece", virtual),
    "external": (f"{K} is not in one piece", replaced(K, **F, external=[("/etc/passwd", 0, 96)])),
    "chunks": (f"{K} is not in one piece", replaced(K, **F, chunks=(1, 2, 2))),
    "filter": (f"{K} is not in one piece", replaced(K, **F, compression="gzip")),
    "shape": ("trunk/K is of another type or shape", replaced(K, shape=(6, 4), dtype="<f4")),
    "type": ("trunk/K is of another type or shape", replaced(K, shape=(6, 2, 2), dtype="<f8")),
    "order": ("trunk/K is of another type or shape", replaced(K, shape=(6, 2, 2), dtype=">f4")),
    "vlen": ("another type", replaced(K, shape=(6, 2, 2), dtype=h5py.vlen_dtype("<f4"))),
    "reference": ("another type", replaced(K, shape=(6, 2, 2), dtype=h5py.ref_dtype)),
    "opaque": ("another type", replaced(K, data=np.zeros((6, 2, 2), "V4"))),
    "compound": ("another type", replaced(K, shape=(6, 2, 2), dtype=[("a", "<f4")])),
    "lazy": ("another type or shape", lazy),
    "group": (f"{K} is missing", grouped),
    "missing": (f"{K} is missing", lambda file: file.__delitem__(K)),
    "no data": ("data/classifier/weight is missing", lambda file: file.__delitem__("data")),
    "no meta": ("meta is missing", lambda file: file.__delitem__("meta")),
    "no table": ("table is missing", lambda file: file.__delitem__("table")),
    "long meta": ("meta is of another form", replaced("meta", data="x", dtype=h5py.string_dtype())),
    "meta of numbers": ("meta is of another form", replaced("meta", data=np.arange(3))),
    "several metas": ("meta is of another form", replaced("meta", data=np.array([b"{}", b"{}"]))),
    "meta, a list": ("no mapping", text("meta", "[]")),
    "meta, no JSON": ("Expecting", text("meta", "{")),
    "meta, deep": ("recursion", text("meta", "[" * 100_000)),
    "meta, a long number": ("digits", text("meta", "1" * 5_000)),
    "table, a list": ("", text("table", "[]")),
    "table, no lists": ("", text("table", '{"tensors": [1]}')),
    "table, no meta": ("meta", text("table", '{"tensors": {}}')),
    "rows, negative": ("another type", table(shape=[-6, 2, 2])),
    "rows, a truth": ("another type", table(shape=[True, 2, 2])),
    "rows, a float": ("another type", table(shape=[6.0, 2, 2])),
    "rows, endless": ("another type", table(shape=[10**300, 2, 2])),
    "rows, fewer": ("not covered", table(shape=[5, 2, 2])),
    "rows, more": ("another type", table(shape=[7, 2, 2], blocks=[[7, 0]])),
    "blocks, large": ("in blocks of more than 4194304 bytes", sparse([2**40, 2], [[2**40, 0]])),
    "a row, large": ("no memory for 8796093022208 bytes of trunk/K", sparse([1, 2**41], [[1, 0]])),
    "blocks, none": ("not covered", table(blocks=[])),
    "blocks, text": ("", table(blocks="ab")),
    "blocks, too few": ("not covered", table(blocks=[[5, 0]])),
    "blocks, negative": ("another type", table(blocks=[[7, 0], [-1, 0]])),
    "type, unknown": ("another type", table(type="complex64")),
    "type, a list": ("", table(type=[])),
    "sums, wrong": ("trunk/K is damaged", table(blocks=[[6, 0]])),
    "format": ("no checkpoint of lpnet", attribute("format", np.bytes_("lpnet-model"))),
    "no format": ("no checkpoint of lpnet", attribute("format", None)),
    "format, long": ("format is of another form", attribute("format", "x", dtype=h5py.string_dtype())),
    "schema": ("written by a newer lpnet, ", attribute("schema", np.int64(2))),
    "schema, a float": ("schema is of another form", attribute("schema", 1.0)),
    "schema, many": ("schema is of another form", attribute("schema", np.zeros(1000, dtype=int))),
    "no check": ("no checkpoint of lpnet", attribute("check", None)),
    "check": ("its table is damaged", attribute("check", np.int64(1))),
}


@pytest.mark.parametrize("name", list(FORGED))
def test_forged_files(tmp_path: Path, raw: bytes, name: str) -> None:
    words, change = FORGED[name]
    path = tmp_path / "c.h5"
    path.write_bytes(raw)
    with h5py.File(path, "r+") as file:
        change(file)
    refused(path, words)


def test_what_else_is_in_a_file_does_not_matter(tmp_path: Path, raw: bytes) -> None:
    """And forging, by itself, is not what is refused."""
    path = tmp_path / "c.h5"
    path.write_bytes(raw)
    before = whole(path)
    with h5py.File(path, "r+") as file:
        table()(file)
        text("meta", '{"a": 1}')(file)
        file["data/other"] = h5py.ExternalLink("/etc/passwd", "x")
        file.attrs["other"] = ["a", "b"]
    assert equal(whole(path), before)
    assert read(path, Comm()).meta == {"a": 1}
