"""Laws of numbers that go wrong: the first layer and its rank are named, and a training goes back and on, or stops."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from poison import poison
from resumption import Told, Trained, timeless
from small_runs import network
from test_train import metrics
from test_train import run as command
from torch import Tensor

from lpnet import launch, slab, train
from lpnet.checkpoint import file
from lpnet.checkpoint.content import Content
from lpnet.errors import NonFiniteError
from lpnet.finite import first_bad_layer
from lpnet.log import RunLog
from lpnet.network import Network
from lpnet.training import loop, trouble
from lpnet.training.course import Course
from lpnet.training.loop import fit

BAD = [math.nan, math.inf]


def spoil(tensor: Tensor | None, value: float, *at: int) -> None:
    assert tensor is not None
    with torch.no_grad():
        tensor[at] = value


# ---- where ---------------------------------------------------------------------------------------------------------


def gradients(net: Network, x: Tensor) -> None:
    net(x).square().sum().backward()


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("input", "the input is not finite"),
        ("opening.weight", "the weights of the opening layer are not finite"),
        ("trunk.K", "the weights of layer 5 (rank 0) are not finite"),
        ("classifier.bias", "the weights of the classifier are not finite"),
        ("grad opening.bias", "the gradient of the opening layer is not finite"),
        ("grad trunk.b", "the gradient of layer 5 (rank 0) is not finite, the first one on the way back"),
        ("grad classifier.weight", "the gradient of the classifier is not finite"),
        ("nothing", "every number is finite, but not the sum of their squares"),
    ],
)
def test_what_is_not_finite_is_found(part: str, said: str, value: float) -> None:
    net, data = network("--trunk.init=random")
    x = data.train_x.clone()
    gradients(net, x)
    before = [p.detach().clone() for p in net.parameters()]
    kind, _, name = part.rpartition(" ")
    if part == "input":
        spoil(x, value, 3, 1)
    elif part != "nothing":
        p = dict(net.named_parameters())[name]
        spoil(p.grad if kind else p, value, *((5,) if "trunk" in name else ()), *(0,) * (p.ndim - ("trunk" in name)))
        if "trunk" in name:  # those behind it are not the first
            spoil(p.grad if kind else p, value, 2 if kind else 7)
    assert trouble.whereabouts(net, x) == said
    if kind or part == "nothing":
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))


def test_of_several_the_first_state_is_named() -> None:
    """Finite weights: float32 overflows behind the layer whose weights are large."""
    net, data = network("--run.dtype=float32", "--trunk.activation=relu", "--trunk.dynamics=dense")
    with torch.no_grad():
        for p in (net.trunk.K, net.trunk.b):
            p[3:] = 3e38
    assert trouble.whereabouts(net, data.train_x) == "the state behind layer 3 (rank 0) is not finite"
    y = net.opening(data.train_x).detach()
    assert [first_bad_layer(net.trunk, y, part) for part in (1, 7, 1000)] == [3, 3, 3]
    with torch.no_grad():
        net.trunk.K.zero_()
        net.trunk.b.zero_()
        net.classifier.weight.fill_(3e38)
    assert first_bad_layer(net.trunk, y, 7) is None
    assert trouble.whereabouts(net, 10 * data.train_x) == "what the classifier gives is not finite"


def test_a_control_point_is_named_without_a_rank() -> None:
    net, data = network("--trunk.controls=4")
    gradients(net, data.train_x)
    spoil(net.trunk.K.grad, math.nan, 2, 0, 0)
    said = trouble.whereabouts(net, data.train_x)
    assert said == "the gradient of control point 2 is not finite, the first one on the way back"


# ---- what a training does -------------------------------------------------------------------------------------------


BACK = "--training.on_nan=rollback"
STEADY = ("--training.batch=null", "--schedule.name=constant", "--schedule.warmup=0", "--training.validate_every=null")
NAMES = ["sgd", "adam", "lbfgs", "gauss_newton", "bcd"]
FAR = (
    "--run.dtype=float32", "--trunk.activation=relu", "--trunk.dynamics=dense", "--trunk.T=20", "--trunk.layers=32",
    "--optimizer.name=sgd", "--optimizer.lr=1e6", "--optimizer.clip=1", "--training.steps=12", *STEADY,
)  # fmt: skip


def run(*arguments: str, log: Any = None) -> tuple[Network, Told, dict[str, Any]]:
    net, data = network(*arguments)
    log = log or Told()
    return net, log, fit(net, data, log)


class Halving(Told):
    """After a step the learning rate is made smaller by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int, factor: float = 0.5) -> None:
        super().__init__()
        self.after, self.factor, self.course = after, factor, Course
        made = Course.of.__func__  # type: ignore[attr-defined]

        def of(cls: Any, *arguments: Any) -> Course:
            self.course = made(cls, *arguments)
            return self.course

        monkeypatch.setattr(Course, "of", classmethod(of))

    def step(self, record: dict[str, Any]) -> None:
        super().step(record)
        if record["step"] == self.after:
            self.course.factor = self.factor


