"""Plans against an exhaustive search with true errors, which knows the grid of candidates and nothing of the search."""

import copy
import itertools
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from gradients import plain_gradients
from reference import F64, KINDS, error, normal, trunk
from torch import Tensor

import lpnet
from lpnet import MGRIT, InputError, Serial, hierarchy
from lpnet.cost import UNIT, Costs, critical_path
from lpnet.measure import measure
from lpnet.plan import COARSENINGS, CYCLES, Candidate, Plan, _Search, candidates, plan
from lpnet.slab import Comm
from lpnet.steppers import Euler

CPU = Costs(fine=1.0, pull=0.4, gradient=0.4, batched=0.9, latency=0.3, message=0.1, fixed=0.2, overhead=0.5)
GPU = Costs(fine=1.0, pull=0.8, gradient=0.5, batched=0.02, latency=0.5, message=0.2, fixed=0.9)
SLOW_NETWORK = Costs(latency=20.0, message=5.0)
WIDTH = 4


class Case(NamedTuple):
    """A trunk, a batch, how many ranks, what is allowed, and what the steps cost."""

    kind: str
    layers: int
    batch: int
    ranks: int
    tol: float
    costs: Costs = UNIT
    T: float = 2.0
    rough: bool = False


CASES = [
    Case("dense", 64, 6, 8, 0.1),
    Case("dense", 64, 6, 8, 1e-3, CPU),
    Case("dense", 64, 6, 16, 1e-5, CPU),
    Case("dense", 64, 1, 32, 0.02, GPU, 5.0),
    Case("dense", 48, 8, 6, 0.02, CPU, 4.0, rough=True),
    Case("dense", 64, 8, 8, 0.1, GPU, 3.0, rough=True),
    Case("dense", 64, 6, 4, 0.1, SLOW_NETWORK),
    Case("two_layer", 40, 12, 5, 0.05, CPU),
    Case("antisymmetric", 64, 6, 8, 0.2, UNIT, 5.0),
    Case("antisymmetric", 77, 5, 7, 1e-2, CPU),
    Case("hamiltonian", 64, 6, 16, 0.05, CPU),
    Case("hamiltonian", 48, 6, 8, 1e-3, GPU),
    Case("dense", 64, 6, 1, 0.5),
    Case("dense", 3, 6, 4, 0.5),
]
each_case = pytest.mark.parametrize("case", CASES, ids=lambda c: f"{c.kind}-{c.layers}-{c.ranks}-{c.tol}")


def made(case: Case, forward: Any = None, adjoint: Any = None) -> lpnet.LayerParallel:
    """The trunk of a case with weights smooth or rough in the layer index."""
    net = trunk(case.kind, case.layers, forward or Serial(), adjoint or Serial(), T=case.T, comm=Comm())
    t = torch.linspace(0, 1, case.layers, dtype=F64)
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            shape = p.shape[1:]
            waves = [normal(*shape, seed=10 * i + k) for k in range(3)]
            smooth = [torch.ones_like(t), torch.sin(3 * t), torch.cos(3 * t)]
            p.copy_(0.4 * sum(torch.einsum("n,...->n...", s, w) for s, w in zip(smooth, waves, strict=True)))
            if case.rough:
                p.add_(normal(*p.shape, seed=10 * i + 5))
    return net


