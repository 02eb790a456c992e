"""Regularisers against their sums written out, with gradients by autograd."""

import math
from typing import Any

import pytest
import torch
from counting import Living
from gradients import data
from reference import F64, KINDS, error, normal, twin
from splines import DEGREES, energy, matrix
from torch import Tensor, nn

import lpnet
from lpnet import Controls, InputError
from lpnet.regularizers import Quadratic, Tikhonov, TimeDerivative
from lpnet.slab import Comm

BOTH = pytest.mark.parametrize("one", [Tikhonov, TimeDerivative])


def slow(one: Any, alpha: float, h: float, theta: dict[str, Tensor]) -> Tensor:
    """½ α h Σ |θ_j|², or ½ α h Σ |(θ_{j+1} − θ_j)/h|²."""
    total = torch.zeros((), dtype=F64)
    for stack in theta.values():
        for j in range(len(stack)):
            if one is Tikhonov:
                total = total + 0.5 * alpha * h * (stack[j] ** 2).sum()
            elif j + 1 < len(stack):
                total = total + 0.5 * alpha * h * (((stack[j + 1] - stack[j]) / h) ** 2).sum()
    return total


class Scalar(nn.Module):
    """A layer with a weight that is a number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.K = nn.Parameter(torch.tensor(0.5)), nn.Parameter(torch.eye(4))

    def forward(self, y: Tensor) -> Tensor:
        return self.scale * torch.tanh(y @ self.K.T)


def made(kind: str, N: int) -> lpnet.LayerParallel:
    if kind != "user":
        return twin(kind, N)
    trunk = lpnet.LayerParallel(Scalar(), N, 3.0, dtype=F64, comm=Comm())
    trunk.load_state_dict({n: normal(*p.shape, seed=i) for i, (n, p) in enumerate(trunk.named_parameters())})
    return trunk


@BOTH
@pytest.mark.parametrize("kind", [*KINDS, "user"])
@pytest.mark.parametrize("N", [1, 2, 11])
def test_value_and_gradient(one: Any, kind: str, N: int) -> None:
    trunk = made(kind, N)
    leaves = {n: p.detach().clone().requires_grad_() for n, p in trunk.theta.items()}
    expected = slow(one, 0.3, 3.0 / N, leaves)
    found = one(trunk, 0.3)()
    assert found.ndim == 0
    assert found.dtype == F64
    assert found.item() == pytest.approx(expected.item(), rel=1e-13, abs=1e-15)
    (2.5 * found).backward()
    bars = (
        torch.autograd.grad(2.5 * expected, list(leaves.values()), materialize_grads=True, allow_unused=True)
        if (expected.requires_grad)
        else [torch.zeros_like(t) for t in leaves.values()]
    )
    for (name, p), bar in zip(trunk.theta.items(), bars, strict=True):
        assert p.grad is not None
        assert error(p.grad, bar) < 1e-13, name


def products(penalty: Any, slow_value: Any, theta: list[Tensor]) -> None:
    """Value, gradient and Hessian products against a slow form and its double backward."""
    leaves = [p.detach().clone().requires_grad_() for p in theta]
    v = [normal(*p.shape, seed=50 + i) for i, p in enumerate(theta)]
    expected = slow_value(leaves)
    assert penalty().item() == pytest.approx(expected.item(), rel=1e-12)
    bars = torch.autograd.grad(expected, leaves, create_graph=True)
    second = torch.autograd.grad(sum((b * u).sum() for b, u in zip(bars, v, strict=True)), leaves)
    found = torch.autograd.grad(penalty(), list(penalty.parameters))
    assert len(penalty.parameters) == len(theta)
    for p, q, bar, Hv, true in zip(penalty.parameters, found, bars, penalty.hessian(v), second, strict=True):
        assert p.shape == Hv.shape
        assert not Hv.requires_grad
        assert error(q, bar) < 1e-12
        assert error(Hv, true) < 1e-12


@BOTH
def test_hessian_products_are_those_of_double_backward(one: Any) -> None:
    trunk = made("two_layer", 7)
    names = list(trunk.theta)
    products(
        one(trunk, 0.3), lambda t: slow(one, 0.3, 3.0 / 7, dict(zip(names, t, strict=True))), list(trunk.parameters())
    )


@BOTH
@pytest.mark.parametrize("basis", DEGREES)
@pytest.mark.parametrize("points", [2, 3, 4, 6, 11])
def test_on_a_control_grid_they_are_the_forms_of_its_basis(one: Any, basis: str, points: int) -> None:
    """h B^T B, and the integral of the derivatives by quadrature."""
    trunk = twin("dense", 11, controls=Controls(points, basis))
    B = matrix(basis, points, 11)
    Q = 3.0 / 11 * B.T @ B if one is Tikhonov else energy(basis, points, 3.0)

    def value(theta: list[Tensor]) -> Tensor:
        return sum(0.15 * torch.einsum("cd,c...,d...->", Q, t, t) for t in theta)

    products(one(trunk, 0.3), value, list(trunk.theta.values()))


def test_linear_controls_have_the_sum_of_their_differences() -> None:
    trunk = twin("dense", 11, controls=Controls(5, "linear"))
    total = sum(float(p.detach().diff(dim=0).square().sum()) for p in trunk.parameters())
    assert TimeDerivative(trunk, 0.3)().item() == pytest.approx(0.15 * total / (3.0 / 4), rel=1e-13)
    assert trunk.grid.spacing == 3.0 / 4


def test_weights_of_the_classifier() -> None:
    linear = nn.Linear(4, 3, dtype=F64)
    penalty = Quadratic(linear.parameters(), 0.3)
    products(penalty, lambda t: sum(0.15 * (p**2).sum() for p in t), list(linear.parameters()))
    assert Quadratic(linear.weight, 1.0).parameters == (linear.weight,)
    with pytest.raises(InputError, match=r"^parameters: .* given, .* allowed"):
        Quadratic(twin("dense", 3).parameters(), 1.0)
    with pytest.raises(InputError, match=r"^weight: -1 given, .* allowed$"):
        Quadratic(linear.weight, -1)


@BOTH
def test_added_to_a_loss_the_gradients_add_up(one: Any) -> None:
    y, c = data()
    parts = []
    for terms in ((1, 0), (0, 1), (1, 1)):
        trunk = twin("dense", 9)
        penalty = one(trunk, 0.7)
        (terms[0] * (trunk(y) * c).sum() + terms[1] * penalty()).backward()
        parts.append([p.grad for p in trunk.parameters()])
    for a, b, both in zip(*parts, strict=True):
        assert error(both, a + b) < 1e-14


@BOTH
def test_it_follows_the_weights(one: Any) -> None:
    trunk = twin("dense", 9)
    penalty = one(trunk, 0.7)
    before = penalty().item()
    with torch.no_grad():
        for p in trunk.parameters():
            p.mul_(2.0)
    assert penalty().item() == pytest.approx(4 * before, rel=1e-13)
    assert one(trunk, 0)().item() == 0


def test_time_derivative_vanishes_for_constant_weights_only() -> None:
    trunk = lpnet.LayerParallel(lpnet.dynamics.Dense(4), 9, 1.0, dtype=F64, comm=Comm())
    assert TimeDerivative(trunk, 1.0)().item() == 0
    assert Tikhonov(trunk, 1.0)().item() > 0


@BOTH
def test_float32_weights_are_summed_in_float64(one: Any) -> None:
    trunk = twin("dense", 9)
    exact = one(trunk, 0.7)().item()
    found = one(trunk.float(), 0.7)()
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(exact, rel=1e-6)


@BOTH
@pytest.mark.parametrize("dtype", [F64, torch.float32])
@pytest.mark.parametrize("controls", [None, Controls(100)])
def test_memory_is_that_of_the_gradient(one: Any, dtype: torch.dtype, controls: Controls | None) -> None:
    trunk = lpnet.LayerParallel(lpnet.dynamics.Dense(64), 200, 1.0, dtype=dtype, comm=Comm(), controls=controls)
    size = sum(p.numel() * p.element_size() for p in trunk.parameters())
    penalty = one(trunk, 0.7)
    with Living() as living:  # it counts the parameters too
        value = penalty()
        assert living.most < 1.5 * size
        value.backward()
    assert living.most < 2.5 * size


@BOTH
def test_weights_that_change_before_the_gradient(one: Any) -> None:
    trunk = twin("dense", 9)
    value = one(trunk, 0.7)()
    with torch.no_grad():
        next(trunk.parameters()).mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


@BOTH
@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf, "1", None])
def test_bad_weights(one: Any, weight: Any) -> None:
    with pytest.raises(InputError, match=r"^weight: .* given, .* allowed$"):
        one(twin("dense", 3), weight)
