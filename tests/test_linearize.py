"""Products with the Jacobian of a trunk: adjoint identity, forward mode of autograd on the plain twin, user modules."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from gradients import CONVERGED, WIDTH, data, user_trunk
from reference import KINDS, error, normal, trunk
from torch import Tensor, nn
from torch.func import functional_call

import lpnet
from lpnet import MGRIT, InputError, Serial, dynamics, steppers
from lpnet.slab import Comm

LAYERS = 13


def made(kind: str, how: str = "serial", layers: int = LAYERS) -> lpnet.LayerParallel:
    if kind == "user":
        return user_trunk(user(), layers, how)
    forward, adjoint = CONVERGED[how]
    return trunk(kind, layers, forward, adjoint, comm=Comm())


def user() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 6), nn.GELU(), nn.Linear(6, WIDTH))


class Force(nn.Module):
    """Second-order dynamics of a user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = user()

    def kick(self, y: Tensor) -> Tensor:
        return -self.inner(y)

    def reset_parameters(self) -> None:
        """Parts have their own."""


def direction(net: lpnet.LayerParallel, seed: int = 40) -> tuple[Tensor, list[Tensor]]:
    """A change of input and of weights."""
    dtheta = [normal(*p.shape, seed=seed + i) for i, p in enumerate(net.theta.values())]
    return normal(*data()[0].shape, seed=seed - 1), dtheta


def plain_tangent(net: lpnet.LayerParallel, y: Tensor, dy: Tensor, dtheta: list[Tensor]) -> Tensor:
    """By forward mode on `as_sequential`."""
    plain = net.as_sequential()
    layers = [m.dynamics for m in plain if hasattr(m, "dynamics")][-net.layers :]
    changes = {
        id(layer.get_parameter(name)): change[j]
        for name, change in zip(net.theta, dtheta, strict=True)
        for j, layer in enumerate(layers)
    }
    theta = {name: p.detach() for name, p in plain.named_parameters()}
    dots = {name: changes[id(p)] for name, p in plain.named_parameters()}
    return torch.func.jvp(lambda t, y: functional_call(plain, t, (y,)), (theta, y), (dots, dy))[1]


OTHERS = {
    "rk4": (steppers.RK4(), lambda: dynamics.Antisymmetric(WIDTH)),
    "ab3": (steppers.AB3(), lambda: dynamics.TwoLayer(WIDTH, hidden=3)),
    "ab3, user": (steppers.AB3(), user),
    "leapfrog": (steppers.Leapfrog(), lambda: dynamics.SecondOrder(WIDTH)),
    "leapfrog, user": (steppers.Leapfrog(), Force),
    "verlet from zero": (steppers.Verlet("zero"), lambda: dynamics.Hamiltonian(WIDTH)),
    "euler": (steppers.Euler(), lambda: dynamics.Dense(WIDTH)),
}


def inner(a: list[Tensor], b: list[Tensor]) -> float:
    return sum(float((p * q).sum()) for p, q in zip(a, b, strict=True))


@pytest.mark.parametrize(
    ("kind", "how"),
    [(kind, how) for kind in KINDS for how in ("serial", "micro-batches", "two levels", "three levels", "samples")]
    + [("two_layer", "mixed"), ("user", "two levels"), ("user", "samples")],
)
def test_products_are_those_of_autograd_and_adjoint_to_each_other(kind: str, how: str) -> None:
    assert_products(made(kind, how))


@pytest.mark.parametrize("how", ["micro-batches", "two levels"])
@pytest.mark.parametrize("which", OTHERS)
def test_all_steppers(which: str, how: str) -> None:
    stepper, one = OTHERS[which]
    assert_products(user_trunk(one(), LAYERS, how, stepper=stepper))


@pytest.mark.parametrize("how", ["serial", "two levels"])
@pytest.mark.parametrize(
    ("which", "store"),
    [("euler", "cpoints"), ("ab3", "cpoints"), ("verlet from zero", "reverse"), ("leapfrog", "reverse")],
)
def test_states_that_are_not_stored(which: str, store: str, how: str) -> None:
    stepper, one = OTHERS[which]
    assert_products(user_trunk(one(), LAYERS, how, stepper=stepper, store=store))


def assert_products(net: lpnet.LayerParallel) -> None:
    """Output and tangent are those of autograd, the pull is its transpose, also when asked for a second time."""
    y, bar = data()
    J = net.linearize(y)
    assert error(J.output, net.as_sequential()(y).detach()) < 1e-10
    dy, dtheta = direction(net)
    tangent = J.tangent(dy, dtheta)
    assert error(tangent, plain_tangent(net, y, dy, dtheta)) < 1e-10
    for _ in range(2):
        y_bar, theta_bar = J.pull(bar)
        assert inner([tangent], [bar]) == pytest.approx(inner([dy, *dtheta], [y_bar, *theta_bar]), rel=1e-12)
    assert error(J.tangent(dy, dtheta), tangent) < 1e-13


UNTIL = MGRIT(coarsening=3, cycles=4, tol=1e-2)  # as many cycles as it takes, which may depend on the argument