def loss_of(c: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda y: (y * c).sum()


def data(case: Case) -> tuple[Tensor, Tensor]:
    return normal(case.batch, WIDTH, seed=100), normal(case.batch, WIDTH, seed=101)


def true_error(case: Case, forward: Any, adjoint: Any, truth: Any) -> float:
    """By a new trunk with these solvers, against autograd."""
    net, (y, c) = made(case, forward, adjoint), data(case)
    leaf = y.clone().requires_grad_()
    loss_of(c)(net(leaf)).backward()
    _, y_bar, grads = truth
    a = torch.cat([p.grad.flatten() for p in net.theta.values()])
    b = torch.cat([grads[name].flatten() for name in net.theta])
    assert leaf.grad is not None
    return max(error(a, b), error(leaf.grad, y_bar))


def everything(case: Case) -> list[tuple[Any, Any]]:
    """All pairs of solvers, one after the other."""
    found: list[tuple[Any, Any]] = []
    for Q in (1, 2, 4, 8, 16, 32, 64, 128):
        if Q == 1 or (case.ranks > 1 and case.batch >= Q and 4 * case.ranks >= Q):
            found.append((Serial(Q), Serial(Q)))
    for m in COARSENINGS:
        levels, smallest = (3, min(m)) if isinstance(m, tuple) else (2, m)
        if len(hierarchy.bounds(case.layers, MGRIT(m, levels))) != levels:
            continue
        for relaxation, weights, s, (ahead, back) in itertools.product(
            ("F", "FCF"), ("mean", "inject"), {1, 2, 4, smallest}, CYCLES
        ):
            if s == 1 or (relaxation, weights) == ("F", "mean"):
                options: dict[str, Any] = {"relaxation": relaxation, "coarse_weights": weights, "samples": s}
                found.append((MGRIT(m, levels, ahead, **options), MGRIT(m, levels, back, **options)))
    return found


def best(case: Case) -> float:
    """The least time of all solvers that are good enough."""
    net, (y, c) = made(case), data(case)
    truth = plain_gradients(net, y, c)
    timed = [
        (critical_path(net.stepper, case.layers, case.ranks, f, a, case.costs).total, f, a) for f, a in everything(case)
    ]
    least = min(time for time, f, _ in timed if isinstance(f, Serial))
    for time, forward, adjoint in timed:
        if time < least and true_error(case, forward, adjoint, truth) <= 0.5 * case.tol:
            least = time
    return least


def planned(case: Case, tol: float | None = None) -> Plan:
    y, c = data(case)
    return plan(made(case), y, tol or case.tol, case.ranks, loss_of(c), case.costs)


@each_case
def test_no_slower_than_the_best_of_all_candidates(case: Case) -> None:
    """By at most a fifth; its error is the true one; and a trunk takes its options."""
    found = planned(case)
    stepper = made(case).stepper
    times = critical_path(stepper, case.layers, case.ranks, found.forward, found.adjoint, case.costs)
    assert found.predicted == pytest.approx(times.total)
    assert (found.ranks, found.costs) == (case.ranks, case.costs)
    y, c = data(case)
    truth = plain_gradients(made(case), y, c)
    true = true_error(case, found.forward, found.adjoint, truth)
    assert found.gradient_error == pytest.approx(true, rel=1e-6, abs=1e-12)
    assert true <= 0.5 * case.tol
    assert found.predicted <= 1.2 * best(case)


@pytest.mark.parametrize("case", [CASES[1], CASES[4], CASES[8]], ids=str)
def test_a_stricter_tolerance_is_kept_and_costs_no_less(case: Case) -> None:
    plans = [planned(case, tol) for tol in (0.9, 0.1, 1e-2, 1e-4, 1e-9)]
    assert all(p.gradient_error <= 0.5 * tol for p, tol in zip(plans, (0.9, 0.1, 1e-2, 1e-4, 1e-9), strict=True))
    assert all(a.predicted <= b.predicted for a, b in itertools.pairwise(plans))


class Fabricated:
    """Errors that fall with the cycles, by another factor for other options."""

    def __init__(self, seed: int) -> None:
        self.seed, self.tried = seed, Counter[MGRIT]()

    def true(self, forward: MGRIT, adjoint: MGRIT) -> float:
        draw = random.Random(f"{self.seed} {replace(forward, cycles=0)}")
        start, factor = draw.uniform(0.1, 1.0), draw.uniform(0.01, 1.0)
        return start * factor ** min(forward.cycles, adjoint.cycles)

    def error(self, forward: MGRIT, adjoint: MGRIT) -> float:
        self.tried[replace(forward, cycles=0)] += 1
        return self.true(forward, adjoint)


@pytest.mark.parametrize("allowed", [0.5, 1e-2, 1e-4, 1e-12])
@pytest.mark.parametrize("seed", range(5))
def test_the_search_finds_the_first_and_tries_hopeless_options_at_most_twice(seed: int, allowed: float) -> None:
    ordered = candidates(Euler(), 256, 8, 32, UNIT)
    errors = Fabricated(seed)
    place = _Search(errors, allowed, ordered).first()  # type: ignore[arg-type]

    def good(c: Candidate) -> bool:
        return isinstance(c.forward, Serial) or errors.true(c.forward, c.adjoint) <= allowed

    assert place == next(i for i, c in enumerate(ordered) if good(c))
    hopeful = {replace(c.forward, cycles=0) for c in ordered if isinstance(c.forward, MGRIT) and good(c)}
    assert max((n for shape, n in errors.tried.items() if shape not in hopeful), default=0) <= 2


def test_loss_and_random_cotangent() -> None:
    """A loss gives the cotangent at the candidate's own output; without one it is the same at every call."""
    case = CASES[1]
    net, (y, _) = made(case), data(case)
    plans = [plan(net, y, 1e-2, 8, costs=CPU) for _ in range(2)]
    assert plans[0] == plans[1]
    curved = plan(net, y, 1e-2, 8, lambda out: out.square().sum() + out.pow(3).sum(), CPU)
    assert 0 < curved.gradient_error != plans[0].gradient_error
    twin = made(case, curved.forward, curved.adjoint)
    grads = []
    for trunk_ in (net, twin):
        out = trunk_(y)
        (out.square().sum() + out.pow(3).sum()).backward()
        grads.append(torch.cat([p.grad.flatten() for p in trunk_.parameters()]))
    assert error(grads[1], grads[0]) <= curved.gradient_error * (1 + 1e-6)


def test_the_trunk_stays_as_it_is() -> None:
    warm = MGRIT(4, cycles=1, initial="warm")
    case = CASES[0]
    net, control = made(case, warm, warm), made(case, warm, warm)
    (y, c), draws = data(case), []
    for trunk_ in (net, control):
        loss_of(c)(trunk_(y)).backward()
    infos, grads = copy.deepcopy(net.info), [p.grad.clone() for p in net.parameters()]
    state = torch.get_rng_state()
    plan(net, y + 1.0, 0.01, 8, costs=CPU)
    assert torch.equal(torch.get_rng_state(), state)
    assert (net.forward_solver, net.adjoint_solver, net.info) == (warm, warm, infos)
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True))
    for trunk_ in (net, control):  # goes on from the same warm start
        draws.append(trunk_(y).detach())
        assert trunk_.info.forward.residuals[0] < 1e-2
    assert torch.equal(*draws)


