"""Chain nets, their objective, and its Gauss–Newton model against dense matrices."""

import copy
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from descent import flat
from linearization import Slow
from reference import F64, normal, trunk
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from lpnet import MGRIT, Adaptive, InputError
from lpnet.optim import Problem, split
from lpnet.regularizers import Tikhonov
from lpnet.slab import Comm

LABEL = torch.tensor([0, 1, 2, 2, 1, 0])


def chain(layers: int = 3, comm: Comm | None = None, kind: str = "dense", **more: Any) -> nn.Sequential:
    torch.manual_seed(1)
    parts = [nn.Linear(2, 4, dtype=F64), trunk(kind, layers, comm=comm or Comm(), **more), nn.Linear(4, 3, dtype=F64)]
    return nn.Sequential(*parts)


def problem(net: nn.Module, loss: Any = cross_entropy, **more: Any) -> Problem:
    label = LABEL if loss is cross_entropy else normal(6, 3, seed=5)
    return Problem(net, normal(6, 2, seed=3), label, loss, **more)


# ---- chains ----------------------------------------------------------------------------------------------------------


def test_the_parts_of_a_network() -> None:
    one, first, last = trunk("dense", 2), nn.Linear(2, 4), nn.Linear(4, 2)
    for net in (nn.Sequential(first, one, last), nn.Sequential(nn.Sequential(first, one), nn.Sequential(last))):
        parts = split(net)
        assert (parts.before, parts.trunk, parts.after) == (first, one, last)
    named = nn.Module()
    named.opening, named.trunk, named.classifier = first, one, last
    assert split(named).after is last
    assert isinstance(split(one).before, nn.Identity)
    several = split(nn.Sequential(first, nn.Tanh(), one))
    assert [type(part) for part in several.before] == [nn.Linear, nn.Tanh]  # type: ignore[attr-defined]
    assert isinstance(several.after, nn.Identity)


@pytest.mark.parametrize(
    "net",
    [
        nn.Linear(2, 2),
        nn.Sequential(nn.Linear(2, 2)),
        nn.Sequential(trunk("dense", 2), trunk("dense", 2)),
        nn.ModuleList([trunk("dense", 2)]),
        nn.Sequential(nn.ModuleList([trunk("dense", 2)]), trunk("dense", 2)),
    ],
)
def test_networks_of_another_form(net: nn.Module) -> None:
    with pytest.raises(InputError, match=r"^net: a \w+ given, .* allowed$"):
        split(net)


# ---- objective -------------------------------------------------------------------------------------------------------


def dense(net: nn.Sequential, loss: Any, given: Problem, decay: float) -> SimpleNamespace:
    """Value, gradient, and Gauss–Newton matrix, by autograd on the plain copy with all weights as one vector."""
    inside, mine = list(net[1].theta.values()), [id(p) for p in given.theta]
    shapes = [(p.shape, p.numel()) for p in given.theta]
    slow = Slow(net[1], torch.zeros(1, 4, dtype=F64))

    def output(w: Tensor) -> Tensor:
        parts = [t.reshape(s) for t, (s, _) in zip(w.split([n for _, n in shapes]), shapes, strict=True)]
        named = {id(p): t for p, t in zip(given.theta, parts, strict=True)}
        of = lambda m: {k: named.get(id(p), p.detach()) for k, p in m.named_parameters()}  # noqa: E731
        y = torch.func.functional_call(net[0], of(net[0]), (given.x,))
        y = slow._of({k: named.get(id(p), p.detach()) for k, p in net[1].theta.items()}, y)
        return torch.func.functional_call(net[2], of(net[2]), (y,))

    def penalty(w: Tensor) -> Tensor:
        stacks = [w.split([n for _, n in shapes])[mine.index(id(p))] if id(p) in mine else p.detach() for p in inside]
        return 0.5 * decay * net[1].h * sum(t.square().sum() for t in stacks)

    w = torch.cat([p.detach().flatten() for p in given.theta])
    u = output(w)
    J = torch.func.jacrev(output)(w).reshape(u.numel(), len(w))
    H = torch.func.hessian(lambda u: loss(u, given.label))(u).reshape(u.numel(), u.numel())
    of = lambda w: loss(output(w), given.label) + penalty(w)  # noqa: E731
    B = J.T @ H @ J + torch.func.hessian(penalty)(w)
    return SimpleNamespace(value=of(w).item(), gradient=torch.func.grad(of)(w), B=B.numpy())


