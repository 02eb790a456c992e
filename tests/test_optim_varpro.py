"""Variable projection: the reduced objective against its implicit function, its model against dense matrices."""

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from blocks import DECAY, LABEL, Flat, X, network, penalties
from descent import closure_of
from reference import F64, error, normal
from torch import Tensor, nn

from lpnet import MGRIT, InputError, Serial, regularizers
from lpnet.oneshot import Descent, OneShot
from lpnet.optim import LBFGS, PCG, Armijo, BlockCoordinateDescent, Problem, Reduced, VariableProjection, classifier
from lpnet.optim.head import divide
from lpnet.optim.varpro import Eliminated

TOL = 1e-12


def flat(v: object) -> Tensor:
    return torch.cat([t.detach().flatten() for t in v])  # type: ignore[attr-defined]


def test_value_and_gradient_are_those_of_the_implicit_function() -> None:
    net = network()
    slow, reduced = Flat(net), Reduced(net, penalties(net), tol=TOL)
    theta, M = slow.theta.requires_grad_(), classifier.stacked(net[2])
    F = slow(theta, slow.best(theta, M))
    (true,) = torch.autograd.grad(F, theta)
    value = reduced(X, LABEL)
    value.backward()
    assert value.item() == pytest.approx(F.item(), rel=1e-13)
    assert error(flat(p.grad for p in reduced.parameters), true) < 1e-11
    assert net[2].weight.grad is None
    assert error(classifier.stacked(net[2]), slow.best(theta, M).detach()) < 1e-9


def test_the_gradient_is_that_of_finite_differences() -> None:
    net = network()
    reduced, h = Reduced(net, penalties(net), tol=TOL), 1e-4
    reduced(X, LABEL).backward()
    v = [normal(*p.shape, seed=i) for i, p in enumerate(reduced.parameters)]
    slope = sum((p.grad * t).sum().item() for p, t in zip(reduced.parameters, v, strict=True))
    values = []
    for a in (h, -h):
        moved = copy.deepcopy(net)
        other = Reduced(moved, penalties(moved), tol=TOL)
        with torch.no_grad():
            for p, t in zip(other.parameters, v, strict=True):
                p.add_(t, alpha=a)
            values.append(other(X, LABEL).item())
    assert (values[0] - values[1]) / (2 * h) == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize("tol", [1e-2, 1e-4])
def test_the_error_of_the_gradient_is_that_of_the_classifier(tol: float) -> None:
    found = []
    for t in (tol, TOL):
        net = network()
        reduced = Reduced(net, penalties(net), tol=t)
        reduced(X, LABEL).backward()
        found.append(flat(p.grad for p in reduced.parameters))
    assert error(*found) < 30 * tol


