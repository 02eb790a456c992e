"""The main job is stopped, killed or hindered, and goes on: what it says, what it writes, and how it ends."""

import errno
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from test_train import metrics, run

from lpnet import launch, train
from lpnet.checkpoint.content import Content
from lpnet.history import History
from lpnet.log import RunLog
from lpnet.rundir import Lock
from lpnet.slab import Comm
from lpnet.training import keeper
from lpnet.training.keeper import Keeper

pytestmark = pytest.mark.usefixtures("no_pictures", "terminal")


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunLog, "draw", lambda *_: None)


def resumed(folder: Path, *arguments: str) -> int:
    return train.main(["--resume", str(folder), *arguments])


def history(folder: Path) -> list[dict[str, Any]]:
    return [record | {"seconds": 0} for record in metrics(folder)]


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


@pytest.fixture
def at_step(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, Callable[[], None]], None]:
    """Do something when a step has been done, once."""

    def install(step: int, act: Callable[[], None]) -> None:
        real, left = RunLog.step, [step]

        def stepped(self: RunLog, record: dict[str, Any]) -> None:
            real(self, record)
            if record["step"] in left:
                left.clear()
                act()

        monkeypatch.setattr(RunLog, "step", stepped)

    return install


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    assert run(folder) == 0
    return folder