@pytest.mark.parametrize("options", [Serial(), MGRIT(coarsening=4, cycles=1, initial="warm"), UNTIL])
def test_products_may_be_repeated_in_any_order(options: Any) -> None:
    """J is one linear map, whatever was asked before, also where solves do not converge or start from earlier ones."""
    net, (y, bar) = trunk("two_layer", LAYERS, options, options, comm=Comm()), data()
    J = net.linearize(y)
    dy, dtheta = direction(net)
    first, pulled = J.tangent(dy, dtheta), J.pull(bar)
    other = J.pull(3.0 * bar)
    parts = J.tangent(dy, None) + J.tangent(None, dtheta)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(1.0)  # the point of linearisation stays
    again, repeated = J.tangent(dy, dtheta), J.pull(bar)
    assert torch.equal(first, again)
    assert error(parts, first) < 1e-13
    for a, b, c in zip(pulled[1], repeated[1], other[1], strict=True):
        assert torch.equal(a, b)
        assert error(c, 3.0 * a) < 1e-13


@pytest.mark.parametrize("tol", [1e-2, 1e-6, 1e-10])
@pytest.mark.parametrize("initial", ["coarse", "nested", "warm", "tau"])
def test_products_are_as_exact_as_the_states(initial: Any, tol: float) -> None:
    """J and Jᵀ are adjoint, and errors like `tol`, whatever the forward solve started from: it may need no cycle."""
    options = MGRIT(coarsening=4, cycles=20, tol=tol, initial=initial)
    (y, bar), layers = data(), 64
    net = trunk("two_layer", layers, options, options, comm=Comm())
    dy, dtheta = direction(net)
    net(y).backward(bar)  # a training step before
    J = net.linearize(y)
    with lpnet.exact(net):
        true = net.linearize(y)
    if initial in ("warm", "tau"):
        assert J.info.cycles == 0
    tangent, (y_bar, theta_bar) = J.tangent(dy, dtheta), J.pull(bar)
    assert J.product.cycles < 16 == layers // 4  # none is done for nothing
    assert inner([tangent], [bar]) == pytest.approx(inner([dy, *dtheta], [y_bar, *theta_bar]), rel=1e-12)
    assert error(tangent, true.tangent(dy, dtheta)) < 10 * tol
    assert error(y_bar, true.pull(bar)[0]) < 10 * tol
    assert error(J.tangent(dy, None) + J.tangent(None, dtheta), tangent) < 1e-13


def test_tangent_converges_with_the_cycles() -> None:
    """And is exact within `lpnet.exact`, or after as many cycles as there are intervals."""
    y = data()[0]
    exact = made("antisymmetric", layers=16)
    dy, dtheta = direction(exact)
    expected = exact.linearize(y).tangent(dy, dtheta)
    errors = []
    for cycles in range(4):
        net = trunk("antisymmetric", 16, MGRIT(coarsening=4, cycles=cycles), comm=Comm())
        errors.append(error(net.linearize(y).tangent(dy, dtheta), expected))
    assert all(b < 0.4 * a for a, b in pairwise(errors))
    assert errors[3] < 1e-13
    with lpnet.exact(net):
        assert error(net.linearize(y).tangent(dy, dtheta), expected) < 1e-14


def test_taylor() -> None:
    """F(y + ε dy, θ + ε dθ) = F + ε J(dy, dθ) + O(ε²)."""
    net, y = made("hamiltonian", "two levels"), data()[0]
    dy, dtheta = direction(net)
    J, remainders = net.linearize(y), []
    dot = J.tangent(dy, dtheta)
    before = [p.detach().clone() for p in net.theta.values()]
    for eps in (1e-2, 5e-3):
        with torch.no_grad():
            for p, value, d in zip(net.theta.values(), before, dtheta, strict=True):
                p.copy_(value + eps * d)
            remainders.append((net(y + eps * dy) - J.output - eps * dot).norm().item())
    assert remainders[0] / remainders[1] == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize("options", [Serial(2), MGRIT(coarsening=4, cycles=12)])
def test_dropout_masks_are_those_of_the_linearisation(options: Any) -> None:
    one = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, WIDTH))
    net, (y, bar) = user_trunk(one, forward=options, adjoint=options), data()
    J = net.linearize(y)
    dy, dtheta = direction(net)
    tangent = J.tangent(dy, dtheta)
    y_bar, theta_bar = J.pull(bar)
    assert inner([tangent], [bar]) == pytest.approx(inner([dy, *dtheta], [y_bar, *theta_bar]), rel=1e-11)
    net.zero_grad()
    assert error(net.linearize(y).output, J.output) > 1e-3


@pytest.mark.parametrize("initial", ["warm", "tau"])
def test_training_goes_on_as_if_there_had_been_no_linearisation(initial: Any) -> None:
    options, outputs = MGRIT(coarsening=4, cycles=1, initial=initial), []
    for look in (False, True):
        net, (y, bar) = trunk("two_layer", LAYERS, options, options, comm=Comm()), data()
        net(y).backward(bar)
        if look:
            J = net.linearize(2.0 * y)
            J.tangent(y, None), J.pull(bar)
        outputs.append(net(y))
    assert torch.equal(*outputs)


def test_wrong_shapes() -> None:
    J = made("dense").linearize(data()[0])
    with pytest.raises(InputError, match="y: shape"):
        J.pull(torch.zeros(3, WIDTH))
    with pytest.raises(InputError, match="dtheta: shapes"):
        J.tangent(None, [torch.zeros(1)])


def test_no_products_with_the_continuous_adjoint() -> None:
    net = user_trunk(dynamics.Dense(WIDTH), gradient="continuous")
    with pytest.raises(InputError, match="gradient: 'continuous' given, 'discrete' allowed"):
        net.linearize(data()[0])
