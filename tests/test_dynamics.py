"""Dynamics: conventions, eigenvalues on the imaginary axis, and values from an independent published code."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import ACTIVATIONS, ALL_KINDS, F64, Net, dynamics, error, net_of, normal, run, trunk
from torch import Tensor

import lpnet
from lpnet import InputError
from lpnet.dynamics import REGISTRY
from lpnet.slab import Comm


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", ALL_KINDS)
def test_forward_is_the_formula(kind: str, activation: str) -> None:
    """With examples in rows, and any number of leading dimensions."""
    one, y = dynamics(kind, 4, activation, gamma=0.3).to(F64), normal(2, 5, 4)
    w = {n: normal(*p.shape, seed=i) for i, (n, p) in enumerate(one.named_parameters())}
    one.load_state_dict(w)
    net = Net(kind, {}, 0.1, activation, gamma=0.3)
    for term in one.terms:
        found = one(y) if term == "f" else getattr(one, term)(y)
        assert error(found, getattr(net, term)(w, y)) < 1e-13


@pytest.mark.parametrize("kind", list(REGISTRY))
def test_bad_arguments(kind: str) -> None:
    for width in (0, -1, 2.0, True, "4", None):
        with pytest.raises(InputError, match=r"^width: .* given, a whole number of at least 1 allowed$"):
            REGISTRY[kind](width)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^activation: 'sigmoid' given, one of .*tanh.* allowed$"):
        REGISTRY[kind](4, "sigmoid")


@pytest.mark.parametrize(
    ("key", "one", "given"),
    [("hidden", one, v) for one in ("TwoLayer", "DoubleSymmetric", "SecondOrder") for v in (0, -1, 2.5)]
    + [("gamma", one, v) for one in ("Antisymmetric", "Dense") for v in (math.nan, math.inf)]
    + [("form", "Hamiltonian", v) for v in ("paper", None)],
)
def test_bad_extra_arguments(key: str, one: str, given: Any) -> None:
    with pytest.raises(InputError, match=rf"^{key}: .* given, .* allowed$"):
        getattr(lpnet.dynamics, one)(4, **{key: given})


# ---- eigenvalues -----------------------------------------------------------------------------------------------------


def jacobian(f: Any, x: Tensor) -> Tensor:
    return torch.func.jacrev(f)(x)


@settings(max_examples=15)
@given(width=st.integers(1, 8), seed=st.integers(0, 1000), scale=st.floats(0.1, 5.0))
def test_antisymmetric_eigenvalues_are_imaginary(width: int, seed: int, scale: float) -> None:
    """J = diag(σ')(K − Kᵀ) is similar to an antisymmetric matrix where σ' > 0; with γ they move to the left."""
    for gamma in (0.0, 0.1):
        one = lpnet.dynamics.Antisymmetric(width, gamma=gamma).to(F64).requires_grad_(False)
        one.K.copy_(scale * normal(width, width, seed=seed))
        one.b.copy_(normal(width, seed=seed + 1))
        y = 0.3 * normal(width, seed=seed + 2)
        J = jacobian(one, y)
        real = torch.linalg.eigvals(J).real
        rounding = 1e-12 * max(1.0, J.norm().item())
        if gamma:
            assert real.max() <= rounding
            assert real.sum().item() == pytest.approx(torch.trace(J).item(), rel=1e-9, abs=rounding)
        else:
            assert real.abs().max() < rounding


@pytest.mark.parametrize("one", [lpnet.dynamics.Antisymmetric, lpnet.dynamics.Dense])
def test_gamma_is_the_shift_where_the_activation_is_linear(one: Any) -> None:
    """ReLU on its positive side: the Jacobian is that without γ, less γI."""
    found = []
    for gamma in (0.25, 0.0):
        made = one(6, "relu", gamma=gamma).to(F64).requires_grad_(False)
        made.K.copy_(normal(6, 6))
        made.b.fill_(100.0)
        found.append(jacobian(made, normal(6, seed=1)))
    torch.testing.assert_close(found[1] - found[0], 0.25 * torch.eye(6, dtype=F64), rtol=0, atol=1e-14)
    assert one(6).gamma == 0


def test_antisymmetric_all_along_a_trunk() -> None:
    made = trunk("antisymmetric", 20, comm=Comm(), T=5.0)
    net, x = net_of(made, "antisymmetric"), normal(1, 1, 4)
    for j in range(20):
        J = jacobian(lambda y, j=j: net.f(net.at(j), y), x[0, 0])
        assert torch.linalg.eigvals(J).real.abs().max() < 1e-13
        x = run(net, j, j + 1, x)


@settings(max_examples=15)
@given(width=st.integers(1, 6), seed=st.integers(0, 1000))
def test_hamiltonian_eigenvalues_are_imaginary(width: int, seed: int) -> None:
    one = lpnet.dynamics.Hamiltonian(width).to(F64).requires_grad_(False)
    one.K.copy_(normal(width, width, seed=seed))

    def f(x: Tensor) -> Tensor:
        return torch.cat([one.drift(x[width:]), one.kick(x[:width])])

    J = jacobian(f, 0.3 * normal(2 * width, seed=seed))
    squares = torch.linalg.eigvals(J @ J)  # real and not positive
    rounding = 1e-12 * max(1.0, J.norm().item() ** 2)
    assert squares.real.max() < rounding
    assert squares.imag.abs().max() < rounding


@settings(max_examples=15)
@given(width=st.integers(1, 5), hidden=st.integers(1, 7), seed=st.integers(0, 1000))
def test_double_symmetric_contracts(width: int, hidden: int, seed: int) -> None:
    """A symmetric Jacobian with eigenvalues from −|K|² to 0, and so distances do not grow; its force oscillates."""
    one = lpnet.dynamics.DoubleSymmetric(width, hidden=hidden).to(F64).requires_grad_(False)
    one.K.copy_(normal(hidden, width, seed=seed))
    one.b.copy_(normal(hidden, seed=seed + 1))
    y, other = normal(2, width, seed=seed + 2)
    J = jacobian(one, y)
    size = torch.linalg.matrix_norm(one.K, 2).item() ** 2
    assert error(J, J.T) < 1e-13
    assert -size - 1e-12 < torch.linalg.eigvalsh(J).min() <= torch.linalg.eigvalsh(J).max() < 1e-12 * size
    assert torch.dot(one(y) - one(other), y - other) <= 0
    second = lpnet.dynamics.SecondOrder(width, hidden=hidden).to(F64)
    second.load_state_dict(one.state_dict())
    assert torch.equal(second.kick(y), one(y))


# ---- values of a published Octave package (swiss roll, 16 steps, T = 20), 12 digits ----------------------------------


def swissroll() -> Tensor:
    """The 513 training points."""
    t = torch.linspace(0, 4 * math.pi, 513, dtype=F64)
    arms = [torch.stack([r * t.cos(), r * t.sin()], 1) for r in (t / t[-1], 0.2 + t / t[-1])]
    points = torch.cat(arms)[::2]
    assert points.norm().item() == pytest.approx(15.2514586905, rel=1e-11)
    return points


def sines(steps: int, each: int, factor: float) -> Tensor:
    """factor · sin k, k = 1, 2, …, one row a step."""
    return factor * torch.sin(torch.arange(1, steps * each + 1, dtype=F64)).reshape(steps, each)


def propagated(one: lpnet.dynamics.Dynamics, K: Tensor, b: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """y_N by the trunk, and the whole state by its plain twin."""
    stepper = lpnet.steppers.Verlet("zero") if "kick" in one.terms else lpnet.steppers.Euler()
    made = lpnet.LayerParallel(one, len(K), 20.0, stepper, lpnet.Serial(), comm=Comm(), dtype=F64)
    made.load_state_dict({"K": K, "b": b.expand(len(K), K.shape[-1])})
    plain = made.as_sequential()
    out = made(y).detach()
    assert error(plain(y).detach(), out) < 1e-13
    return out, plain[:-1](y).detach()


def by_columns(theta: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """K, stored by columns, and the one bias of every step."""
    return theta[:, :-1].reshape(-1, width, width).transpose(1, 2), theta[:, -1:]


def test_published_hamiltonian_with_unit_matrices() -> None:
    one = lpnet.dynamics.Hamiltonian(2, form="package")
    y, state = propagated(one, torch.eye(2, dtype=F64).expand(16, 2, 2), torch.zeros(16, 1), swissroll())
    assert y.norm().item() == pytest.approx(12.8805258684, rel=1e-11)
    assert state[1].norm().item() == pytest.approx(12.8069386852, rel=1e-11)
    assert y[99].tolist() == pytest.approx([-0.0703254815231, 0.216975133027], rel=1e-11)


@pytest.mark.parametrize("form", ["package", "slides"])
def test_published_hamiltonian_with_one_bias(form: Any) -> None:
    """The slides exchange K and Kᵀ."""
    K, b = by_columns(sines(16, 5, 1.0), 2)
    K = K if form == "package" else K.transpose(1, 2)
    y, _ = propagated(lpnet.dynamics.Hamiltonian(2, form=form), K, b, swissroll())
    assert y.norm().item() == pytest.approx(37.3713358796, rel=1e-11)
    assert y[99].tolist() == pytest.approx([0.213203670238, 0.097733074421], rel=1e-11)


def test_published_resnet() -> None:
    points = swissroll()
    K, b = by_columns(sines(16, 17, 0.5), 4)
    y, _ = propagated(lpnet.dynamics.Dense(4), K, b, torch.cat([points, torch.zeros_like(points)], 1))
    assert y.norm().item() == pytest.approx(63.1745614426, rel=1e-11)
    expected = [1.8555209445, 0.467328055796, -0.834390655327, -1.75077880995]
    assert y[99].tolist() == pytest.approx(expected, rel=1e-11)
