"""The newest whole checkpoint is found, old ones go, and nothing is lost on the way."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import h5py
import numpy as np
import pytest
from checkpoints import on, sample

from lpnet.checkpoint import file
from lpnet.checkpoint.layout import Entry
from lpnet.checkpoint.store import Checkpoints
from lpnet.checkpoint.stored import Stored, Unread
from lpnet.errors import InputError, OutputError
from lpnet.slab import Comm


def saved(folder: Path, steps: list[int], keep: int = 2, ranks: int = 1) -> list[str]:
    """What is in the folder after these."""
    on(ranks, lambda comm: [Checkpoints(comm, folder, keep).save(step, sample(comm, step)) for step in steps])
    return sorted(os.listdir(folder))


def newest(folder: Path, ranks: int = 1) -> tuple[int, list[str]]:
    """The rows of the newest one, and what was said of others; the same on all ranks."""

    def found(comm: Comm) -> tuple[int, list[str]]:
        said: list[str] = []
        return Checkpoints(comm, folder, 2).newest(said.append).shape("trunk/K")[0], said

    first, *others = on(ranks, found)
    assert all(other == first for other in others)
    return first


def damage(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)


each = pytest.mark.parametrize("ranks", [1, 3])


@each
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int, ranks: int) -> None:
    found = saved(tmp_path / "new" / "folder", [1, 5, 20, 100], keep, ranks)
    assert found == [f"step-{step:08d}.h5" for step in (1, 5, 20, 100)[-keep:]]
    assert newest(tmp_path / "new" / "folder", ranks) == (100, [])


@each
def test_a_damaged_one_is_reported_and_the_one_before_is_taken(tmp_path: Path, ranks: int) -> None:
    saved(tmp_path, [1, 5, 20], 3)
    for step, (left, said) in ((20, (5, 1)), (5, (1, 2))):
        damage(tmp_path / f"step-{step:08d}.h5")
        found, lines = newest(tmp_path, ranks)
        assert (found, len(lines)) == (left, said)
        assert f"step-{step:08d}.h5" in lines[-1]
        assert "the one before" in lines[-1]
    (tmp_path / "step-00000001.h5").write_bytes(b"")
    with pytest.raises(InputError, match="a folder with a whole checkpoint allowed"):
        newest(tmp_path, ranks)


def test_a_run_that_went_back_leaves_none_of_the_steps_behind(tmp_path: Path) -> None:
    """Else a damaged file of a later step would stay the newest, and push out those that are whole."""
    saved(tmp_path, [10, 20, 30], 3)
    damage(tmp_path / "step-00000030.h5")
    aside = (tmp_path / "step-00000030.h5").read_bytes()
    assert saved(tmp_path, [22], 2) == ["step-00000020.h5", "step-00000022.h5", "step-00000030.h5.damaged"]
    assert newest(tmp_path) == (22, [])
    assert (tmp_path / "step-00000030.h5.damaged").read_bytes() == aside
    (tmp_path / "step-00000030.h5").write_bytes(b"another")
    assert saved(tmp_path, [23, 30, 31], 1) == ["step-00000030.h5.damaged", "step-00000031.h5"]
    assert (tmp_path / "step-00000030.h5.damaged").read_bytes() == b"another"


def newer(folder: Path, patch: pytest.MonkeyPatch) -> None:
    with h5py.File(folder / "step-00000020.h5", "r+") as changed:
        changed.attrs["schema"] = np.int64(99)


def many_files(folder: Path, patch: pytest.MonkeyPatch) -> None:
    real = h5py.File

    def opened(path: Path, *given: Any, **more: Any) -> h5py.File:
        if path.name == "step-00000020.h5":
            raise OSError(24, "Unable to open file (unable to open file: errno = 24, error message = 'Too many')")
        return real(path, *given, **more)

    patch.setattr(h5py, "File", opened)


def failing_disk(folder: Path, patch: pytest.MonkeyPatch) -> None:
    """Under an open file, as HDF5 has it in words alone."""
    real = Stored._text

    def text(self: Stored, name: str) -> bytes:
        if self.path.name == "step-00000020.h5":
            raise KeyError("Unable to open object (file read failed: time = Wed\n, errno = 5, error message = 'In")
        return real(self, name)

    patch.setattr(Stored, "_text", text)


def little_memory(folder: Path, patch: pytest.MonkeyPatch) -> None:
    real = Entry.empty

    def empty(self: Entry, rows: int) -> Any:
        if self.shape == (20, 2, 2):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return real(self, rows)

    patch.setattr(Entry, "empty", empty)


@each
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (newer, "written by a newer lpnet"),
        (many_files, "Too many open files"),
        (failing_disk, "Input/output error"),
        (little_memory, "no memory for"),
    ],
)
def test_one_that_may_be_good_stays_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int, fault: Callable[..., None], words: str
) -> None:
    before = saved(tmp_path, [10, 20])
    fault(tmp_path, monkeypatch)
    with pytest.raises(InputError, match=rf"step-00000020.h5' given \({words}.*; it may be good: mend that, or move"):
        newest(tmp_path, ranks)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("kinds", [{1: InputError}, {1: InputError, 2: Unread}])
def test_a_fault_of_one_rank_is_one_of_all(tmp_path: Path, kinds: dict[int, type[InputError]]) -> None:
    """Also which fault it is: what is damaged for one rank may be good where another cannot read it."""
    saved(tmp_path, [10, 20], ranks=3)

    def found(comm: Comm) -> list[str]:
        said: list[str] = []

        def take(stored: Stored) -> int:
            rows = stored.shape("trunk/K")[0]
            if rows == 20 and comm.rank in kinds:
                raise stored.unusable("a fault", kinds[comm.rank])
            return rows

        if Unread in kinds.values():
            with pytest.raises(InputError, match=r"a fault.*; it may be good"):
                Checkpoints(comm, tmp_path, 2).newest_as(pytest.fail, take)
        else:
            assert Checkpoints(comm, tmp_path, 2).newest_as(said.append, take) == 10
        return said

    path = str(tmp_path / "step-00000020.h5")
    line = f"checkpoint: {path!r} given (a fault), a checkpoint that lpnet wrote allowed; the one before is tried"
    assert on(3, found) == [[line] if kinds == {1: InputError} else []] * 3


@each
def test_a_damaged_one_does_not_push_out_the_one_that_the_run_goes_on_from(tmp_path: Path, ranks: int) -> None:
    saved(tmp_path, [10, 20], 2)
    damage(tmp_path / "step-00000020.h5")

    def go_on(comm: Comm) -> list[list[str]]:
        store, found = Checkpoints(comm, tmp_path, 2, begun=10), []
        for step in (25, 30):
            store.save(step, sample(comm, step))
            comm.barrier()
            found.append(sorted(os.listdir(tmp_path)))
            comm.barrier()
        return found

    for first, last in on(ranks, go_on):
        assert first == ["step-00000010.h5", "step-00000020.h5.damaged", "step-00000025.h5"]
        assert last == ["step-00000020.h5.damaged", "step-00000025.h5", "step-00000030.h5"]


def test_what_a_killed_run_has_left_goes_and_foreign_files_stay(tmp_path: Path) -> None:
    for name in ("step-00000003.h5.part", "step-3.h5", "notes"):
        (tmp_path / name).touch()
    others = ["folder.part", "notes", "step-00000002.h5", "step-3.h5"]
    for name in (others[0], others[2]):
        (tmp_path / name).mkdir()
    assert saved(tmp_path, [4]) == [*others[:3], "step-00000004.h5", "step-3.h5"]
    assert newest(tmp_path) == (4, [])


@each
def test_a_save_that_fails_loses_nothing(tmp_path: Path, ranks: int) -> None:
    before = saved(tmp_path, [1, 2])
    with mock.patch.object(file.Target, "close", side_effect=OSError(28, "No space left on device")):
        for _ in range(2):
            with pytest.raises(OutputError, match=r"step-00000003.h5' cannot be written \(No space"):
                saved(tmp_path, [3], 1, ranks)
            assert sorted(os.listdir(tmp_path)) == before
    assert newest(tmp_path) == (2, [])


@pytest.mark.parametrize("what", [lambda path: None, Path.touch, Path.mkdir])
def test_folders_without_any(tmp_path: Path, what: Callable[[Path], None]) -> None:
    what(tmp_path / "checkpoints")
    with pytest.raises(InputError, match=r"^checkpoint: .* given.* allowed$"):
        newest(tmp_path / "checkpoints", 2)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=r"cannot be changed \((File exists|Not a directory)"):
        saved(tmp_path / "file", [1], 1, 2)