@pytest.fixture
def killed(undisturbed: Path, tmp_path: Path) -> Path:
    """The folder of the run of a process that was killed behind a checkpoint of step 4, in the midst of a line."""
    folder = tmp_path / "run"
    assert run(folder, "--run.checkpoint_every=2") == 0
    (folder / "summary.json").unlink()
    (folder / "checkpoints" / "step-00000006.h5").unlink()
    (folder / ".lock").write_text('{"host": "elsewhere", "pid": 1}')
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:4] + [lines[4][:40]]))
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_stops_a_run_behind_a_checkpoint(
    number: int, undisturbed: Path, tmp_path: Path, at_step: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    at_step(3, lambda: os.kill(os.getpid(), number))
    assert run(folder) == launch.STOPPED
    said = capsys.readouterr().err
    assert said == (
        f"lpnet.train: step 3: stopped by a signal; go on with: python -m lpnet.train --resume {folder}\n"
    )
    assert steps(folder) == ["step-00000000.h5", "step-00000003.h5"]
    assert not (folder / ".lock").exists()
    assert resumed(folder) == 0
    assert "goes on from step 3 of 6" in capsys.readouterr().out
    assert history(folder) == history(undisturbed)
    one, other = (json.loads((f / "summary.json").read_text()) for f in (undisturbed, folder))
    assert (one["resumed"], other["resumed"]) == (0, 1)
    for key in set(one) - {"resumed", "wall_s"}:
        assert one[key] == other[key]
    assert (folder / "model.h5").read_bytes()[:8] == (undisturbed / "model.h5").read_bytes()[:8]


def test_a_killed_run_loses_nothing(killed: Path, undisturbed: Path) -> None:
    assert resumed(killed, "--run.checkpoint_every=1", "--run.keep=3", "--run.progress=false") == 0
    assert history(killed) == history(undisturbed)
    assert steps(killed) == [f"step-{step:08d}.h5" for step in (4, 5, 6)]
    names = {"config.yaml", "metrics.jsonl", "summary.json", "model.h5", "checkpoints"}
    assert {path.name for path in killed.iterdir()} == names


def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    killed: Path, undisturbed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = killed / "checkpoints" / "step-00000004.h5"
    raw = bytearray(newest.read_bytes())
    raw[len(raw) // 2] ^= 1
    newest.write_bytes(raw)
    assert resumed(killed) == 2  # there is no other one
    shutil.copy(undisturbed / "checkpoints" / "step-00000000.h5", killed / "checkpoints")
    capsys.readouterr()
    with pytest.warns(UserWarning, match=r"step-00000004.h5.*; the one before is tried"):
        assert resumed(killed) == 0
    assert history(killed) == history(undisturbed)


def test_a_finished_run_is_left_alone(undisturbed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")}
    assert resumed(undisturbed) == 0
    assert capsys.readouterr().out == f"{undisturbed}: this run is finished, nothing is left to do\n"
    assert resumed(undisturbed, "--run.threads=0") == launch.BAD_INPUT  # what is given is looked at all the same
    assert {path: path.stat().st_mtime_ns for path in undisturbed.rglob("*")} == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--training.on_nan=go"], "training.on_nan: go given, one of stop, rollback allowed"),
        (["--trunk.layers=9"], "trunk.layers: 9 given with --resume, only run.device, run.threads"),
        (["--run.seed=1"], "run.seed: 1 given with --resume, only"),
        (["--run.dir=x"], "run.dir: 'x' given with --resume, only"),
        (["peaks"], "preset: 'peaks' given with --resume, only"),
        (["--config", "x.yaml"], "--config: ['x.yaml'] given with --resume, only"),
        (["--dry-run"], "--dry-run: True given with --resume, only"),
        (["--run.keep=0"], "run.keep: 0 given, a whole number of at least 1 allowed"),
        (["--run.device=gpu"], "run.device: 'gpu' given, one of auto, cpu"),
    ],
)
def test_what_would_change_the_numbers_cannot_be_given(
    arguments: list[str], said: str, killed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert resumed(killed, *arguments) == launch.BAD_INPUT
    assert capsys.readouterr().err.startswith(f"lpnet.train: error: {said}")


@pytest.mark.parametrize(
    ("folder", "said"), [("none", "no such folder"), ("a\0b", "no such folder"), ("", "''"), ("empty", "no run of")]
)
def test_folders_that_cannot_be_resumed(
    folder: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert train.main([f"--resume={folder}"]) == launch.BAD_INPUT
    assert said in capsys.readouterr().err
    assert not any((tmp_path / "empty").iterdir())


def test_other_data_are_refused(tmp_path: Path, at_step: Any, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 2)), np.arange(60) % 3
    np.savez(tmp_path / "x.npz", x=x, y=y)
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    given = ("--data.name=file", f"--data.path={tmp_path / 'x.npz'}", "--data.train=null", "--data.validation=null")
    assert run(tmp_path / "run", *given) == launch.STOPPED
    x[7, 1] += 1e-9
    np.savez(tmp_path / "x.npz", x=x, y=y)
    capsys.readouterr()
    assert resumed(tmp_path / "run") == launch.BAD_INPUT
    assert f"--resume: a run on other examples than those of '{tmp_path / 'x.npz'}'" in capsys.readouterr().err


def test_a_folder_may_have_any_name(tmp_path: Path, at_step: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """On a system whose names are bytes."""
    folder = tmp_path / os.fsdecode(b"\xff")
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run(folder) == launch.STOPPED
    assert "stopped by a signal" in capsys.readouterr().err
    assert resumed(folder) == 0
    assert resumed(folder) == 0
    assert capsys.readouterr().out.endswith("\\udcff: this run is finished, nothing is left to do\n")


def test_one_run_at_a_time_works_in_a_folder(killed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "new").mkdir()
    capsys.readouterr()
    for folder, key, start in ((tmp_path / "new", "run.dir", run), (killed, "--resume", resumed)):
        lock = Lock(folder, key)
        assert start(folder) == launch.BAD_INPUT
        said = capsys.readouterr().err
        assert said.startswith(f"lpnet.train: error: {key}: '{folder}' given, in use by process {os.getpid()} on ")
        lock.release()
        assert not (folder / ".lock").exists()
    assert run(tmp_path / "new") == 0


def test_a_disk_without_room_for_the_lock_is_no_disk_for_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    assert run(tmp_path / "run") == launch.BAD_INPUT
    said = f"lpnet.train: error: run.dir: '{tmp_path / 'run'}' given (No space left on device), a folder that can be"
    assert capsys.readouterr().err.startswith(said)
    assert list((tmp_path / "run").iterdir()) == []


def test_cold_starts_are_spoken_of(tmp_path: Path, at_step: Any, capsys: pytest.CaptureFixture[str]) -> None:
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM))
    given = ("--training.method=simultaneous", "--run.checkpoint_warm=false")
    assert run(tmp_path / "run", *given) == launch.STOPPED
    assert resumed(tmp_path / "run") == 0
    assert "warning: run.checkpoint_warm: false when the checkpoint was written" in capsys.readouterr().err
    assert [record["step"] for record in metrics(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("what", ["add", "packed"])
def test_a_full_disk_ends_a_run_whose_checkpoints_stay(
    what: str, tmp_path: Path, undisturbed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, calls = tmp_path / "run", []
    real = getattr(History, what)

    def full(self: History, *given: Any) -> Any:
        calls.append(given)
        if len(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(History, what, full)
        assert run(folder, "--run.checkpoint_every=1") == launch.UNWRITABLE
    assert f"error: '{folder / 'metrics.jsonl'}' cannot be written (No space left on device)" in capsys.readouterr().err
    assert resumed(folder) == 0
    assert history(folder) == history(undisturbed)


@pytest.mark.parametrize("resumed", [False, True])
def test_the_clock_leaves_a_hundredth_of_the_time_to_checkpoints(
    monkeypatch: pytest.MonkeyPatch, resumed: bool
) -> None:
    now = [0.0]
    monkeypatch.setattr(keeper.time, "perf_counter", lambda: now[0])

    saved: list[float] = []

    def save(*_: Any) -> None:
        now[0] += 0.2
        saved.append(now[0])

    store: Any = SimpleNamespace(comm=Comm(), save=save)
    course = SimpleNamespace(done=0, over=False)
    state: Any = SimpleNamespace(course=course, content=lambda warm: Content(), restore=save)
    stored: Any = SimpleNamespace(close=lambda: None) if resumed else None
    one = Keeper(store, keeper.Around(Content), None, True, stored)
    one.begin(state)
    while now[0] < 1000:
        now[0] += 1.0
        state.course.done += 1
        one.after(state)
    assert 0.9 < len(saved) * 0.2 / now[0] * 100 <= 1.01


def test_a_run_that_ended_before_its_first_checkpoint_begins_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "step-00000000.h5.part").write_text("half")
    (folder / "metrics.jsonl").touch()
    assert resumed(folder) == 2
    assert "or begin anew with --run.dir" in capsys.readouterr().err
    assert run(folder, "--training.steps", "2") == 0
    assert len(metrics(folder)) == 2
    assert steps(folder) == ["step-00000000.h5", "step-00000002.h5"]


@pytest.mark.parametrize("name", ["config.yaml", "notes.txt"])
def test_a_folder_with_a_file_of_the_users_is_not_empty(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    assert run(tmp_path, "--training.steps", "2") == 2
    assert (tmp_path / name).read_text() == "mine"


def test_an_empty_summary_does_not_make_a_run_finished(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert run(folder, "--training.steps", "2") == 0
    whole = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text("")
    assert resumed(folder) == 0
    assert json.loads((folder / "summary.json").read_text())["train_loss"] == whole["train_loss"]
