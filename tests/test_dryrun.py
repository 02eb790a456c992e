"""Forecasts against what really happens on ranks that are threads: messages, slabs, levels, and the lines."""

from collections import Counter
from typing import Any

import pytest
import torch
from counting import CountingComm
from small_runs import SMALL

from lpnet import MGRIT, InputError, LayerParallel, Serial, cost, data, dynamics, steppers, train
from lpnet.commandline import parse
from lpnet.cost import Costs
from lpnet.crew import Crew
from lpnet.dryrun import Rest, Subject, Walk, forecast
from lpnet.fabrics import FABRICS
from lpnet.network import Examples, build
from lpnet.sharded import grad_norm
from lpnet.slab import Comm
from lpnet.training.course import Course
from lpnet.training.examples import Tensors
from lpnet.training.objective import Objective, descent_of

RANKS = (1, 2, 3, 5)
COSTS = Costs(1e-3, 1e-3, 1e-3)
CONTROLLED = (
    "--control.gradient_tol=0.9", "--control.plan_ranks=12", "--trunk.layers=96", "--solver.forward.coarsening=8",
    "--solver.adjoint.coarsening=8", "--solver.forward.cycles=0", "--solver.adjoint.cycles=0",
)  # fmt: skip


def observed(made: Any, ranks: int, steps: int = 2) -> list[tuple[Counter[str], Counter[str]]]:
    """What each rank has sent in the last of some steps; `made` gives a rank's step."""
    def rank(inside: Comm) -> tuple[Counter[str], Counter[str]]:
        comm = CountingComm(inside)
        step = made(comm)
        for _ in range(steps):
            comm.barrier()
            comm.reset()
            step()
        return comm.count, comm.bytes

    return Crew(ranks).run(rank)


def grouped(counter: Counter[str]) -> Counter[str]:
    """All messages to single ranks together."""
    found: Counter[str] = Counter()
    for kind, n in counter.items():
        found[kind if kind in ("broadcast", "sum") else "send"] += n
    return found


def mgrit(**options: Any) -> MGRIT:
    return MGRIT(**{"coarsening": 3, "levels": 2, "cycles": 1, **options})


TRUNKS: list[tuple[Any, Any, int, Any, Any]] = [
    (dynamics.Dense, steppers.Euler(), 20, mgrit(), mgrit()),
    (dynamics.Dense, steppers.Euler(), 23, mgrit(coarsening=(3, 2), levels=3, cycles=2), mgrit(coarsening=5, cycles=0)),
    (dynamics.TwoLayer, steppers.Euler(), 17, mgrit(relaxation="FCF", initial="warm"), mgrit(initial="tau", levels=3)),
    (dynamics.Dense, steppers.Euler(), 7, mgrit(initial="constant", samples=3, tol=1e-30), mgrit(cycle_shape="F")),
    (dynamics.Hamiltonian, steppers.Verlet(), 14, mgrit(coarsening=2, levels=4), Serial(3)),
    (dynamics.Dense, steppers.AB3(), 13, Serial(4), mgrit(coarsening=4)),
    (dynamics.Dense, steppers.RK4(), 4, Serial(), Serial(5)),
    (dynamics.Dense, steppers.Euler(), 21, mgrit(micro_batches=3), mgrit(levels=3, micro_batches=2, initial="tau")),
]


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("case", TRUNKS, ids=lambda case: f"{type(case[1]).__name__}-{case[2]}")
def test_messages_of_the_trunk_are_those_of_the_engine(case: Any, ranks: int) -> None:
    module, stepper, layers, forward, adjoint = case
    x = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))

    def made(comm: Any) -> Any:
        trunk = LayerParallel(module(3), layers, 1.0, stepper, forward, adjoint, comm=comm)
        return lambda: trunk(x).square().sum().backward()

    alone = LayerParallel(module(3), layers, 1.0, stepper, forward, adjoint, comm=Comm())
    subject = Subject.of(alone, x.shape)
    for rank, (count, size) in enumerate(observed(made, ranks)):
        ledger = Walk(subject, ranks, rank).ledger
        assert (grouped(ledger.sent), grouped(ledger.bytes)) == (count, size)


@pytest.mark.parametrize("ranks", RANKS)
@pytest.mark.parametrize("arguments", [(), ("--trunk.controls=4",), CONTROLLED], ids=["plain", "controls", "control"])
def test_messages_of_a_step_are_those_of_training(arguments: tuple[str, ...], ranks: int) -> None:
    config = parse([*SMALL, *arguments])
    dataset = data.load(config.data, config.run.seed)

    def made(comm: Any) -> Any:
        net = build(config, Examples(dataset.features, dataset.classes), comm)
        tensors = Tensors.of(dataset, net.classifier.weight)
        course = Course.of(net, tensors)
        descent = descent_of(net, course.optimizer, Objective(net, course.optimizer), 40)

        def step() -> None:
            descent.evaluate(tensors.train_x[:16], tensors.train_y[:16])
            grad_norm(net.parameters())
            descent.update()

        return step

    predicted = forecast(config, dataset, ranks, costs=COSTS, outside_trunk=Rest()).messages
    for messages, (count, size) in zip(predicted, observed(made, ranks), strict=True):
        assert grouped(Counter(messages.counts)) == count
        assert grouped(Counter(messages.bytes)) == size


