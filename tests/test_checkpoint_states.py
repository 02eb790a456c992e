"""A network, its optimizer and its schedule go on from a checkpoint as if nothing had been."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import on
from small_training import examples, network
from torch import Tensor, nn
from torch.optim import lr_scheduler

import lpnet
from lpnet import Controls, Serial, checkpoint
from lpnet.checkpoint import file, states
from lpnet.checkpoint.values import decoded, encoded
from lpnet.choices import SCHEDULES, Schedule
from lpnet.errors import InputError
from lpnet.optimizers import NEWTON, OPTIMIZERS
from lpnet.slab import Comm
from lpnet.training.updates import make_schedule

pytestmark = pytest.mark.filterwarnings("ignore:lpnet", "ignore:`torch.jit.script`")

X, LABEL = examples(number=30)


class Run:
    """A small training run."""

    def __init__(self, comm: Comm, name: str = "adam", schedule: str = "cosine", **more: Any) -> None:
        self.net = network(6, comm, forward=Serial(), adjoint=Serial(), **more)
        options = {"momentum": 0.9} if name in ("sgd", "rmsprop") else {}
        lr = {} if name in ("lbfgs", "ncg", *NEWTON) else {"lr": 1e-3}
        of = self.net if name in NEWTON else self.net.parameters()
        self.optimizer = OPTIMIZERS[name](of, **lr, **options)
        self.schedule = make_schedule(Schedule(schedule, warmup=0 if schedule == "onecycle" else 2), self.optimizer, 9)

    def closure(self) -> Tensor:
        self.optimizer.zero_grad()
        loss = nn.functional.cross_entropy(self.net(X), LABEL)
        loss.backward()
        return loss.detach()

    def steps(self, count: int) -> list[float]:
        """Losses before each of so many steps."""
        losses = []
        for _ in range(count):
            step = getattr(self.optimizer, "step_on", None)
            losses.append(float(self.optimizer.step(self.closure)) if step is None else step(X, LABEL).before)
            self.schedule.step()
        return losses

    @property
    def parts(self) -> tuple[Any, ...]:
        return self.net, self.optimizer, self.schedule


def gone_on(path: Path, before: int, after: int, **options: Any) -> tuple[list[float], list[float]]:
    """Losses after four steps, uninterrupted and from a checkpoint on another number of ranks."""

    def first(comm: Comm) -> list[float]:
        run = Run(comm, **options)
        run.steps(4)
        checkpoint.save(path, *run.parts, meta={"step": 4})
        return run.steps(3)

    def second(comm: Comm) -> list[float]:
        run = Run(comm, **options)
        run.steps(1)  # whatever it was before
        assert checkpoint.load(path, *run.parts) == {"step": 4}
        return run.steps(3)

    return on(before, first)[0], on(after, second)[0]


# Those that build on gauss_newton keep as little as it does, and take longer.
@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in ("bcd", "varpro")])
def test_every_optimizer_goes_on_bit_for_bit(tmp_path: Path, name: str) -> None:
    going, resumed = gone_on(tmp_path / "c.h5", 1, 1, name=name)
    assert resumed == going
    assert len(set(going)) == 3


@pytest.mark.parametrize("name", ["adam", "asgd", "lbfgs"])
@pytest.mark.parametrize("ranks", [(1, 3), (3, 2), (8, 1), (1, 8)])
def test_on_any_number_of_ranks(tmp_path: Path, name: str, ranks: tuple[int, int]) -> None:
    """Also on ranks without layers."""
    going, resumed = gone_on(tmp_path / "c.h5", *ranks, name=name)
    assert resumed == pytest.approx(going, rel=1e-9)


@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_every_schedule_goes_on(tmp_path: Path, schedule: str) -> None:
    going, resumed = gone_on(tmp_path / "c.h5", 1, 1, name="sgd", schedule=schedule)
    assert resumed == going


def test_control_points_are_whole_on_every_rank(tmp_path: Path) -> None:
    going, resumed = gone_on(tmp_path / "c.h5", 2, 3, controls=Controls(3))
    assert resumed == pytest.approx(going, rel=1e-9)


def test_what_is_kept_of_buffers_and_without_a_trunk(tmp_path: Path) -> None:
    net, other = (nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)) for _ in range(2))
    net(torch.randn(8, 2))
    checkpoint.save(tmp_path / "c.h5", net)
    assert checkpoint.load(tmp_path / "c.h5", other) == {}
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), other.state_dict().values(), strict=True))


def changed(**options: Any) -> Callable[[Comm], Any]:
    return lambda comm: Run(comm, **options).parts


@pytest.mark.parametrize(
    ("words", "other"),
    [
        ("net/0/weight is torch.float64", changed(width=5)),
        ("missing or unknown", changed(dynamics=lpnet.dynamics.TwoLayer(6))),
        ("belong to other rows", changed(controls=Controls(6, "constant"))),
        ("a Adam of other parameters", changed(name="sgd")),
        ("of other parameters", changed(name="lbfgs")),
        ("a SequentialLR of other options", changed(schedule="step")),
        ("a SequentialLR of other options", changed(schedule="onecycle")),
    ],
)
def test_other_networks_optimizers_and_schedules_are_refused(tmp_path: Path, words: str, other: Any) -> None:
    path = tmp_path / "c.h5"

    def trial(comm: Comm) -> None:
        checkpoint.save(path, *changed()(comm))
        with pytest.raises(InputError, match=words) as caught:
            checkpoint.load(path, *other(comm))
        assert str(caught.value).startswith(f"checkpoint: {str(path)!r} given (")
        assert str(caught.value).endswith(" allowed")

    on(2, trial)


def test_options_of_another_form_are_refused(tmp_path: Path) -> None:
    """Which no optimizer has, but a file may: the optimizer is left as it was."""
    net, optimizer, _ = Run(Comm()).parts
    for key, value in (("lr", "fast"), ("betas", [0.9, 0.9]), ("betas", 0.9), ("amsgrad", 1)):
        group = optimizer.param_groups[0]
        before, group[key] = group[key], value
        checkpoint.save(tmp_path / "c.h5", net, optimizer)
        group[key] = before
        with pytest.raises(InputError, match="a Adam of other options"):
            checkpoint.load(tmp_path / "c.h5", net, optimizer)
        assert group[key] == before


def test_parts_that_are_not_there_or_not_wanted(tmp_path: Path) -> None:
    net, optimizer, _ = Run(Comm()).parts
    checkpoint.save(tmp_path / "c.h5", net)
    with pytest.raises(InputError, match="it has no optimizer"):
        checkpoint.load(tmp_path / "c.h5", net, optimizer)
    checkpoint.save(tmp_path / "c.h5", net, optimizer)
    checkpoint.load(tmp_path / "c.h5", net)


@pytest.mark.parametrize("part", ["optimizer", "schedule", "user"])
def test_what_is_refused_leaves_the_network_alone(tmp_path: Path, part: str) -> None:
    run, other = Run(Comm()), Run(Comm())
    run.steps(1)
    if part == "user":
        file.write(tmp_path / "c.h5", Comm(), states.of_net(run.net))
    else:
        checkpoint.save(tmp_path / "c.h5", run.net)
    parts = {} if part == "user" else {part: getattr(other, part)}
    before = [p.detach().clone() for p in other.net.parameters()]
    with pytest.raises(InputError, match=f"it has no {part}|not written by"):
        checkpoint.load(tmp_path / "c.h5", other.net, **parts)
    assert all(torch.equal(p, q) for p, q in zip(other.net.parameters(), before, strict=True))


def test_what_one_rank_refuses_leaves_the_networks_of_all_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk fails under the rows of one rank."""
    on(3, lambda comm: checkpoint.save(tmp_path / "c.h5", *Run(comm).parts))
    real = states.for_net

    def refused(stored: file.Stored, net: nn.Module) -> Callable[[], object]:
        if checkpoint._ranks(net).rank == 1:
            raise stored.unusable("Input/output error")
        return real(stored, net)

    monkeypatch.setattr(states, "for_net", refused)

    def trial(comm: Comm) -> bool:
        run = Run(comm)
        with torch.no_grad():
            for p in run.net.parameters():
                p.zero_()
        with pytest.raises(InputError, match="Input/output error"):
            checkpoint.load(tmp_path / "c.h5", *run.parts)
        return not any(p.any() for p in run.net.parameters())

    assert on(3, trial) == [True] * 3


