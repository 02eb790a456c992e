"""Scaling studies: kinds of time never mix, solvers are text, gradients are those of autograd, models are minimal."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lpnet import MGRIT, Serial
from lpnet.cost import Costs
from lpnet.crew import Crew
from lpnet.errors import InputError
from lpnet.fabrics import FABRICS
from lpnet.scaling import model, timing, validation
from lpnet.scaling.files import read_points, write_points
from lpnet.scaling.picture import draw
from lpnet.scaling.points import Point, crossover, curve, efficiency, ratio, speedup
from lpnet.scaling.problem import Gradients, Problem, error
from lpnet.scaling.solvers import Pair, in_parts, parse
from lpnet.slab import Comm
from lpnet.virtual import VirtualComm

COSTS = Costs(fine=2.0, pull=2.5, gradient=1.5, latency=0.25, message=0.5, fixed=0.3, overhead=0.5, call=4.0, point=0.1)
SMALL = Problem(layers=24, whole=24, end=2.0, width=3, batch=5, dtype="float64")
SOLVER = Pair(MGRIT(4, cycles=1), MGRIT(4, cycles=0))


def point(seconds: float, ranks: int = 1, series: str = "auto", **changes: object) -> Point:
    """A point of a strong study."""
    common = {"study": "strong", "solver": "", "kind": "wall", "by": "processes", "layers": 64, "T": 1.0, "width": 2}
    rest = {"batch": 3, "dtype": "float32", "quartiles": (seconds, seconds), "rounds": 1}
    return Point(**{**common, **rest, "series": series, "ranks": ranks, "seconds": seconds, **changes})  # type: ignore[arg-type]


def test_two_kinds_of_time_are_in_no_ratio_and_in_no_curve() -> None:
    wall, modelled = point(1.0), point(1.0, kind="virtual")
    for act in (lambda: ratio(wall, modelled), lambda: curve([wall, modelled]), lambda: crossover([wall], [modelled])):
        with pytest.raises(InputError, match=r"kind: virtual and wall given in one \w+, one kind of time allowed"):
            act()
    assert speedup(wall, [wall, point(2.0, series="serial", kind="simulated")]) is None


@pytest.mark.parametrize("change", [{"study": "weak"}, {"width": 9}, {"layers": 9}, {"fabric": "memory"}])
def test_a_curve_is_of_one_problem(change: dict[str, object]) -> None:
    key = next(iter(change))
    with pytest.raises(InputError, match=f"{key}: .* given in one curve, one allowed"):
        curve([point(1.0), point(2.0, 2, **change)])


def test_speedup_efficiency_and_crossover() -> None:
    serial = [point(8.0, p, "serial") for p in (1, 2, 4)]
    mine = [point(t, p) for t, p in ((10.0, 1), (3.0, 2), (5.0, 4), (1.0, 8))]
    chain = [point(4.0, p, "exact") for p in (8, 4, 2, 1)]
    points = [*serial, *mine, *chain]
    assert [speedup(p, points) for p in mine] == [0.8, 8 / 3, 1.6, 8.0]
    assert [efficiency(p, points) for p in mine] == [0.8, 4 / 3, 0.4, 1.0]
    assert crossover(mine, curve(chain)) == 8
    assert crossover(mine[:3], curve(chain)) is None
    weak = [replace(p, study="weak") for p in mine]
    assert [efficiency(p, weak) for p in weak] == [1.0, 10 / 3, 2.0, 10.0]


@pytest.mark.parametrize(
    "text",
    ["exact", "auto", "best:auto", "exact=4", "coarsening=8,levels=2,cycles=0", "coarsening=8x4x2,levels=4,cycles=2+1",
     "a:b:coarsening=8,levels=2,cycles=1,relaxation=FCF,samples=2,coarse_weights=inject,micro_batches=4"],
)  # fmt: skip
def test_solvers_are_read_as_they_are_written(text: str) -> None:
    wanted = parse(text)
    assert str(wanted).endswith(f":{text.rpartition(':')[2]}")
    assert parse(str(wanted)) == wanted


@pytest.mark.parametrize(
    ("text", "key"),
    [("", "solver: ''"), ("exact=0", "micro_batches: 0"), ("exact=x", "micro_batches: x"),
     ("levels", "solver: 'levels'"), ("levels=0", "levels: 0"), ("tol=1e-3", "solver: 'tol=1e-3'"),
     ("coarsening=1", "coarsening: 1"),
     ("initial=warm", "initial: 'warm'"), (":auto", "solver: ':auto'"), ("relaxation=G", "relaxation: 'G'")],
)  # fmt: skip
def test_what_is_no_solver_is_refused(text: str, key: str) -> None:
    with pytest.raises(InputError, match=f"^{key} given.* allowed"):
        parse(text)


def test_the_network_on_few_ranks_is_the_beginning_of_that_on_many() -> None:
    few = replace(SMALL, layers=8)
    for name, value in few.weights.items():
        assert torch.equal(value, SMALL.weights[name][:8])
    assert few.T / 8 == SMALL.T / 24


def by_autograd(problem: Problem) -> Gradients:
    """By the plain network."""
    net = problem.trunk(Pair(Serial(), Serial()), Comm()).as_sequential()
    y, bar = problem.data()
    y.requires_grad_()
    net(y).backward(bar)
    found = [p.grad for p in net.parameters() if p.grad is not None]
    assert y.grad is not None
    return y.grad, [torch.stack(found[0::2]), torch.stack(found[1::2])]


def test_gradient_errors_are_against_autograd() -> None:
    inputs, weights = timing.of_trunk(SMALL.trunk(SOLVER, Comm()), *SMALL.data())()
    true = by_autograd(SMALL)
    wrong = error((inputs, weights), true)
    assert 1e-9 < wrong < 0.1
    assert model.Errors(SMALL).of(in_parts(SOLVER, 2)) == pytest.approx(wrong, rel=1e-6)
    assert error(timing.exact(SMALL), true) < 1e-13


def test_a_race_on_virtual_clocks() -> None:
    """All contestants, on any ranks: the errors do not depend on these."""
    wanted = [("auto", SOLVER), ("exact", Pair(Serial(2), Serial(2)))]

    def rank(comm: Comm) -> list[timing.Taken]:
        return timing.race(SMALL, wanted, VirtualComm(comm, "default"), 2)

    found = Crew(3).run(rank)[0]
    assert [one.series for one in found] == ["autograd", "serial", "auto", "exact"]
    assert all(len(one.seconds) == 2 and min(one.seconds) > 0 for one in found)
    assert [found[i].gradient_error < 1e-12 for i in (0, 1, 3)] == [True] * 3  # type: ignore[operator]
    assert found[2].gradient_error == pytest.approx(model.Errors(SMALL).of(SOLVER), rel=1e-9)
    assert found[2].memory_mib < found[1].memory_mib  # type: ignore[operator]


def test_best_is_the_fastest_of_those_that_are_good_enough() -> None:
    tol = 1e-3
    errors, ranks = model.errors_of(SMALL), 4
    chosen = model.best(SMALL, ranks, COSTS, tol)
    pairs = [pair for some in model.candidates(SMALL.layers) for pair in some if errors.of(pair) <= tol]
    best = min(model.Model.time(SMALL, ranks, in_parts(p, q), COSTS) for p in pairs for q in (1,))
    assert errors.of(chosen) <= tol
    assert model.Model.time(SMALL, ranks, chosen, COSTS) <= best
    chain = model.best_chain(SMALL, ranks, COSTS)
    others = [model.Model.time(SMALL, ranks, Pair(Serial(q), Serial(q)), COSTS) for q in (1, 2, 4)]
    assert model.Model.time(SMALL, ranks, chain, COSTS) == min(others)


def test_costs_of_a_model_are_measured_once_and_have_the_fabric(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(model, "measure", lambda trunk, y, ranks: asked.append(ranks) or COSTS)
    fabric = FABRICS["ethernet"]
    made = model.Model(fabric, 2)
    assert made.seconds(SMALL, 2, SOLVER) == made.seconds(SMALL, 2, SOLVER)
    assert asked == [2, 2]
    costs = made.middle(SMALL, 2)
    assert (costs.latency, costs.message) == (fabric.latency, 3 * 5 * 8 / fabric.bandwidth)
    assert made.serial(SMALL)[0] == 24 * (2.0 + 2.5 + 1.5) + 2 * 4.0


@pytest.mark.parametrize(("virtual", "simulated", "good"), [(1.14, 0.86, True), (1.16, 1.0, False), (1.0, 0.84, False)])
def test_verdict(virtual: float, simulated: float, good: bool) -> None:
    points = [point(1.0), point(virtual, kind="virtual"), point(simulated, kind="simulated"), point(9.0, 1, "serial")]
    found, said = validation.verdict(points)
    assert found == good
    assert len(said) == 3


def test_points_are_read_as_they_are_written(tmp_path: Path) -> None:
    points = [point(1.0, gradient_error=0.1), point(2.0, 2, kind="simulated")]
    write_points(tmp_path, "strong-wall-1", points)
    write_points(tmp_path / "again", "strong-wall-1", points)
    with pytest.raises(InputError, match="one of this name allowed"):
        read_points([tmp_path, tmp_path / "again"])
    assert read_points([tmp_path]) == points
    (tmp_path / "points" / "x.json").write_text('[{"kind": "wall"}]')
    with pytest.raises(InputError, match=r"point: .* given, .* allowed"):
        read_points([tmp_path])


def test_the_picture_has_a_panel_for_each_kind_of_time() -> None:
    modelled = [point(t, p, s, kind="simulated") for p, t, s in ((1, 2.0, "auto"), (4, 1.0, "auto"), (1, 1.0, "exact"),
                (4, 2.0, "exact"), (1, 1.0, "serial"))]  # fmt: skip
    figure = draw([point(1.0), point(0.5, 2), *modelled])
    labels = [[text.get_text() for text in ax.get_legend().get_texts()] for ax in figure.axes]
    assert [ax.get_ylabel().split()[0] for ax in figure.axes] == ["wall", "modelled"]
    assert not any("simulated" in label for label in labels[0])
    assert not any("wall" in label for label in labels[1])
    assert any("exact chain, best Q from P = 4" in text.get_text() for text in figure.axes[1].texts)
