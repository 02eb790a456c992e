"""Laws of stopping and dying: signals set a flag, a killed rank takes the job with it, and so does a lost launcher."""

import json
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from jobs import started, wait_for
from small_runs import SMALL, network

from lpnet import launch, modelfile, plots, sameness, signals, train
from lpnet.checkpoint.store import FOLDER, Checkpoints
from lpnet.errors import OutputError
from lpnet.history import History
from lpnet.log import RunLog
from lpnet.slab import Comm
from lpnet.trace.record import Recording

pytestmark = pytest.mark.usefixtures("terminal")

ENDLESS = ("-m", "lpnet.train", *SMALL, "--training.steps=1000000", "--training.validate_every=null")


@pytest.mark.parametrize("number", signals.STOPPING)
def test_signals_set_a_flag_and_no_more(number: signal.Signals) -> None:
    came: list[int] = []
    before = signal.signal(number, lambda got, _: came.append(got))
    try:
        with signals.heeded():
            assert signals.wanted() == 0
            os.kill(os.getpid(), number)
            wait_for(lambda: signals.wanted() == number)
            os.kill(os.getpid(), signal.SIGTERM)  # a later one changes nothing
            assert signals.wanted() == number
        assert signals.wanted() == 0
        assert came == []
        os.kill(os.getpid(), number)
        wait_for(lambda: came == [number])
    finally:
        signal.signal(number, before)


def test_a_run_behind_nohup_does_not_hear_of_its_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with signals.heeded():
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.wanted() == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


def test_other_threads_leave_signals_alone() -> None:
    before, seen = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with signals.heeded():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_behind_them_a_process_that_ends_ignores_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [signal.getsignal(number) for number in signals.STOPPING]
    monkeypatch.setattr(signals, "_ends", False)
    signals.ends_process()
    try:
        with signals.heeded():
            pass
        assert [signal.getsignal(number) for number in signals.STOPPING] == [signal.SIG_IGN] * 3
    finally:
        for number, handler in zip(signals.STOPPING, before, strict=True):
            signal.signal(number, handler)


def test_only_the_steps_of_a_run_heed_signals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, found = signal.getsignal(signal.SIGTERM), dict[str, object]()
    for owner, name in ((train.data, "load"), (train, "build"), (train.modelfile, "save"), (RunLog, "begin")):
        real = getattr(owner, name)

        def seen(*args: object, _name: str = name, _real: Callable[..., object] = real, **more: object) -> object:
            found[_name] = signal.getsignal(signal.SIGTERM) != before
            return _real(*args, **more)

        monkeypatch.setattr(owner, name, seen)
    assert train.main([*SMALL, "--training.steps=1", f"--run.dir={tmp_path / 'run'}"]) == launch.DONE
    assert found == {"load": False, "build": False, "begin": True, "save": True}
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize("number", signals.STOPPING)
def test_a_signal_before_the_first_step_ends_the_process(tmp_path: Path, number: signal.Signals) -> None:
    """The folder is there, and takes the same run once more."""
    code = f"""
import os, sys
from lpnet import train
train.build = lambda *_: os.kill(os.getpid(), {int(number)})
sys.exit(train.main(sys.argv[1:]))
"""
    run = (*SMALL, "--training.steps=1", f"--run.dir={tmp_path / 'run'}")
    with started(0, "-c", code, *run) as job:
        assert job.end(60) == (-number, "")
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]
    assert train.main(run) == launch.DONE


@pytest.mark.parametrize("number", signals.STOPPING)
def test_a_second_signal_changes_nothing(tmp_path: Path, number: signal.Signals) -> None:
    """Also in the seconds in which the process ends."""
    metrics = tmp_path / "run" / "metrics.jsonl"
    with started(0, *ENDLESS, "--run.dir", str(tmp_path / "run")) as job:
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
        job.process.send_signal(signal.SIGTERM)
        assert job.process.stderr is not None
        while "stopped by a signal" not in job.process.stderr.readline():
            assert job.process.poll() is None
        job.process.send_signal(number)
        code, _ = job.end(30)
    assert code == launch.STOPPED


def test_one_rank_is_like_itself() -> None:
    sameness.require_same(Comm(), {"a": 1})
    sameness.require_same_start(Comm(), ["--a", "1", "--b=2"])


@pytest.mark.parametrize("late", [False, True])
def test_a_killed_rank_ends_the_job(tmp_path: Path, late: bool) -> None:
    """In the first moments, and in the midst of the steps."""
    metrics = tmp_path / "run" / "metrics.jsonl"
    with started(3, *ENDLESS, "--run.dir", str(tmp_path / "run")) as job:
        ranks = job.pids()
        if late:
            wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
        os.kill(ranks[1], signal.SIGKILL)
        code, _ = job.end(10)
    assert code != 0


