"""Orders of accuracy, from the registry, and what a stepper refuses."""

import dataclasses
from typing import Any

import pytest
import torch
from reference import F64, dynamics, error, fine, lift, net_of, normal, slope, trunk
from torch import Tensor, nn

import lpnet
from lpnet import InputError
from lpnet.dynamics import REGISTRY as DYNAMICS
from lpnet.slab import Comm
from lpnet.steppers import REGISTRY, Euler, Leapfrog, Stepper, Verlet

T, WIDTH, BATCH = 1.5, 4, 6
REFINED = (32, 64, 128, 256)
PAIRS = [
    pytest.param(stepper, kind, id=f"{name}-{kind}")
    for name, stepper in REGISTRY.items()
    for kind, one in DYNAMICS.items()
    if one.terms == stepper.terms
] + [pytest.param(Leapfrog, "second order", id="leapfrog")]


def flow(module: nn.Module, y: Tensor, steps: int = 2000) -> Tensor:
    """y(T) of y' = f(y), or of y' = drift(z), z' = kick(y) with z(0) = 0, by the classical Runge-Kutta method."""
    partitioned = hasattr(module, "kick")
    h = T / steps

    def f(x: Tensor) -> Tensor:
        if not partitioned:
            return module(x)
        return torch.stack([module.drift(x[1]) if hasattr(module, "drift") else x[1], module.kick(x[0])])

    x = torch.stack([y, torch.zeros_like(y)]) if partitioned else y
    for _ in range(steps):
        k1 = f(x)
        k2 = f(x + h / 2 * k1)
        k3 = f(x + h / 2 * k2)
        k4 = f(x + h * k3)
        x = x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return x[0] if partitioned else x


class SecondOrder(nn.Module):
    """y'' = −Kᵀ tanh(Ky), as a user would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.K = nn.Parameter(torch.zeros(WIDTH, WIDTH))

    def kick(self, y: Tensor) -> Tensor:
        return -(y @ self.K.T).tanh() @ self.K


def loaded(kind: str) -> nn.Module:
    """One layer with weights that are not small."""
    module = SecondOrder().to(F64) if kind == "second order" else dynamics(kind, WIDTH).to(F64)
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(0.8 * normal(*p.shape, seed=i))
    return module.requires_grad_(False)


def measured(module: nn.Module, stepper: Stepper) -> float:
    """Slope of the error of a trunk whose layers all are this module."""
    y, errors = normal(BATCH, WIDTH), []
    exact = flow(module, y)
    for N in REFINED:
        made = lpnet.LayerParallel(module, N, T, stepper, lpnet.Serial(), comm=Comm(), dtype=F64)
        made.load_state_dict({n: p.expand(N, *p.shape) for n, p in module.named_parameters()})
        errors.append(error(made(y).detach(), exact))
    return slope([T / N for N in REFINED], errors)


def test_every_stepper_has_a_dynamics() -> None:
    assert {p.values[0] for p in PAIRS} == set(REGISTRY.values())


@pytest.mark.parametrize(("stepper", "kind"), PAIRS)
def test_order(stepper: type[Stepper], kind: str) -> None:
    assert measured(loaded(kind), stepper()) == pytest.approx(stepper().order, abs=0.15)


@pytest.mark.parametrize(("start", "order"), [("half", 2), ("zero", 1)])
def test_order_of_verlet_depends_on_its_start(start: Any, order: int) -> None:
    assert Verlet(start).order == order
    assert measured(loaded("hamiltonian"), Verlet(start)) == pytest.approx(order, abs=0.15)


def test_order_against_an_exact_linear_flow() -> None:
    """ReLU far on its positive side is linear: y' = Ky + b, whose flow is a matrix exponential."""
    module = dynamics("dense", WIDTH, "relu").to(F64).requires_grad_(False)
    module.K.copy_(0.1 * normal(WIDTH, WIDTH))
    module.b.fill_(30.0)
    y = normal(BATCH, WIDTH)
    A = torch.zeros(WIDTH + 1, WIDTH + 1, dtype=F64)
    A[:WIDTH, :WIDTH], A[:WIDTH, WIDTH] = module.K, module.b
    exact = torch.cat([y, torch.ones(BATCH, 1, dtype=F64)], 1) @ torch.linalg.matrix_exp(T * A).T
    torch.testing.assert_close(flow(module, y), exact[:, :WIDTH], rtol=1e-12, atol=0)
    assert measured(module, Euler()) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("kind", ["dense", "two_layer", "antisymmetric"])
