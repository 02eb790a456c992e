"""Gauss–Newton steps: exact where the net is linear, what they report, and what happens where they fail."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from descent import flat
from reference import F64, normal
from test_optim_problem import LABEL, chain
from torch import Tensor, nn
from torch.nn.functional import mse_loss

import lpnet
from lpnet import MGRIT, Adaptive, InputError, NonFiniteError
from lpnet.optim import PCG, Armijo, GaussNewton, Result, VariableProjection
from lpnet.regularizers import Quadratic, Tikhonov
from lpnet.slab import Comm


class Shift(nn.Module):
    """f(y) = b, so that y_N = y_0 + h Σ b_j is linear in the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.ones(3))

    def forward(self, y: Tensor) -> Tensor:
        return self.b.expand_as(y)


SOLVE = PCG(iterations=30, tol=1e-12)


@pytest.mark.parametrize("preconditioner", ["dct", None])
def test_one_step_is_exact_for_linear_least_squares(preconditioner: Any) -> None:
    """In the classifier, and in the weights of a trunk that is linear in them."""
    x, y = normal(6, 2), normal(6, 3, seed=1)
    net = chain()
    gn = GaussNewton(net, loss=mse_loss, pcg=SOLVE, cap=math.inf, parameters=list(net[2].parameters()))
    report = gn.step_on(x, y)
    features = torch.cat([net[:2](x).detach(), torch.ones(6, 1, dtype=F64)], dim=1)
    assert report.after == pytest.approx(mse_loss(features @ torch.linalg.lstsq(features, y).solution, y).item())
    assert (report.step, report.evaluations, report.fell_back) == (1.0, 1, False)
    trunk = lpnet.LayerParallel(Shift(), 4, 2.0, forward=lpnet.Serial(), adjoint=lpnet.Serial(), dtype=F64, comm=Comm())
    decay = [Tikhonov(trunk, 0.1)]
    gn = GaussNewton(trunk, 1.0, decay, mse_loss, SOLVE, cap=math.inf, preconditioner=preconditioner)
    gn.step_on(normal(6, 3), y)
    # By symmetry all layers are equal: minimise mean (y_0 + T b − y)² + 0.05 T |b|² over b.
    b = 2 / 3 * 2.0 * (y - normal(6, 3)).mean(0) / (2 / 3 * 2.0**2 + 0.1 * 2.0)
    np.testing.assert_allclose(trunk.b.detach(), b.expand(4, 3), rtol=1e-9)
    assert gn.step_on(normal(6, 3), y).gradient_norm < 1e-10


def test_newton_converges_fast_where_all_is_fitted() -> None:
    """Without residual the Gauss–Newton model is the Hessian, so the convergence is of second order."""
    net, twin, x = chain(), chain(), normal(40, 2)
    with torch.no_grad():
        label = twin(x)
        for i, p in enumerate((net[0].weight, net[1].b)):
            p += 1e-2 * normal(*p.shape, seed=i)
    gn = GaussNewton(net, loss=mse_loss, pcg=PCG(60, 1e-8), preconditioner=None, parameters=[net[0].weight, net[1].b])
    sizes = [gn.step_on(x, label).gradient_norm for _ in range(4)]
    assert sizes[1] < 0.1 * sizes[0]
    assert sizes[2] < 1e-2 * sizes[1]
    assert sizes[3] < 1e-4 * sizes[2]


def test_training_and_its_reports() -> None:
    net, x = chain(), normal(6, 2)
    gn = GaussNewton(net, penalties=[Tikhonov(net[1], 1e-3)])
    for _ in range(6):
        problem = gn.problem(x, LABEL)
        value, gradient = problem.gradient()
        before = copy.deepcopy(net)
        report = gn.step_on(x, LABEL)
        assert report.before == pytest.approx(value, rel=1e-12)
        assert report.gradient_norm == pytest.approx(np.linalg.norm(flat(gradient)), rel=1e-10)
        assert report.after == pytest.approx(problem.value(), rel=1e-12)
        assert report.after < report.before
        assert report.work == 1 + report.pcg.iterations + 0.5 * report.evaluations
        step = flat(net.parameters()) - flat(before.parameters())
        assert np.abs(step).max() <= report.step * (1 + 1e-12)
        assert np.abs(step).max() == pytest.approx(report.step) or report.scale == 1
    assert report.after < 0.2
    assert gn.report is report


def test_in_single_precision() -> None:
    net = chain().float()
    net[1].steer(lpnet.MGRIT(coarsening=2, cycles=1), lpnet.MGRIT(coarsening=2, cycles=1), None)
    gn, x = GaussNewton(net, penalties=[Tikhonov(net[1], 1e-3)]), normal(6, 2).float()
    reports = [gn.step_on(x, LABEL) for _ in range(8)]
    assert all(r.accepted and r.after < r.before for r in reports)
    assert reports[-1].after < 0.3


