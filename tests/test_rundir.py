"""The folder of a run: nobody works in it beside another run, or loses what one has left there."""

from pathlib import Path

import pytest
from small_runs import SMALL

from lpnet import rundir
from lpnet.commandline import parse
from lpnet.errors import InputError
from lpnet.rundir import LOCK, METRICS, Lock, new_folder
from lpnet.slab import Comm


def begun(folder: Path) -> str:
    """What a run in this folder finds there."""
    with new_folder(Comm(), parse([*SMALL, f"--run.dir={folder}"])) as held:
        return " ".join(sorted(path.name for path in held.iterdir()))


def test_a_run_that_comes_and_goes_before_the_lock_is_taken_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Lock):
        def __init__(self, folder: Path, key: str) -> None:
            (folder / METRICS).write_text("{}\n")
            super().__init__(folder, key)

    monkeypatch.setattr(rundir, "Lock", Late)
    with pytest.raises(InputError, match=r"run.dir: '.*run' given, which is not empty"):
        begun(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [METRICS]


def test_the_lock_is_taken_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []

    class Counted(Lock):
        def __init__(self, folder: Path, key: str) -> None:
            taken.append(key)
            super().__init__(folder, key)

    monkeypatch.setattr(rundir, "Lock", Counted)
    (tmp_path / LOCK).write_text("of a process that is gone")
    assert begun(tmp_path) == LOCK
    assert taken == ["run.dir"]
    assert not list(tmp_path.iterdir())