@pytest.mark.parametrize("dense", [True, False])
def test_the_model_is_the_schur_complement(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpnet.optim.softmax.DENSE", 500 if dense else 0)
    net = network()
    slow, head = Flat(net), divide(net, penalties(net))
    problem = Problem(head.net, X, LABEL, Eliminated(head, TOL), head.penalties)
    model = problem.linearize()
    theta, M = slow.theta, classifier.stacked(net[2])
    n, whole = len(theta), slow.gauss_newton(slow.theta, classifier.stacked(net[2]))
    schur = whole[:n, :n] - whole[:n, n:] @ torch.linalg.solve(whole[n:, n:], whole[n:, :n])
    assert error(flat(model.gradient), torch.func.grad(slow)(theta, M)) < 1e-12
    assert model.value == pytest.approx(slow(theta, M).item(), rel=1e-13)
    for seed in range(3):
        v = [normal(*p.shape, seed=10 * seed + i) for i, p in enumerate(problem.theta)]
        assert error(flat(model.product(v)), schur @ flat(v)) < 1e-8
    assert torch.linalg.eigvalsh(schur)[0] > 0


def test_steps_decrease_and_end_at_the_best_classifier() -> None:
    net = network()
    slow = Flat(net)
    optimizer = VariableProjection(net, penalties(net), pcg=PCG(tol=1e-3))
    for _ in range(6):
        report = optimizer.step_on(X, LABEL)
        now, M = Flat(net), classifier.stacked(net[2])
        assert report.accepted
        assert report.after < report.before
        assert report.work == 1 + report.pcg.iterations + 0.5 * report.evaluations + 0.5
        assert report.after == pytest.approx(now(now.theta, M).item(), rel=1e-12)
        assert torch.func.grad(now, argnums=1)(now.theta, M).norm() < 1e-7
    assert slow(slow.theta, M) > 2 * report.after
    assert report.gradient_norm < 0.3


def test_the_first_direction_is_that_of_the_dense_model() -> None:
    net = network()
    slow, before = Flat(net), flat([*net[0].parameters(), *net[1].parameters()])
    M = slow.best(slow.theta, classifier.stacked(net[2]))
    whole, n = slow.gauss_newton(slow.theta, M), len(before)
    schur = whole[:n, :n] - whole[:n, n:] @ torch.linalg.solve(whole[n:, n:], whole[n:, :n])
    p = torch.linalg.solve(schur, -torch.func.grad(slow)(slow.theta, M))
    exact = PCG(iterations=200, tol=1e-13)
    report = VariableProjection(net, penalties(net), tol=TOL, pcg=exact, cap=math.inf).step_on(X, LABEL)
    moved = flat([*net[0].parameters(), *net[1].parameters()]) - before
    assert error(moved, report.step * p) < 1e-6


def test_a_step_that_fails_leaves_the_weights_and_the_classifier_at_its_best() -> None:
    net = network()
    before = flat(net[:2].parameters())
    optimizer = VariableProjection(net, penalties(net), search=Armijo(decrease=0.999999, most=2))
    report = optimizer.step_on(X, LABEL)
    now, M = Flat(net), classifier.stacked(net[2])
    assert not report.accepted
    assert torch.equal(flat(net[:2].parameters()), before)
    assert report.after == pytest.approx(report.before, rel=1e-14)
    assert torch.func.grad(now, argnums=1)(now.theta, M).norm() < 1e-7


def test_lbfgs_on_the_reduced_objective_descends_to_a_stationary_point_of_both_blocks() -> None:
    net = network()
    reduced = Reduced(net, penalties(net))
    optimizer = LBFGS(reduced.parameters, memory=20)
    of = lambda: reduced(X, LABEL)  # noqa: E731
    values = [optimizer.step(closure_of(optimizer, of), of) for _ in range(30)]
    assert all(b <= a for a, b in itertools.pairwise(values))
    of()
    now, M = Flat(net), classifier.stacked(net[2])
    of_theta, of_M = (g.norm() for g in torch.func.grad(now, argnums=(0, 1))(now.theta, M))
    assert values[-1] < 0.2 * values[0]
    assert of_theta < 0.02
    assert of_M < 1e-7


def test_simultaneous_training_takes_the_reduced_objective() -> None:
    net = network(16, forward=MGRIT(coarsening=4), adjoint=MGRIT(coarsening=4))
    reduced = Reduced(net)
    oneshot = OneShot(reduced.net, torch.optim.Adam(reduced.parameters, lr=1e-2), loss=reduced.loss)
    losses = [oneshot.step(X, LABEL).loss for _ in range(10)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("kind", [VariableProjection, BlockCoordinateDescent])
@pytest.mark.parametrize("solver", [Serial(), MGRIT(coarsening=4, cycles=1)])
def test_descent_takes_the_steps_of_the_optimizer(kind: Any, solver: Any) -> None:
    """From the second step on: block coordinate descent begins with a classifier that is not the best."""
    net = network(16, forward=solver, adjoint=solver)
    classifier.solve(net[:2](X).detach(), LABEL, net[2], (DECAY, DECAY))
    twin = copy.deepcopy(net)
    run, alone = Descent(net, kind(net, penalties(net))), kind(twin, penalties(twin))
    for _ in range(3):
        progress, report = run.step(X, LABEL), alone.step_on(X, LABEL)
        assert progress.loss == pytest.approx(report.before, rel=1e-10)
        mine = run.optimizer.report
        assert (mine.pcg.iterations, mine.evaluations) == (report.pcg.iterations, report.evaluations)
        assert mine.after == pytest.approx(report.after, rel=1e-7)
        assert mine.work == report.work - 0.5  # the adjoint is that of the evaluation
    with torch.no_grad():
        assert classifier.solve(net[:2](X), LABEL, net[2], (DECAY, DECAY)).steps == 0


def test_variable_projection_as_one_shot_update() -> None:
    """To about the objective of the exact chain."""
    found = []
    for solver in (MGRIT(coarsening=4), Serial()):
        net = network(16, forward=solver, adjoint=solver)
        method = Descent if isinstance(solver, Serial) else OneShot
        run = method(net, VariableProjection(net, penalties(net)))
        for _ in range(5):
            run.step(X, LABEL)
        slow = Flat(net)
        found.append(slow(slow.theta, classifier.stacked(net[2])).item())
    assert found[0] < 0.3
    assert found[0] < 1.5 * found[1]


def test_a_trial_step_that_is_not_finite_counts_as_no_decrease() -> None:
    net = network()
    with torch.no_grad():
        loss = Eliminated(divide(net))
        assert math.isnan(loss(torch.full((12, 3), math.inf, dtype=F64), LABEL))
        assert loss.report is None


def test_what_is_not_allowed() -> None:
    net = network()
    for words, call in {
        "net: a Identity behind the trunk given, one torch.nn.Linear allowed": lambda: Reduced(net[:2]),
        "net: a Sequential behind the trunk given": lambda: Reduced(nn.Sequential(*net, nn.Linear(3, 3))),
        "penalties: Product of the classifier given, regularizers.Quadratic allowed": lambda: Reduced(
            net, [Product(net[2].weight)]
        ),
        "tol: 2 given, a number between 0 and 1 allowed": lambda: VariableProjection(net, tol=2),
        "cap: 0 given": lambda: VariableProjection(net, cap=0),
    }.items():
        with pytest.raises(InputError, match="^" + words):
            call()


class Product:
    """Some other penalty."""

    def __init__(self, p: Tensor) -> None:
        self.parameters = (p,)

    def __call__(self) -> Tensor:
        return self.parameters[0].prod()


def test_penalties_are_divided_between_the_blocks() -> None:
    net = network()
    head = divide(net, [*penalties(net), regularizers.Quadratic(net[2].weight, 1.0)])
    assert head.decay == (1.0 + DECAY, DECAY)
    assert [type(p).__name__ for p in head.penalties] == ["Tikhonov", "Quadratic"]
    assert [id(p) for p in head.penalties[1].parameters] == [id(net[0].weight)]
