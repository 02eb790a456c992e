"""Nonlinear conjugate gradients: quadratics, directions by their formulas, resumed runs, and what may go wrong."""

import copy
import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import torch
from descent import closure_of, fitting, flat, grads, network, same_state
from reference import F64, error, normal
from torch import nn

from lpnet import InputError, NonFiniteError
from lpnet.optim import Armijo, NonlinearCG, Result, Wolfe

FORMULAS = ("polak_ribiere", "fletcher_reeves")


class Exact:
    """The minimiser of a φ that is a parabola."""

    def search(self, phi: Callable[[float], float], phi0: float, slope: float, start: float = 1.0) -> Result:
        a = -slope / (2 * (phi(1.0) - phi0 - slope))
        return Result(a, phi(a), 2, True)


@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("formula", FORMULAS)
def test_a_quadratic_is_minimised_in_n_steps_by_an_exact_search(n: int, formula: Any) -> None:
    basis = torch.linalg.qr(normal(n, n)).Q
    A = basis @ torch.diag(torch.linspace(1, 5, n, dtype=F64)) @ basis.T
    x, b = nn.Parameter(normal(n, seed=1)), normal(n, seed=2)
    optimizer = NonlinearCG([x], formula=formula, search=Exact())  # type: ignore[arg-type]
    loss = lambda: 0.5 * x @ A @ x - b @ x  # noqa: E731
    for _ in range(n):
        optimizer.step(closure_of(optimizer, loss), loss)
    assert error(x.detach(), torch.linalg.solve(A, b)) < 1e-9


@pytest.mark.parametrize("formula", FORMULAS)
@pytest.mark.parametrize("search", [Wolfe(), Armijo()])
@pytest.mark.parametrize("restart", [None, 3])
def test_directions_are_those_of_the_formulas(formula: Any, search: Any, restart: int | None) -> None:
    net = network()
    theta, loss = list(net.parameters()), fitting(net)
    optimizer = NonlinearCG(theta, formula=formula, restart=restart, search=search)
    closure, betas = closure_of(optimizer, loss), []
    g = d = np.zeros(0)
    for step in range(10):
        closure()
        x, before, g = flat(theta), g, grads(theta)
        loss_before = loss().item()
        assert optimizer.step(closure, loss) == loss_before
        report = optimizer.report
        assert report is not None
        assert report.accepted
        assert loss().item() < loss_before
        beta = 0.0
        if step and not (restart and step % restart == 0):
            ratio = g @ (g - before) if formula == "polak_ribiere" else g @ g
            far = formula == "fletcher_reeves" and abs(g @ before) >= 0.2 * g @ g
            beta = 0.0 if far else max(0.0, ratio / (before @ before))
        d = -g + beta * d if beta and (-g + beta * d) @ g < 0 else -g
        if report.beta or not beta:  # else the direction has failed
            assert report.beta == pytest.approx(beta, rel=1e-9)
            np.testing.assert_allclose((flat(theta) - x) / report.step, d, rtol=1e-7, atol=1e-9)
        else:
            d = -g
        betas.append(report.beta)
    assert sum(b > 0 for b in betas) >= 2


def test_rosenbrock_takes_about_as_many_gradients_as_in_scipy() -> None:
    calls: list[int] = []
    theta = [nn.Parameter(torch.tensor([-1.2], dtype=F64)), nn.Parameter(torch.tensor(1.0, dtype=F64))]
    optimizer = NonlinearCG(theta)
    loss = lambda: 100 * (theta[1] - theta[0][0] ** 2) ** 2 + (1 - theta[0][0]) ** 2  # noqa: E731
    closure = closure_of(optimizer, loss)
    while np.abs(grads(theta)).max() > 1e-5 if calls else True:
        optimizer.step(lambda: calls.append(1) or closure())
    scipys = scipy.optimize.minimize(
        scipy.optimize.rosen, np.array([-1.2, 1.0]), jac=scipy.optimize.rosen_der, method="CG", options={"gtol": 1e-5}
    )
    np.testing.assert_allclose(flat(theta), [1, 1], atol=1e-4)
    assert len(calls) <= 2 * scipys.njev


@pytest.mark.parametrize("search", [Wolfe(), Armijo()])
def test_a_run_that_is_resumed_goes_on_as_if_it_had_not_stopped(search: Any) -> None:
    net = network()
    optimizer = NonlinearCG(net.parameters(), search=search)
    for _ in range(4):
        optimizer.step(closure_of(optimizer, fitting(net)), fitting(net))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(net)
    resumed = NonlinearCG(other.parameters(), search=search)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(3):
        for one, o in ((net, optimizer), (other, resumed)):
            o.step(closure_of(o, fitting(one)), fitting(one))
        assert optimizer.report == resumed.report
    assert (flat(net.parameters()) == flat(other.parameters())).all()
    same_state(optimizer.state_dict(), resumed.state_dict())
    for p in net.parameters():
        assert {t.shape for t in optimizer.state[p].values()} == {p.shape}


def test_steps_that_fail_leave_the_weights_as_they_were() -> None:
    net = network()
    optimizer = NonlinearCG(net.parameters(), search=Armijo(most=1, decrease=0.999))
    before = copy.deepcopy(net)
    for _ in range(2):
        optimizer.step(closure_of(optimizer, fitting(net)), fitting(net))
        assert optimizer.report is not None
        assert not optimizer.report.accepted
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before.parameters(), strict=True))


def test_not_finite() -> None:
    x = nn.Parameter(torch.ones(2))
    optimizer = NonlinearCG([x])
    with pytest.raises(NonFiniteError, match="NonlinearCG"):
        optimizer.step(closure_of(optimizer, lambda: (x * math.inf).sum()))
    assert x.tolist() == [1.0, 1.0]


def test_at_a_minimum_nothing_moves() -> None:
    x = nn.Parameter(torch.zeros(2))
    optimizer = NonlinearCG([x])
    optimizer.step(closure_of(optimizer, lambda: x.square().sum()))
    assert optimizer.report is not None
    assert (optimizer.report.accepted, x.tolist()) == (False, [0.0, 0.0])


@pytest.mark.parametrize("search", [Wolfe(), Wolfe(curvature=0.9)])
def test_wolfe_searches_serve_the_other_optimizers(search: Wolfe) -> None:
    from lpnet.optim import LBFGS

    net = network()
    optimizer, loss = LBFGS(net.parameters(), search=search), fitting(net)
    losses = [optimizer.step(closure_of(optimizer, loss)) for _ in range(8)]
    assert all(b < a for a, b in itertools.pairwise(losses))


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("lr", {"lr": 0.0}),
        ("formula", {"formula": "hestenes_stiefel"}),
        ("restart", {"restart": 0}),
        ("search", {"search": None}),
        ("search", {"search": "wolfe"}),
    ],
)
def test_bad_input(key: str, more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{key}: .* given, .* allowed$"):
        NonlinearCG([nn.Parameter(torch.ones(1))], **more)
