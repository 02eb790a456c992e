"""Directions of L-BFGS against dense matrices and scipy; what it does where something goes wrong."""

import copy
import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
import torch
from descent import closure_of, fitting, flat, grads, network, same_state
from reference import F64, error, normal
from torch import Tensor, nn

from lpnet import NonFiniteError
from lpnet.optim import LBFGS, Armijo, Result


class Exact:
    """The minimiser of a φ that is a parabola."""

    def search(self, phi: Callable[[float], float], phi0: float, slope: float, start: float = 1.0) -> Result:
        a = -slope / (2 * (phi(1.0) - phi0 - slope))
        return Result(a, phi(a), 2, True)


# ---- directions ------------------------------------------------------------------------------------------------------


def dense_direction(g: np.ndarray, pairs: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """−H g, with the whole matrix H."""
    eye = np.eye(len(g))
    if not pairs:
        return -g
    s, y = pairs[-1]
    H = (s @ y) / (y @ y) * eye
    for s, y in pairs:
        V = eye - np.outer(y, s) / (s @ y)
        H = V.T @ H @ V + np.outer(s, s) / (s @ y)
    return -H @ g


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.mark.parametrize("memory", [1, 3, 100])
@pytest.mark.parametrize("problem", ["network", "rosenbrock"])
@pytest.mark.parametrize("search", [Armijo(), Armijo(factor=0.3, decrease=0.3)])
def test_directions_are_those_of_the_dense_matrix(memory: int, problem: str, search: Armijo) -> None:
    if problem == "network":
        net = network()
        theta, loss = list(net.parameters()), fitting(net)
    else:
        theta = [nn.Parameter(normal(4, seed=2)), nn.Parameter(normal(3, seed=3))]
        loss = lambda: rosenbrock(torch.cat(theta))  # noqa: E731
    optimizer = LBFGS(theta, memory=memory, search=search)
    closure, pairs = closure_of(optimizer, loss), []
    before: tuple[np.ndarray, np.ndarray] | None = None
    skipped = 0
    for _ in range(12):
        closure()
        x, g = flat(theta), grads(theta)
        if before is not None:
            s, y = x - before[0], g - before[1]
            if s @ y > 1e-8 * np.linalg.norm(s) * np.linalg.norm(y):
                pairs.append((s, y))
            else:
                skipped += 1
        before = (x, g)
        optimizer.step(closure, loss)
        report = optimizer.report
        assert report is not None
        assert report.accepted
        assert report.pairs == min(memory, len(pairs))
        d = (flat(theta) - x) / report.step
        expected = dense_direction(g, pairs[-memory:])
        assert np.linalg.norm(d - expected) <= 1e-10 * np.linalg.norm(expected)
    assert len(pairs) > 3


@pytest.mark.parametrize("n", [1, 2, 5, 9])
@pytest.mark.parametrize("condition", [1.0, 1e3])
def test_a_quadratic_is_minimised_in_n_steps_by_an_exact_search(n: int, condition: float) -> None:
    basis = torch.linalg.qr(normal(n, n)).Q
    A = basis @ torch.diag(torch.logspace(0, math.log10(condition), n, dtype=F64)) @ basis.T
    x, b = nn.Parameter(normal(n, seed=1)), normal(n, seed=2)
    optimizer = LBFGS([x], memory=n, search=Exact())  # type: ignore[arg-type]
    loss = lambda: 0.5 * x @ A @ x - b @ x  # noqa: E731
    for _ in range(n):
        optimizer.step(closure_of(optimizer, loss), loss)
    assert error(x.detach(), torch.linalg.solve(A, b)) < 1e-8 * condition**0.5


def test_the_minimum_of_a_logistic_regression_is_that_of_scipy() -> None:
    features, label = normal(60, 4), torch.sign(normal(60, seed=1))
    theta = [nn.Parameter(torch.zeros(4, dtype=F64)), nn.Parameter(torch.zeros(1, dtype=F64))]

    def of(w: Tensor, b: Tensor) -> Tensor:
        return nn.functional.softplus(-label * (features @ w + b)).mean() + 0.01 * w.square().sum()

    def for_scipy(x: np.ndarray) -> tuple[float, np.ndarray]:
        v = torch.tensor(x, requires_grad=True)
        value = of(v[:4], v[4])
        return value.item(), torch.autograd.grad(value, v)[0].numpy()

    true = scipy.optimize.minimize(
        for_scipy, np.zeros(5), jac=True, method="L-BFGS-B", options={"gtol": 1e-9, "ftol": 1e-16}
    )
    optimizer = LBFGS(theta)
    for _ in range(25):
        optimizer.step(closure_of(optimizer, lambda: of(*theta)), lambda: of(*theta))
    assert of(*theta).item() == pytest.approx(true.fun, rel=1e-12)
    np.testing.assert_allclose(flat(theta), true.x, atol=1e-6)


# ---- what may go wrong -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bend", [-1.0, 0.0])
def test_pairs_without_positive_curvature_are_skipped(bend: float) -> None:
    x = nn.Parameter(normal(3))
    optimizer = LBFGS([x], search=None, lr=0.1)
    loss = lambda: 0.5 * bend * x.square().sum() + x.sum()  # noqa: E731
    for step in range(3):
        closure_of(optimizer, loss)()
        before, g = x.detach().clone(), x.grad.clone()
        optimizer.step(closure_of(optimizer, loss))
        assert error(x.detach(), before - 0.1 * g / max(1.0, g.norm().item())) < 1e-15
        assert (optimizer.report.pairs, optimizer.report.skipped) == (0, step > 0)


def test_the_guard_is_relative_to_the_lengths() -> None:
    """s·y = |s||y| cos: a pair of any scale is kept if and only if the cosine is above the guard."""
    for scale, guard in itertools.product((1e-12, 1.0, 1e12), (0.5, 0.9)):
        x = nn.Parameter(torch.tensor([1.0, 1.0], dtype=F64))
        A = scale * torch.tensor([[1.0, 1.0], [-1.0, 1.0]], dtype=F64)  # y = A s is at 45 degrees to s, cos = 0.707
        optimizer = LBFGS([x], search=None, lr=0.1, curvature=guard)
        for _ in range(2):
            x.grad = A @ x.detach()
            optimizer.step(lambda: 0.0)
        assert optimizer.report.skipped == (guard > 0.7)


@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("value", [math.inf, math.nan, 1e3])
def test_a_search_that_fails_leaves_the_parameters_as_they_were(steps: int, value: float) -> None:
    net = network()
    with torch.no_grad():
        net[0].bias[0] = -0.0
    optimizer, loss = LBFGS(net.parameters(), search=Armijo(most=4)), fitting(net)
    closure = closure_of(optimizer, loss)
    for _ in range(steps):
        optimizer.step(closure, loss)
    bits = [p.detach().clone().view(torch.int64) for p in net.parameters()]
    optimizer.step(closure, lambda: value)
    assert all(torch.equal(p.detach().view(torch.int64), b) for p, b in zip(net.parameters(), bits, strict=True))
    report = optimizer.report
    assert (report.step, report.accepted, report.pairs) == (0.0, False, 0)
    assert report.evaluations == (8 if steps > 1 else 4)
    optimizer.step(closure, loss)  # and the next one starts anew, along −g
    assert optimizer.report.accepted
    assert optimizer.report.pairs == 0


def test_where_the_direction_fails_the_negative_gradient_is_tried() -> None:
    net = network()
    optimizer, loss = LBFGS(net.parameters(), search=Armijo(most=3)), fitting(net)
    closure = closure_of(optimizer, loss)
    for _ in range(3):
        optimizer.step(closure, loss)
    closure()
    before, g, calls = flat(net.parameters()), grads(net.parameters()), itertools.count(1)
    optimizer.step(closure, lambda: math.inf if next(calls) <= 3 else loss())
    moved, report = flat(net.parameters()) - before, optimizer.report
    assert report.accepted
    assert (report.pairs, report.evaluations >= 4) == (0, True)
    np.testing.assert_allclose(moved, -report.step * g, rtol=1e-10, atol=1e-14)
    optimizer.step(closure, loss)  # the pair of the step just taken is formed all the same
    assert optimizer.report.pairs == 1


def test_a_direction_that_does_not_descend_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    net = network()
    optimizer, loss = LBFGS(net.parameters()), fitting(net)
    closure = closure_of(optimizer, loss)
    for _ in range(3):
        optimizer.step(closure, loss)
    closure()
    before, g = flat(net.parameters()), grads(net.parameters())
    # H = −I, which rounding alone could bring about something like
    monkeypatch.setattr("lpnet.optim.lbfgs.two_loops", lambda sy, *_: (-1.0, [0.0] * len(sy), [0.0] * len(sy)))
    optimizer.step(closure, loss)
    moved = flat(net.parameters()) - before
    np.testing.assert_allclose(moved, -optimizer.report.step * g, rtol=1e-10, atol=1e-14)
    assert optimizer.report.accepted
    assert optimizer.report.pairs == 0


def test_an_exception_in_the_search_leaves_the_parameters_as_they_were() -> None:
    net = network()
    optimizer, loss = LBFGS(net.parameters()), fitting(net)
    closure = closure_of(optimizer, loss)
    for _ in range(3):
        optimizer.step(closure, loss)
    before = flat(net.parameters())

    def broken() -> float:
        raise KeyError("user")

    with pytest.raises(KeyError, match="user"):
        optimizer.step(closure, broken)
    assert (flat(net.parameters()) == before).all()
    optimizer.step(closure, loss)
    assert optimizer.report.accepted


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_is_an_error_and_changes_nothing(what: str) -> None:
    net = network()
    optimizer, loss = LBFGS(net.parameters()), fitting(net)
    closure = closure_of(optimizer, loss)
    for _ in range(3):
        optimizer.step(closure, loss)
    before, state = flat(net.parameters()), copy.deepcopy(optimizer.state_dict())

    def bad() -> float:
        value = closure().item()
        if what == "loss":
            return math.nan
        net[0].weight.grad[0, 0] = math.inf
        return value

    with pytest.raises(NonFiniteError, match=r"^LBFGS: the loss is "):
        optimizer.step(bad, loss)
    assert (flat(net.parameters()) == before).all()
    same_state(state, optimizer.state_dict())


def test_nothing_is_done_where_the_gradient_is_zero() -> None:
    x = nn.Parameter(torch.zeros(3, dtype=F64))
    optimizer = LBFGS([x, nn.Parameter(torch.ones(2))])  # the second one has no gradient at all
    for _ in range(2):
        assert optimizer.step(closure_of(optimizer, lambda: x.square().sum())) == 0.0
        assert (optimizer.report.accepted, optimizer.report.evaluations) == (False, 0)
    assert not x.any()
