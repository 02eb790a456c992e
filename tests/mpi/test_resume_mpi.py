"""A run that goes on, on its own ranks or others, is the one that never stopped."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from resumption import Trained, dropping, timeless

from lpnet import launch, slab, train
from lpnet.checkpoint.store import Checkpoints
from lpnet.log import RunLog

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]

ADAM = ("--training.batch=16", "--trunk.layers=16", "--trunk.init=random", "--optimizer.clip=1.0")
SOLVERS = tuple(f"--solver.{way}.coarsening=2" for way in ("forward", "adjoint"))
DEEP = tuple(f"--solver.{way}.levels=3" for way in ("forward", "adjoint"))
FULL = ("--training.batch=null",)
ONESHOT = ("--training.method=simultaneous",)
TAU = tuple(f"--solver.{way}.initial=tau" for way in ("forward", "adjoint"))

CASES: dict[str, tuple[str, ...]] = {
    "tau on three levels": ADAM + SOLVERS + DEEP + FULL + TAU,
    "ranks without layers": ("--trunk.layers=2", *FULL, *TAU, "--solver.forward.coarsening=2"),
    "simultaneous with batches on three levels": ADAM + SOLVERS + DEEP + ONESHOT + ("--control.gradient_tol=0.9",),
    "levels and control": ADAM + SOLVERS + ("--multilevel.levels=2", "--control.gradient_tol=0.01"),
    "dropout": ADAM + SOLVERS + ("--control.gradient_tol=0.01",),
    "control grid and lbfgs": ADAM[1:3] + SOLVERS + FULL + ("--trunk.controls=5", "--optimizer.name=lbfgs"),
}
REMEMBERING = ("tau on three levels", "simultaneous with batches on three levels")


@pytest.fixture
def folder(comm: slab.Comm, tmp_path: Path) -> Iterator[Path]:
    """A folder that all ranks share: rank 0's."""
    yield Path(launch.share(comm, str(tmp_path)))
    comm.barrier()


def close(one: Any, other: Any) -> bool:
    """Equal to rounding, whatever it is, but for the work: chains through several ranks pull some layers twice."""
    if isinstance(one, dict):
        keys = one.keys() - {"layer_evaluations", "work"}
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in keys)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float):
        return bool(np.isclose(other, one, rtol=1e-7, atol=1e-11, equal_nan=True))
    return bool(one == other)


@pytest.mark.parametrize("name", CASES)
def test_stopping_changes_nothing_on_any_number_of_ranks(
    name: str, comm: slab.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "dropout":
        monkeypatch.setattr("lpnet.network._layer", dropping)
    torch.manual_seed(1)
    whole = Trained(comm, folder / "whole", CASES[name])
    expected = [timeless(record) for record in whole.log.records]
    torch.manual_seed(1)
    stopped = Trained(comm, folder / "parts", CASES[name], 3)
    alone: dict[int, Trained] = {}
    if comm.rank == 0:  # from many ranks to one
        (folder / "alone").mkdir()
        for path in (folder / "parts").iterdir():
            (folder / "alone" / path.name).write_bytes(path.read_bytes())
        alone[0] = Trained(slab.Comm(), folder / "alone", CASES[name], 4)
    comm.barrier()
    torch.manual_seed(2 + comm.rank)  # that of other processes
    again = Trained(comm, folder / "parts", CASES[name])
    assert bool(Checkpoints(comm, folder / "parts", 2).newest(pytest.fail).meta["warm"]) == (name in REMEMBERING)
    records = [timeless(record) for part in (stopped, again) for record in part.log.records]
    assert records == expected
    assert timeless(again.record) == timeless(whole.record)
    assert all(torch.equal(p, q) for p, q in zip(again.weights(), whole.weights(), strict=True))
    for one in alone.values():
        assert close(expected[3], timeless(one.log.records[0]))
    back = Trained(comm, folder / "alone", CASES[name])  # and from one to many
    assert close(expected[4:], [timeless(record) for record in back.log.records])
    assert close(timeless(whole.record), timeless(back.record))


def test_a_signal_to_any_rank_stops_all_of_them(
    comm: slab.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RunLog, "draw", lambda *_: None)
    real = RunLog.step

    def step(self: RunLog, record: dict[str, Any]) -> None:
        real(self, record)
        if record["step"] == 2 and comm.rank == comm.size - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    given = ["--data.train=40", "--data.validation=20", *ADAM, "--training.steps=4", "--schedule.warmup=0"]
    with monkeypatch.context() as patch:
        patch.setattr(RunLog, "step", step)
        assert train.main([*given, "--run.dir", str(folder / "run")]) == launch.STOPPED
    said = capfd.readouterr().err
    assert said.count("step 2: stopped by a signal") == (comm.rank == 0)
    comm.barrier()
    assert train.main(["--resume", str(folder / "run")]) == 0
    comm.barrier()
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert train.main(["--resume", str(folder / "run"), "--trunk.layers=3"]) == launch.BAD_INPUT
