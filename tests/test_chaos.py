"""A run that is killed and goes on is as one that was not; and the script that does it would notice if it were not."""

import json
import random
import signal
import subprocess
import sys

import h5py
import pytest
from scripts_folder import SCRIPTS, script

from lpnet import launch, slab


@pytest.fixture(scope="module")
def chaos():
    with script("chaos") as found:
        yield found


@pytest.mark.skipif(slab.launcher() is not None, reason="starts its ranks itself")
@pytest.mark.timeout(500)
def test_a_run_survives(tmp_path):
    """A full disk, a killed rank and a signal, after which it goes on on other ranks: as a run that nothing befell."""
    out = tmp_path / "found.json"
    size = ["--kills", "3", "--seed", "44", "--steps", "40", "--ranks", "2", "--resume-ranks", "1", "2"]
    command = [sys.executable, str(SCRIPTS / "chaos.py"), *size, "--json", str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            said, _ = process.communicate(timeout=480)
        finally:
            process.terminate()  # it ends its ranks
    assert process.returncode == 0, said
    assert [blow["faults"] for blow in json.loads(out.read_text())["blows"]] == [[]] * 3


def test_strikes_come_in_order_and_evenly(chaos):
    strikes = chaos.plan(random.Random(1), 84, 400, (1, 5))
    assert strikes == chaos.plan(random.Random(1), 84, 400, (1, 5)) != chaos.plan(random.Random(2), 84, 400, (1, 5))
    inner = [strike for strike in strikes if strike.moment != "end"]
    assert strikes[: len(inner)] == inner
    assert [strike.moment for strike in strikes].count("end") == 12
    assert [strike.kind for strike in strikes].count("rank") == 28
    assert all(strike.step % chaos.VALIDATE == chaos.VALIDATE - 1 for strike in inner if strike.moment == "evaluation")
    free = [strike.step for strike in inner if strike.moment != "evaluation"]
    assert free == sorted(free)
    assert {strike.ranks for strike in strikes} == {1, 2, 3, 4, 5}


@pytest.mark.parametrize(
    ("kind", "stepping", "code", "kept"),
    [
        ("rank", True, -signal.SIGKILL, True),
        ("rank", True, launch.FAILED, True),
        ("rank", True, launch.DONE, False),
        ("rank", True, launch.BAD_INPUT, False),
        ("all", True, launch.STOPPED, True),
        ("all", True, -signal.SIGTERM, False),
        ("all", False, -signal.SIGTERM, True),
        ("disk", True, launch.UNWRITABLE, True),
        ("disk", True, launch.FAILED, False),
    ],
)
def test_promises(chaos, kind, stepping, code, kept):
    assert (code in chaos.promised(kind, stepping, False)) == kept
    assert {launch.DONE} | ({code} if kept else set()) <= chaos.promised(kind, stepping, True)
    assert launch.NON_FINITE not in chaos.promised(kind, stepping, True)


def test_differences_are_those_of_numbers_and_nothing_else_may_differ(chaos):
    one = {"step": 1, "loss": 2.0, "seconds": 1.0, "residuals": [1.0, 0.5], "none": None}
    assert chaos.difference(one, one | {"seconds": 2.0}) == 0
    assert chaos.difference(one, one | {"residuals": [1.0, 0.5 + 1e-12]}) == pytest.approx(2e-12, rel=1e-3)
    for other in ({"step": 2}, {"loss": None}, {"residuals": [1.0]}, {"more": 1.0}):
        assert chaos.difference(one, one | other) == float("inf")


def test_a_lost_line_is_noticed(chaos, tmp_path):
    reference, disk = folder(chaos, tmp_path / "disk" / "whole", 40), chaos.Disk(tmp_path / "of-run", 1)
    try:
        args = chaos.given(["--steps", "40"])
        run = chaos.Run(args, disk, "run", chaos.Reference(reference.records(), reference, 1.0, 1.0))
        folder(chaos, run.folder.path, 40)
        assert run.compare() == 0
        run.folder.metrics.write_text("".join(line(step) for step in range(1, 41) if step != 7))
        with pytest.raises(chaos.Broken, match=r"39 lines; lost: \[7\]"):
            run.compare()
        run.folder.metrics.write_text("".join(line(step, 1.0 + (step == 7) * 1e-8) for step in range(1, 41)))
        with pytest.raises(chaos.Broken, match=r"histories differ by 1\.0e-08"):
            run.compare()
        folder(chaos, run.folder.path, 40)
        (run.folder.path / ".lock").touch()
        with pytest.raises(chaos.Broken, match=r"only: \['\.lock'\]"):
            run.compare()
    finally:
        disk.leave()


def line(step, loss=1.0):
    return json.dumps({"step": step, "loss": loss, "seconds": 0.1}) + "\n"


def folder(chaos, path, steps):
    """One that a run might have left."""
    path.mkdir(parents=True, exist_ok=True)
    found = chaos.Folder(path)
    found.metrics.write_text("".join(line(step) for step in range(1, steps + 1)))
    found.summary.write_text(json.dumps({"loss": 1.0, "wall_s": 2.0}))
    with h5py.File(path / "model.h5", "w") as file:
        file["trunk/K"] = [[1.0, 2.0]]
    return found