def test_a_schedule_that_is_refused_leaves_the_optimizer_alone(tmp_path: Path) -> None:
    run, other = Run(Comm()), Run(Comm(), schedule="step")
    run.steps(1)
    checkpoint.save(tmp_path / "c.h5", *run.parts)
    lr = other.optimizer.param_groups[0]["lr"]
    with pytest.raises(InputError, match="a SequentialLR of other options"):
        checkpoint.load(tmp_path / "c.h5", *other.parts)
    assert not other.optimizer.state
    assert other.optimizer.param_groups[0]["lr"] == lr


def test_what_cannot_be_kept(tmp_path: Path) -> None:
    run = Run(Comm())
    with pytest.raises(InputError, match=r"optimizer: a SGD of other parameters given"):
        checkpoint.save(tmp_path / "c.h5", run.net, torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1))
    run.optimizer.param_groups[0]["lr"] = object()
    with pytest.raises(InputError, match=r"optimizer: a Adam that keeps a object given"):
        checkpoint.save(tmp_path / "c.h5", run.net, run.optimizer)
    schedule = lr_scheduler.LambdaLR(torch.optim.SGD(run.net.parameters(), 0.1), lambda step: 1.0)
    schedule.extra = set()  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"schedule: a LambdaLR that keeps a set given"):
        checkpoint.save(tmp_path / "c.h5", run.net, None, schedule)
    assert not list(tmp_path.iterdir())


def test_generators_go_on(tmp_path: Path) -> None:
    net = nn.Linear(2, 2)
    torch.manual_seed(3)
    torch.rand(5)
    checkpoint.save(tmp_path / "a.h5", net)
    drawn = torch.rand(5)
    torch.manual_seed(4)
    checkpoint.load(tmp_path / "a.h5", net)
    assert torch.equal(torch.rand(5), drawn)


@pytest.mark.parametrize("meta", [[1], "text", 3, {1: 2}, {"a": [{"b": {None: 1}}]}])
def test_meta_data_that_would_not_come_back_are_refused(tmp_path: Path, meta: Any) -> None:
    with pytest.raises(InputError, match=r"^meta.* given, .*allowed$"):
        checkpoint.save(tmp_path / "a.h5", nn.Linear(2, 2), meta=meta)
    assert not list(tmp_path.iterdir())


def test_values_come_back_with_their_types() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], 0.1)
    milestones = lr_scheduler.MultiStepLR(optimizer, [3, 3, 5]).state_dict()
    for value in ((1, (2.5, None)), {1: [True, "a"], "mapping": {}}, [], milestones):
        found = decoded(encoded(value, "x"))
        assert (found, type(found)) == (value, type(value))
    assert type(decoded(encoded(milestones, "x"))["milestones"]) is type(milestones["milestones"])
