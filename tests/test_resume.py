"""A training that was stopped and goes on is the one that was never stopped, bit for bit."""

import tempfile
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from resumption import Trained, dropping, timeless

from lpnet.checkpoint.store import Checkpoints
from lpnet.choices import SCHEDULES
from lpnet.optimizers import OPTIMIZERS, SEARCHING
from lpnet.slab import Comm
from lpnet.training.examples import batches

FULL = ("--training.batch=null",)
ONESHOT = (
    "--training.method=simultaneous", "--trunk.layers=32", "--solver.forward.coarsening=4",
    "--solver.adjoint.coarsening=4", "--control.gradient_tol=0.9",
)  # fmt: skip
TAU = tuple(f"--solver.{way}.initial=tau" for way in ("forward", "adjoint"))
WARM = tuple(f"--solver.{way}.initial=warm" for way in ("forward", "adjoint"))
DEEP = tuple(f"--solver.{way}.{key}" for way in ("forward", "adjoint") for key in ("levels=3", "coarsening=2"))
REMEMBERING = {*ONESHOT[:1], *TAU, *WARM}
LEVELS = ("--multilevel.levels=3", "--training.steps=9")


def warmup(schedule: str) -> str:
    return f"--schedule.warmup={0 if schedule == 'onecycle' else 2}"


def with_schedule(optimizer: str, schedule: str) -> tuple[str, ...]:
    chosen = (f"--optimizer.name={optimizer}", f"--schedule.name={schedule}", warmup(schedule))
    return chosen + (FULL if optimizer in SEARCHING else ())


CASES: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    **{f"{one} {other}": (with_schedule(one, other), (1, 4)) for one, other in zip(OPTIMIZERS, cycle(SCHEDULES))},
    "every step": ((), (1, 2, 3, 4, 5, 6)),
    "warm": (WARM + DEEP + FULL, (3,)),
    "tau with batches": (TAU, (3,)),
    "simultaneous": (ONESHOT + FULL, (2, 4)),
    "simultaneous with batches": (ONESHOT, (1, 4)),
    "simultaneous on three levels": (ONESHOT + DEEP, (4,)),
    "simultaneous with classes": ((*ONESHOT, "--oneshot.warm=class"), (3,)),
    "simultaneous in a file": ((*ONESHOT, f"--oneshot.scratch={tempfile.gettempdir()}"), (1, 3)),
    "simultaneous with bcd": ((*ONESHOT, *FULL, "--optimizer.name=bcd"), (3,)),
    "until converged": ((*ONESHOT, *FULL, "--oneshot.tol=0.5", "--training.steps=12"), (1, 2)),
    "control": (("--control.gradient_tol=0.01", "--control.every=2", "--trunk.T=10", "--optimizer.lr=0.1"), (2, 4, 5)),
    "control grid": (("--trunk.controls=4", "--trunk.basis=linear", "--optimizer.name=adamw"), (3,)),
    "levels": (LEVELS, (1, 3, 4, 6, 8)),
    "levels with tau": (LEVELS + ONESHOT, (2, 3, 7)),
    "levels with momentum": ((*LEVELS, "--optimizer.name=sgd", "--optimizer.momentum=0.9", "--trunk.layers=16"), (5,)),
    "random layers": (("--trunk.init=random", "--optimizer.clip=0.1", "--run.dtype=float32"), (3,)),
}


def compare(whole: Trained, parts: list[Trained]) -> None:
    records = [timeless(record) for part in parts for record in part.log.records]
    assert records == [timeless(record) for record in whole.log.records]
    assert timeless(parts[-1].record) == timeless(whole.record)
    assert all(torch.equal(p, q) for p, q in zip(parts[-1].weights(), whole.weights(), strict=True))
    assert [text for part in parts for text in part.log.warnings] == whole.log.warnings


def compare_files(one: Path, other: Path, remembers: bool) -> None:
    """The newest checkpoints hold the same: so would all that comes after."""
    first, second = (Checkpoints(Comm(), path, 2).newest(pytest.fail) for path in (one, other))
    assert set(first.meta["warm"]) == ({"forward", "adjoint"} if remembers else set())
    assert repr(timeless(first.meta)) == repr(timeless(second.meta))  # not a number is not equal to itself
    assert set(first.names()) == set(second.names())
    for name in first.names():
        torch.testing.assert_close(first.whole(name), second.whole(name), rtol=0, atol=0, equal_nan=True)


@pytest.mark.filterwarnings("ignore:lpnet")
@pytest.mark.parametrize("name", CASES)
def test_a_training_that_goes_on_is_the_one_that_never_stopped(name: str, tmp_path: Path) -> None:
    assert_goes_on(*CASES[name], tmp_path)


@pytest.mark.filterwarnings("ignore:lpnet")
@pytest.mark.parametrize("arguments", [(), ("--control.gradient_tol=0.01", "--control.every=2"), FULL + WARM])
def test_masks_of_dropout_go_on(arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lpnet.network._layer", dropping)
    assert_goes_on(arguments, (1, 4), tmp_path)


def assert_goes_on(arguments: tuple[str, ...], stops: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(1)
    whole = Trained(Comm(), tmp_path / "whole", arguments)
    torch.manual_seed(1)
    parts = [Trained(Comm(), tmp_path / "parts", arguments, stops[0])]
    for stop in (*stops[1:], None):
        torch.manual_seed(2)  # that of another process
        parts.append(Trained(Comm(), tmp_path / "parts", arguments, stop))
    assert all(part.stopped for part in parts[:-1])
    compare(whole, parts)
    compare_files(tmp_path / "whole", tmp_path / "parts", bool(REMEMBERING & set(arguments)))


@pytest.mark.parametrize("size", [16, 40, 41, None])
def test_batches_begin_anywhere(size: int | None) -> None:
    data: Any = type("Data", (), {"train_y": torch.zeros(40)})
    whole = batches(data, size, 3)
    for done in range(8):
        epoch, index = next(whole)
        other, found = next(batches(data, size, 3, done))
        assert (epoch, index.tolist()) == (other, found.tolist())