def test_order_of_euler_with_weights_smooth_in_j(kind: str) -> None:
    """θ_j = θ(t_j) at the left end of its step."""
    names = [n for n, _ in loaded(kind).named_parameters()]
    shapes = [p.shape for p in loaded(kind).parameters()]
    parts = [[0.7 * normal(*shape, seed=10 * i + k) for k in range(2)] for i, shape in enumerate(shapes)]

    def out(N: int) -> Tensor:
        t = torch.arange(N, dtype=F64) * (2 * torch.pi / N)
        made = trunk(kind, N, T=T, comm=Comm())
        bent = [_bent(t, c, s) for c, s in parts]
        made.load_state_dict(dict(zip(names, bent, strict=True)))
        return made(normal(BATCH, WIDTH)).detach()

    finest = 2 * out(2048) - out(1024)  # extrapolated
    errors = [error(out(N), finest) for N in REFINED]
    assert slope([T / N for N in REFINED], errors) == pytest.approx(1, abs=0.15)


def _bent(t: Tensor, c: Tensor, s: Tensor) -> Tensor:
    return torch.tensordot(t.cos()[:, None], c[None], 1) + torch.tensordot(t.sin()[:, None], s[None], 1)


@pytest.mark.parametrize(("kind", "start"), [("dense", "half"), ("hamiltonian", "half"), ("hamiltonian", "zero")])
def test_layers_by_hand(kind: str, start: str) -> None:
    """The whole trunk, and its twin `as_sequential`, are the formulas written out."""
    made = trunk(kind, 7, start=start, comm=Comm())
    net = net_of(made, kind, start=start)
    y = normal(BATCH, WIDTH)
    x = lift(net, y)
    for j in range(7):
        x = fine(net, j, x)
    assert error(made(y).detach(), x[0]) < 1e-14
    assert error(made.as_sequential()(y).detach(), x[0]) < 1e-14


@pytest.mark.parametrize("stepper", [one() for one in REGISTRY.values()])
def test_steppers_are_frozen_values(stepper: Stepper) -> None:
    assert stepper == type(stepper)()
    assert hash(stepper) == hash(type(stepper)())
    for name in ("order", "memory", "anything"):
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
            setattr(stepper, name, 3)
    assert stepper.memory >= 1
    assert stepper.terms


@pytest.mark.parametrize("name", list(REGISTRY))
def test_more_samples_than_layers_of_an_interval_are_refused(name: str) -> None:
    words = r"^samples: \d given(, at most the coarsening factor \d| with AB3, 1) allowed$"
    for options in (lpnet.MGRIT(coarsening=4, samples=5), lpnet.MGRIT(coarsening=(8, 2), levels=3, samples=3)):
        with pytest.raises(InputError, match=words):
            REGISTRY[name]().check(options)
    if name != "ab3":  # which takes one sample only
        REGISTRY[name]().check(lpnet.MGRIT(coarsening=4, samples=4))


def test_verlet_refuses_passes_and_unknown_starts() -> None:
    with pytest.raises(InputError, match=r"^passes: 2 given"):
        lpnet.LayerParallel(
            dynamics("hamiltonian"), 8, 1.0, Verlet(), forward=lpnet.MGRIT(coarsening=4, passes=2), comm=Comm()
        )
    with pytest.raises(InputError, match=r"^start: 'full' given, one of half, zero allowed$"):
        Verlet("full")  # type: ignore[arg-type]