@pytest.mark.filterwarnings("ignore:lpnet")
@pytest.mark.parametrize("name", NAMES)
def test_what_is_taken_back_leaves_no_trace_but_the_smaller_step(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights and the state of the optimizer: the rest is, bit for bit, the run that never took the step."""
    given = (*STEADY, f"--optimizer.name={name}", "--optimizer.clip=null", "--training.steps=7", BACK)
    given += ("--optimizer.momentum=0.9",) if name == "sgd" else ()
    with monkeypatch.context() as patch:
        poison(patch, 5)
        net, log, record = run(*given)
    with monkeypatch.context() as patch:
        plain, twin, _ = run(*given, "--training.steps=6", log=Halving(patch, 3))
    one, other = log.records, twin.records
    assert [r["step"] for r in one] == list(range(1, 8))
    assert [r["loss"] for r in one[:4]] == [r["loss"] for r in other[:4]]
    assert [r["loss"] for r in one[4:]] == [r["loss"] for r in other[3:]]
    assert [r["lr"] / one[0]["lr"] for r in one] == [1.0] * 4 + [0.5] * 3
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), plain.parameters(), strict=True))
    assert record["rollbacks"] == 1
    (said,) = log.warnings
    assert said.startswith("step 5: the loss is nan: ")
    assert said.endswith("back to the last good weights, and on with 0.5 times the learning rate")


def test_a_schedule_does_not_know_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("--optimizer.name=adam", "--schedule.name=cosine", "--schedule.warmup=3", "--training.steps=9", BACK)
    _, plain, _ = run(*given)
    poison(monkeypatch, 4, 6)
    _, log, record = run(*given)
    factors = [1.0] * 3 + [0.5] * 2 + [0.25] * 4
    assert [r["lr"] for r in log.records] == [f * r["lr"] for f, r in zip(factors, plain.records, strict=True)]
    assert record["rollbacks"] == 2


@pytest.mark.filterwarnings("ignore:lpnet")
@pytest.mark.parametrize("answer", ["stop", "rollback"])
def test_a_step_much_too_large_ends_a_run_or_is_made_smaller(answer: str) -> None:
    """Cotangents overflow in the trunk; with a smaller step they do not."""
    given = (*FAR, f"--training.on_nan={answer}")
    if answer == "stop":
        said = r"^step \d: the .* layer \d+ \(rank 0\) is not finite.* those of step \d"
        with pytest.raises(NonFiniteError, match=said):
            run(*given)
        return
    net, log, record = run(*given)
    assert record["rollbacks"] > 0
    assert math.isfinite(record["train_loss"])
    assert all(math.isfinite(r["loss"]) for r in log.records)
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())


def test_ten_in_a_row_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The weights are then those before the first of them, and so are the states of the optimizer."""
    kept: list[list[Tensor]] = []

    class Keeping(Told):
        def step(self, record: dict[str, Any]) -> None:
            super().step(record)
            kept.append([p.detach().clone() for p in net.parameters()])

    net, data = network(*STEADY, BACK, "--training.steps=30")
    log = Keeping()
    poison(monkeypatch, *range(4, 15))
    with pytest.raises(NonFiniteError, match=r"^step 14: .*; 10 steps in a row have been taken back; the last good"):
        fit(net, data, log)
    assert len(log.warnings) == trouble.MOST == 10
    assert [r["lr"] / log.records[0]["lr"] for r in log.records[3:-1]] == [0.5**k for k in range(1, 11)]
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), kept[1], strict=True))


def test_good_steps_between_begin_the_count_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, *range(2, 10), *range(12, 20))
    assert run(*STEADY, BACK, "--training.steps=20")[2]["rollbacks"] == 16


def test_what_fails_without_an_update_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """No smaller step helps at the first weights, or where those that were good fail on another batch."""
    poison(monkeypatch, 1)
    with pytest.raises(NonFiniteError, match=r"^step 1: the loss is nan: .*; the initial weights are kept$"):
        run(BACK)
    poison(monkeypatch, 3, 3)
    with pytest.raises(NonFiniteError, match=r"^step 3: the loss is nan: "):
        run(BACK)