def test_nothing_is_kept_from_step_to_step() -> None:
    runs = []
    for fresh in (False, True):
        net = chain()
        gn = GaussNewton(net, lr=0.5)
        for _ in range(3):
            gn = GaussNewton(net, lr=0.5) if fresh else gn
            gn.step_on(normal(6, 2), LABEL)
        runs.append(flat(net.parameters()))
        assert not gn.state_dict()["state"]
    assert (runs[0] == runs[1]).all()


def test_schedules_of_torch_change_the_step_tried_first() -> None:
    starts: list[float] = []

    class Taken:
        def search(self, phi: Callable[[float], float], phi0: float, slope: float, start: float = 1.0) -> Result:
            starts.append(start)
            return Result(start, phi(start), 1, True)

    gn = GaussNewton(chain(), lr=0.5, search=Taken())  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.ExponentialLR(gn, 0.5)
    for _ in range(3):
        gn.step_on(normal(6, 2), LABEL)
        schedule.step()
    assert starts == pytest.approx([0.5, 0.25, 0.125])


class Refusing:
    """A search that refuses so many directions, and then takes the step first tried."""

    def __init__(self, times: int) -> None:
        self.left = times

    def search(self, phi: Callable[[float], float], phi0: float, slope: float, start: float = 1.0) -> Result:
        self.left -= 1
        value = phi(start)
        return Result(0.0, phi0, 1, False) if self.left >= 0 else Result(start, value, 1, True)


def test_a_direction_that_fails_is_followed_by_the_gradient() -> None:
    net = chain()
    gn = GaussNewton(net, search=Refusing(1), preconditioner=None, cap=1e6)  # type: ignore[arg-type]
    _, g = gn.problem(normal(6, 2), LABEL).gradient()
    before = flat(net.parameters())
    report = gn.step_on(normal(6, 2), LABEL)
    np.testing.assert_allclose(flat(net.parameters()), before - flat(g), rtol=1e-9, atol=1e-12)
    assert (report.fell_back, report.accepted, report.evaluations) == (True, True, 2)


def test_a_step_that_fails_leaves_the_weights_as_they_were() -> None:
    net = chain()
    before = copy.deepcopy(net)
    report = GaussNewton(net, search=Refusing(2)).step_on(normal(6, 2), LABEL)  # type: ignore[arg-type]
    assert (report.accepted, report.step, report.after) == (False, 0.0, report.before)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before.parameters(), strict=True))


def test_not_finite() -> None:
    net = chain()
    before = copy.deepcopy(net)
    with pytest.raises(NonFiniteError, match="GaussNewton"):
        GaussNewton(net).step_on(normal(6, 2) * math.inf, LABEL)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize(
    ("key", "more"),
    [
        ("lr", {"lr": 0.0}),
        ("cap", {"cap": -1.0}),
        ("pcg", {"pcg": 20}),
        ("search", {"search": "armijo"}),
        ("preconditioner", {"preconditioner": "jacobi"}),
        ("parameters", {"parameters": []}),
    ],
)
def test_bad_input(key: str, more: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{key}: .* given, .* allowed$"):
        GaussNewton(chain(), **more)


def test_the_default_search_is_armijo_with_the_step_length() -> None:
    assert GaussNewton(chain()).search == Armijo(decrease=1e-3, most=10)


@pytest.mark.parametrize("method", [GaussNewton, VariableProjection])
def test_the_gradient_is_under_error_control(method: Any) -> None:
    """By solvers whose own gradient is wrong by more than the tolerance, which the step may not follow."""
    solver, x = MGRIT(coarsening=8, cycles=0), normal(6, 2)
    net = chain(64, T=10.0, forward=solver, adjoint=solver, control=Adaptive(0.05, every=1))
    decay = [Quadratic([net[2].weight, net[2].bias], 0.1)]
    gn = method(net, penalties=decay, search=Refusing(0), preconditioner=None, cap=1e6)
    for step in range(2):
        plain = flat(gn.problem(x, LABEL).linearize().gradient)
        before = flat(gn.theta)
        with lpnet.exact(net):
            g = flat(gn.problem(x, LABEL).gradient()[1])
        gn.search.left = 1
        report, info = gn.step_on(x, LABEL), net[1].info
        assert info.control is not None
        assert info.control.checked or info.control.exact
        assert report.fell_back
        assert np.linalg.norm(before - flat(gn.theta) - g) < 0.05 * np.linalg.norm(g)
        assert step or np.linalg.norm(plain - g) > 0.1 * np.linalg.norm(g)
        last = 0.5 * (method is VariableProjection)
        assert report.work == 0.5 + len(info.schedules) + report.pcg.iterations + 0.5 * report.evaluations + last


def test_the_solvers_of_a_step_are_those_of_its_gradient() -> None:
    net = chain()
    gn = GaussNewton(net)
    for _ in range(2):
        gn.step_on(normal(6, 2), LABEL)
        assert [s.forward for s in net[1].info.schedules] == [net[1].forward_solver]
        assert (net[1].info.is_exact, net[1].info.gradient_error) == (True, 0.0)