class Dropped(torch.nn.Sequential):
    """A user's own layer, with dropout."""

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(WIDTH, WIDTH, dtype=F64), torch.nn.Dropout(0.2), torch.nn.Tanh())


def test_a_module_with_dropout_keeps_its_masks(monkeypatch: Any) -> None:
    """Those of the next call are what they would be without a plan; costs can be measured of any module."""
    monkeypatch.setattr("lpnet.calibration.SECONDS", 0.02)
    torch.manual_seed(0)
    one = Dropped()
    y, outs = normal(6, WIDTH), []
    for wanted in (True, False):
        net = lpnet.LayerParallel(one, 16, 1.0, forward=Serial(), adjoint=Serial(), dtype=F64, comm=Comm())
        torch.manual_seed(1)
        if wanted:
            found = plan(net, y, 0.3, 4)
            assert all(value >= 0 for value in (found.predicted, found.costs.fine, found.costs.pull))
        outs.append(net(y).detach())
    assert torch.equal(*outs)


@pytest.mark.parametrize("kind", KINDS)
def test_measured_costs_are_positive_seconds(kind: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("lpnet.calibration.SECONDS", 0.02)
    for layers, batch in ((1, 1), (20, 7)):
        found = measure(trunk(kind, layers, comm=Comm()), normal(batch, WIDTH))
        assert 0 < found.fine < 1
        assert 0 < found.pull < 1
        assert found.latency > 0
        assert found.message > 0


def test_description() -> None:
    """A table with the choice first and an exact chain in it."""
    for case in (CASES[1], CASES[12]):
        found = planned(case)
        lines = found.describe()
        assert len(lines) == 2 + len(found.runners_up)
        assert len({len(line) for line in lines}) == 1
        assert any("exact chain" in line for line in lines[1:])
        assert f"{found.gradient_error:.1e}" in lines[1]
        assert all(a.predicted <= b.predicted for a, b in itertools.pairwise(found.runners_up))
        assert all(c.predicted >= found.predicted for c in found.runners_up)
    case = Case("dense", 64, 6, 8, 1e-14, CPU)
    assert "exact chain" in planned(case).describe()[1]


@pytest.mark.parametrize("given", [0, 1, 2, -0.1, 1.0, float("nan"), True, "0.1", None])
def test_tolerances_outside_0_and_1_are_refused(given: Any) -> None:
    case = CASES[0]
    with pytest.raises(InputError) as caught:
        plan(made(case), data(case)[0], given, costs=UNIT)
    assert str(caught.value) == f"gradient_tol: {given!r} given, a number above 0 and below 1 allowed"


@pytest.mark.parametrize("given", [0, -1, 1.5, True])
def test_bad_plan_ranks_are_refused(given: Any) -> None:
    case = CASES[0]
    with pytest.raises(InputError, match=r"plan_ranks: .* given, a whole number of at least 1 or None allowed"):
        plan(made(case), data(case)[0], 0.1, given, costs=UNIT)


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ([[1.0]], "batch: list given, a tensor"),
        (torch.zeros(3, WIDTH + 1, dtype=F64), "input: shape"),
        (torch.zeros(3, WIDTH, dtype=torch.float32), "input: dtype"),
        (torch.zeros(0, WIDTH, dtype=F64), "batch: no examples given"),
    ],
)
def test_batches_that_the_trunk_does_not_take_are_refused(batch: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        plan(made(CASES[0]), batch, 0.1, costs=UNIT)