# ---- what it says --------------------------------------------------------------------------------------------------


def predicted(*arguments: str, ranks: int = 4, fabric: str = "default", costs: Costs = COSTS) -> Any:
    config = parse([*SMALL, *arguments])
    return forecast(config, data.load(config.data, config.run.seed), ranks, fabric, costs, Rest())


def test_levels_and_slabs_are_those_of_the_solver() -> None:
    found = predicted("--trunk.layers=50", "--solver.forward.levels=3")
    assert found.slabs == (12, 12, 12, 14)
    assert [(level.steps, level.coarsening, level.busy) for level in found.levels[0]] == [
        (50, 3, 4), (17, 3, 4), (6, None, 4)
    ]  # fmt: skip
    assert [level.steps for level in found.levels[1]] == [50, 17]
    assert len(found.footprints) == len(found.messages) == 4


@pytest.mark.parametrize("fabric", ["none", "ethernet"])
def test_times_are_those_of_the_cost_model(fabric: str) -> None:
    found = predicted("--trunk.layers=96", ranks=6, fabric=fabric)
    one, net = found.subject, FABRICS[fabric]
    costs = Costs(1e-3, 1e-3, 1e-3, latency=net.latency, message=one.state / net.bandwidth)
    assert [point.ranks for point in found.points][:5] == [1, 2, 4, 6, 8]
    for point in found.points:
        path = cost.critical_path(one.stepper, 96, point.ranks, one.forward, one.adjoint, costs)
        assert point.solves == pytest.approx(path.total)
        assert point.serial == pytest.approx(96 * 3e-3)
        assert point.efficiency == pytest.approx(point.serial / point.step / point.ranks)
    assert found.here.ranks == 6


def test_slow_messages_are_a_reason_for_fewer_ranks() -> None:
    """The number of ranks beyond which more does not help is where the curve is flat."""
    fast, slow = (predicted("--trunk.layers=96", fabric=f, costs=Costs(1e-5, 1e-5, 1e-5)) for f in ("none", "ethernet"))
    assert slow.enough < fast.enough
    for found in (fast, slow):
        least = min(point.step for point in found.points)
        steps = {point.ranks: point.step for point in found.points}
        assert steps[found.enough] <= least / 0.95
        assert all(step > least / 0.95 for ranks, step in steps.items() if ranks < found.enough)


def test_memory_of_a_rank_falls_with_the_ranks() -> None:
    found = predicted("--trunk.layers=96")
    sizes = {point.ranks: point.memory for point in found.points}
    assert sizes[1] > 1.5 * sizes[2] > 2 * sizes[4]
    assert found.here.memory == pytest.approx(max(f.total for f in found.footprints), rel=0.1)


def test_multilevel_has_a_forecast_of_each_level() -> None:
    found = predicted("--trunk.layers=48", "--multilevel.levels=3")
    assert [coarse.subject.layers for coarse in found.coarser] == [12, 24]
    assert found.steps + sum(coarse.steps for coarse in found.coarser) == 6
    assert sum("a step (modelled)" in line for line in found.lines()) == 2


@pytest.mark.parametrize("ranks", [0, 5000, True, 2.0])
def test_bad_ranks_are_refused(ranks: Any) -> None:
    with pytest.raises(InputError, match=r"ranks: .* given, a whole number from 1 to 4096 allowed"):
        predicted(ranks=ranks)


def test_bad_fabrics_are_refused() -> None:
    with pytest.raises(InputError, match=r"fabric: 'string' given, one of default, .* allowed"):
        predicted(fabric="string")


# ---- the command ---------------------------------------------------------------------------------------------------

SIMULTANEOUS = ("--training.method=simultaneous", "--optimizer.name=lbfgs", "--schedule.name=constant")


@pytest.mark.parametrize("more", [(), SIMULTANEOUS, ("--solver.auto=true",)], ids=["peaks", "simultaneous", "auto"])
def test_the_command_says_what_a_run_would_take_and_writes_nothing(
    more: tuple[str, ...], tmp_path: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert train.main([*SMALL, "--dry-run", "--ranks=3", "--fabric=infiniband", "--run.dir=somewhere", *more]) == 0
    said = capsys.readouterr()
    for word in ("slabs", "level 0", "MiB on rank", "messages", "modelled", "infiniband", "more than", "3 ranks"):
        assert word in said.out
    assert all(len(line) <= 160 for line in said.out.splitlines())
    assert not list(tmp_path.iterdir())


WRONG = {
    "--ranks: '3' given without --dry-run, only with it allowed": ["--ranks=3"],
    "--fabric: 'none' given without --dry-run, only with it allowed": ["--fabric=none"],
    "--ranks: 'x' given, a whole number allowed": ["--dry-run", "--ranks=x"],
    "--ranks: 0 given, a whole number from 1 to 4096 allowed": ["--dry-run", "--ranks=0"],
    "--fabric: 'x' given, one of default, memory, infiniband, ethernet, none allowed": ["--dry-run", "--fabric=x"],
}


@pytest.mark.parametrize("message", WRONG)
def test_what_the_command_refuses(message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, *WRONG[message]]) == 2
    assert capsys.readouterr().err == f"lpnet.train: error: {message}\n"


def test_the_device_may_be_left_to_the_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, "--dry-run", "--run.device=auto"]) == 0
    assert "nothing is trained" in capsys.readouterr().out