@pytest.mark.parametrize(("answer", "times"), [("stop", 1), ("rollback", 1), ("rollback", 2), ("rollback", 11)])
def test_the_last_update_is_looked_at_too(answer: str, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the step is done again with a smaller learning rate, as any other."""
    left, real = [math.nan] * times, loop.evaluate

    def evaluated(net: Network, data: Any) -> dict[str, Any]:
        return real(net, data) | ({"train_loss": left.pop()} if left else {})

    given = (*STEADY, f"--training.on_nan={answer}")
    plain, _, _ = run(*given, "--training.steps=5")
    net, data = network(*given)
    log = Told()
    monkeypatch.setattr(loop, "evaluate", evaluated)
    if answer == "stop" or times == 11:
        with pytest.raises(NonFiniteError, match=r"^step 6: the training loss is nan: "):
            fit(net, data, log)
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), plain.parameters(), strict=True))
        assert len(log.records) == 6
        return
    record = fit(net, data, log)
    monkeypatch.setattr(loop, "evaluate", real)
    twin, _, _ = run(*given, log=Halving(monkeypatch, 5, 0.5**times))
    assert record["train_loss"] == real(net, data)["train_loss"]
    assert [r["lr"] / log.records[0]["lr"] for r in log.records] == [1.0] * 5 + [0.5**times]
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), twin.parameters(), strict=True))
    assert record["rollbacks"] == len(log.warnings) == times


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
@pytest.mark.parametrize("stop", [3, 4])
def test_a_run_that_goes_on_takes_the_same_steps_back(
    name: str, stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The step before the checkpoint, too: weights and optimizer before it are in there."""
    given = (*STEADY, f"--optimizer.name={name}", "--training.steps=7", BACK, "--run.checkpoint_every=1000")
    poison(monkeypatch, 2, 4)
    whole = Trained(slab.Comm(), tmp_path / "whole", given)
    poison(monkeypatch, *(2, 4)[: stop - 1])
    part = Trained(slab.Comm(), tmp_path / "part", given, stop)
    poison(monkeypatch, *(4,)[: 4 - stop])
    rest = Trained(slab.Comm(), tmp_path / "part", given)
    assert [timeless(r) for r in part.log.records + rest.log.records] == [timeless(r) for r in whole.log.records]
    assert timeless(rest.record) == timeless(whole.record)
    assert all(torch.equal(a, b) for a, b in zip(rest.weights(), whole.weights(), strict=True))
    assert whole.record["rollbacks"] == 2


@pytest.mark.parametrize("name", ["adam", "lbfgs", "ncg"])
def test_an_optimizer_that_blew_up_begins_anew(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a run that was to stop a checkpoint has what the optimizer kept behind the bad update, and nothing older."""
    given = (*STEADY, f"--optimizer.name={name}", "--training.steps=7", "--run.checkpoint_every=1000")
    Trained(slab.Comm(), tmp_path / "run", given, 3)
    (path,) = (tmp_path / "run").glob("*3.h5")
    stored = file.read(path, slab.Comm())
    content = Content(dict(stored.meta), {name: stored.whole(name) for name in stored.names()})
    stored.close()
    bad = [value for key, value in content.whole.items() if key.startswith("optimizer/") and value.ndim]
    for value in (*bad, content.whole["net/classifier/weight"]):
        value.fill_(math.inf)
    file.write(path, slab.Comm(), content)
    rest = Trained(slab.Comm(), tmp_path / "run", (*given, BACK))
    assert [r["step"] for r in rest.log.records] == [4, 5, 6, 7]
    assert rest.record["rollbacks"] == len(rest.log.warnings) == 1
    assert all(bool(torch.isfinite(p).all()) for p in rest.weights())


@pytest.mark.filterwarnings("ignore:lpnet")
def test_a_run_that_has_stopped_goes_on_with_smaller_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest checkpoint is the one behind the bad update, and knows of no state of the optimizer before it."""
    monkeypatch.setattr(RunLog, "draw", lambda *_: None)
    folder, resume = tmp_path / "run", ["--resume", str(tmp_path / "run")]
    given = (*FAR, "--optimizer.lr=1e10", "--training.steps=6", "--run.checkpoint_every=1")
    assert command(folder, *given) == launch.NON_FINITE
    assert "or training.on_nan rollback, for --resume too, may help" in capsys.readouterr().err
    stopped = len(metrics(folder))
    assert train.main(resume) == launch.NON_FINITE  # as before, at the same step
    assert len(metrics(folder)) == stopped
    assert train.main([*resume, BACK]) == launch.DONE
    records = metrics(folder)
    assert [r["step"] for r in records] == list(range(1, 7))
    assert records[stopped - 1]["lr"] == records[stopped - 2]["lr"] / 2
    assert all(math.isfinite(r["loss"]) for r in records)