def test_one_rank_that_is_asked_to_stop_stops_all(tmp_path: Path) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"
    with started(3, *ENDLESS, "--run.dir", str(tmp_path / "run")) as job:
        ranks = job.pids()
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
        os.kill(ranks[1], signal.SIGTERM)
        code, said = job.end(20)
    assert code == launch.STOPPED
    assert said.count("stopped by a signal") == 1
    lines = metrics.read_text().splitlines()
    assert (tmp_path / "run" / "checkpoints" / f"step-{len(lines):08d}.h5").exists()
    assert json.loads(lines[-1])["step"] == len(lines)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 200 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=200k", "lpnet-test", str(folder)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(command, check=False).returncode:
        pytest.skip("needs the right to mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize("every", [1, 1000000])
def test_a_full_disk_ends_the_run_and_leaves_a_checkpoint(
    small_disk: Path, every: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it is a checkpoint that does not fit, or the lines of the history."""
    run = small_disk / "run"
    arguments = [*ENDLESS[2:], "--run.dir", str(run), f"--run.checkpoint_every={every}", "--trunk.width=8"]
    assert train.main(arguments) == launch.UNWRITABLE
    *warnings, line = capsys.readouterr().err.splitlines()
    assert all(": warning: step " in warning for warning in warnings)  # of solves, in a run of so many steps
    assert "No space left on device" in line
    assert str(run) in line
    stored = Checkpoints(Comm(), run / FOLDER, 1).newest(pytest.fail)
    assert stored.meta["course"]["done"] >= 0
    stored.close()
    assert list(run.glob("**/*.part")) == []


def test_a_full_disk_leaves_neither_half_a_model_nor_half_a_trace(small_disk: Path) -> None:
    """Where HDF5 itself writes to a full disk the process may end."""
    net, _ = network("--trunk.width=32")
    for room in (0, 8, 24):
        with (small_disk / "filler").open("wb", buffering=0) as filler:
            filler.write(bytes(200 * 1024))
            filler.truncate(filler.tell() - room * 1024)
        with pytest.raises(OutputError, match=r"^'.*model.h5' cannot be written \(No space left on device\)$"):
            modelfile.save(small_disk / "model.h5", net)
        assert [path.name for path in small_disk.iterdir()] == ["filler"]
    recorded = Recording(small_disk / "trace.json", net.trunk.comm)
    recorded.begin()
    for _ in range(200):
        net(torch.zeros(1, net.examples.features, dtype=torch.float64))
    with pytest.raises(OutputError, match=r"^'.*trace.json' cannot be written \(No space left on device\)$"):
        recorded.end()
    assert [path.name for path in small_disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("length", [50, 300, 5000])
def test_a_full_disk_leaves_whole_lines_and_no_half_a_picture(small_disk: Path, length: int) -> None:
    """The line that does not fit is taken back; a second one may fit where the disk has room again."""
    filler = small_disk / "filler"
    filler.write_bytes(bytes(150 * 1024))
    history, record, written = History(small_disk / "metrics.jsonl"), json.dumps({"step": "x" * length}), [0]

    def fill() -> None:
        for _ in range(10000):
            history.add(record)
            written[0] += 1

    with pytest.raises(OSError, match="No space left on device"):
        fill()
    assert history.path.read_text() == f"{record}\n" * written[0]
    with pytest.raises(OSError, match="No space left on device"):
        plots.history([], small_disk / "history.png")
    assert {path.name for path in small_disk.iterdir()} == {"filler", "metrics.jsonl"}
    filler.unlink()
    history.add(record)
    history.close()
    assert history.path.read_text() == f"{record}\n" * (written[0] + 1)


def test_a_read_only_folder_is_refused(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert train.main([*SMALL, "--run.dir", str(small_disk / "run")]) == launch.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert "run.dir" in line
    assert "Read-only file system" in line


# Imports take time; at step 5 the last rank falls asleep, where it is asked to.
STALLING = """
import sys, time, torch._dynamo
from lpnet import train
from lpnet.log import RunLog
real = RunLog.step
def step(self, record):
    real(self, record)
    if self.comm.rank == 2 and record["step"] == 5 and sys.argv[1] == "asleep":
        time.sleep(1000)
RunLog.step = step
sys.exit(train.main(sys.argv[2:]))
"""


@pytest.mark.parametrize("how", ["asleep", "stopped"])
def test_a_stalled_job_says_where_it_is_and_ends(tmp_path: Path, how: str) -> None:
    """One rank is held up, and the others wait for it inside of MPI."""
    metrics = tmp_path / "run" / "metrics.jsonl"
    with started(3, "-c", STALLING, how, *ENDLESS[2:], "--run.stall=3", "--run.dir", str(tmp_path / "run")) as job:
        ranks = job.pids()
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
        if how == "stopped":
            os.kill(ranks[-1], signal.SIGSTOP)
        found, said = job.end(30)
    # MPICH's mpirun kills the other ranks when one aborts, and may have that for the code of the job.
    assert found in {launch.STALLED, signal.SIGKILL}
    assert said.count("no rank has made progress for 3 s") == 1
    assert said.count("] no answer for ") == (how == "stopped")
    assert said.count("time.sleep(1000)") + said.count("in step") >= (how == "asleep")
    assert said.count("in _wait") >= 1


def test_a_lost_launcher_ends_the_ranks(tmp_path: Path) -> None:
    metrics = tmp_path / "run" / "metrics.jsonl"
    with started(2, *ENDLESS, "--run.dir", str(tmp_path / "run")) as job:
        ranks = job.pids()
        wait_for(lambda: metrics.exists() and metrics.read_text().count("\n") > 3)
        for pid in set(job.all()) - set(ranks):  # mpirun, and what it has started to start the ranks
            os.kill(pid, signal.SIGKILL)
        code, _ = job.end(10)  # what the ranks say of it goes to those who are gone
    assert code == -signal.SIGKILL