SUBSETS = {
    "all": lambda net: None,
    "opening": lambda net: [net[0].bias],
    "trunk": lambda net: [net[1].b],
    "classifier": lambda net: [net[2].bias, net[2].weight],
    "mixed": lambda net: [net[2].weight, net[1].K, net[0].weight],
}


@pytest.mark.parametrize("free", SUBSETS)
@pytest.mark.parametrize("loss", [cross_entropy, mse_loss])
def test_the_model_is_that_of_the_dense_matrices(free: str, loss: Any) -> None:
    net = chain()
    given = problem(net, loss, penalties=[Tikhonov(net[1], 0.3)], parameters=SUBSETS[free](net))
    true = dense(net, loss, given, 0.3)
    model = given.linearize()
    assert model.value == pytest.approx(true.value, rel=1e-13)
    assert given.value() == pytest.approx(true.value, rel=1e-13)
    value, gradient = given.gradient()
    assert value == pytest.approx(true.value, rel=1e-13)
    for found in (gradient, model.gradient):
        np.testing.assert_allclose(flat(found), true.gradient, rtol=1e-10, atol=1e-12)
    for seed in range(3):
        v = [normal(max(1, p.numel()), seed=seed + 9 * i).reshape(p.shape) for i, p in enumerate(given.theta)]
        np.testing.assert_allclose(flat(model.product(v)), true.B @ flat(v), rtol=1e-9, atol=1e-12)
    assert model.products == 3


def test_nothing_is_left_behind() -> None:
    net = chain()
    before = copy.deepcopy(net.state_dict())
    given = problem(net)
    given.gradient()
    model = given.linearize()
    model.product(model.gradient)
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(a, b) for a, b in zip(net.state_dict().values(), before.values(), strict=True))
    assert not any(t.requires_grad for t in [*model.gradient, *model.product(model.gradient)])


@pytest.mark.parametrize("initial", ["coarse", "tau", "warm", "constant"])
@pytest.mark.parametrize("control", [None, Adaptive(0.1)])
def test_values_and_models_are_of_one_function(initial: Any, control: Any) -> None:
    """By solvers that are far from exact, and start from what steps before have left."""
    solver = MGRIT(coarsening=3, cycles=1, initial=initial)
    net = chain(12, forward=solver, adjoint=solver, control=control)
    for seed in range(2):
        cross_entropy(net(normal(6, 2, seed=seed)), LABEL).backward()
    given = problem(net)
    model = given.linearize()
    values = [given.value(), model.value, given.linearize().value, given.value()]
    assert values == pytest.approx([values[0]] * 4, rel=1e-14)
    twin = problem(net)
    assert twin.value() == pytest.approx(values[0], rel=1e-14)  # nothing was left behind


def test_a_known_gradient_is_taken_as_it_is() -> None:
    given = problem(chain())
    known = [torch.ones_like(p) for p in given.theta]
    assert given.linearize(known).gradient is known


def test_a_net_without_parts_around_the_trunk() -> None:
    net = trunk("hamiltonian", 3, comm=Comm())
    given = Problem(net, normal(6, 4), normal(6, 4, seed=1), mse_loss)
    model = given.linearize()
    np.testing.assert_allclose(flat(model.gradient), flat(given.gradient()[1]), rtol=1e-9, atol=1e-12)


def test_bad_input() -> None:
    net = chain()
    with pytest.raises(InputError, match=r"^parameters: 1 given, .* allowed$"):
        problem(net, parameters=[nn.Parameter(torch.zeros(2))])
    with pytest.raises(InputError, match=r"^parameters: 0 given, .* allowed$"):
        problem(net, parameters=[])
    with pytest.raises(InputError, match=r"^loss: .* allowed$"):
        Problem(net, normal(6, 2), LABEL, lambda u, label: u).value()
