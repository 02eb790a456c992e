"""Laws of gradients under error control: what is used is right, and what is said of it is true."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradients import gradients, plain_gradients
from reference import error, normal, twin
from small_training import examples, network, with_ddt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lpnet
from lpnet import MGRIT, Adaptive, Serial
from lpnet.gradient import controlled
from lpnet.oneshot import Descent

POOR = MGRIT(coarsening=8, cycles=0)
TIGHT = Adaptive(gradient_tol=1e-9, every=10, plan_ranks=4)  # more than cycles can give at the price of the exact chain
LOOSE = Adaptive(gradient_tol=0.9, every=1000)


def closure_of(net: nn.Module, x: Tensor, label: Tensor) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        net.zero_grad()
        loss = cross_entropy(net(x), label)
        loss.backward()
        return loss.detach()

    return closure


def grads(net: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in net.parameters() if p.grad is not None]


def close(a: list[Tensor], b: list[Tensor], tolerance: float) -> None:
    for one, other in zip(a, b, strict=True):
        assert error(one, other) < tolerance


def exact_grads(net: nn.Sequential, x: Tensor, label: Tensor) -> list[Tensor]:
    """By autograd on the plain layers."""
    plain = nn.Sequential(net[0], net[1].as_sequential(), net[2])
    plain.zero_grad()
    cross_entropy(plain(x), label).backward()
    ends = [[p.grad.clone() for p in one.parameters()] for one in (net[0], net[2])]
    layers = [m.dynamics for m in net_layers(plain[1])][-net[1].layers :]
    trunk = [torch.stack([layer.get_parameter(n).grad for layer in layers]) for n in net[1].theta]
    return [*ends[0], *trunk, *ends[1]]


def net_layers(plain: nn.Module) -> list[Any]:
    return [m for m in plain if hasattr(m, "dynamics")]  # type: ignore[attr-defined]


# ---- what is used ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deferred", [True, False], ids=["controlled", "plain loop"])
@pytest.mark.parametrize("solver", [POOR, MGRIT(coarsening=8, cycles=0, initial="tau")], ids=["coarse", "tau"])
@pytest.mark.parametrize("dynamics", ["dense", "hamiltonian", "user"])
def test_an_exact_reference_is_the_gradient_of_autograd(dynamics: str, solver: MGRIT, deferred: bool) -> None:
    """All of it, in the classifier and the opening layer too, when the loss is evaluated again."""
    net = network(64, forward=solver, adjoint=solver, control=TIGHT, init="random", **of_kind(dynamics))
    x, label = examples(number=20)
    closure = closure_of(net, x, label)
    loss = controlled([net[1]], closure) if deferred else closure()
    report = net[1].info.control
    assert report is not None
    assert report.checked
    assert report.exact
    assert report.gradient_error > 1e-4
    found, true = grads(net), exact_grads(net, x, label)
    if deferred:
        close(found, true, 1e-11)
        assert abs(loss - cross_entropy(nn.Sequential(net[0], net[1].as_sequential(), net[2])(x), label)) < 1e-12
    else:  # the cotangent z_N is that of the poor solve
        assert all(1e-7 < error(a, b) < 1.0 for a, b in zip(found, true, strict=True))


def of_kind(dynamics: str) -> dict[str, Any]:
    if dynamics == "user":
        return {"dynamics": nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 6))}
    if dynamics == "hamiltonian":
        return {"dynamics": lpnet.dynamics.Hamiltonian(6), "stepper": lpnet.steppers.Verlet()}
    return {}


def test_a_plain_loop_pulls_the_given_cotangent_back_exactly() -> None:
    """⟨c, y_N⟩ with fixed c: the checked gradient is that of autograd, whatever y_N was returned."""
    trunk = twin("dense", 64, POOR, POOR, control=TIGHT)
    y, c = normal(6, 4), normal(6, 4, seed=1)
    _, bar = gradients(trunk, y, c)
    _, expected, weights = plain_gradients(trunk, y, c)
    assert error(bar, expected) < 1e-11
    assert all(error(p.grad, weights[n]) < 1e-11 for n, p in trunk.theta.items() if p.grad is not None)


def test_without_a_check_the_schedule_is_all_there_is() -> None:
    """Bit for bit what the same solvers give without control."""
    x, label = examples(number=20)
    net, plain = (network(32, forward=POOR, adjoint=POOR, control=c) for c in (LOOSE, None))
    controlled([net[1]], closure_of(net, x, label))
    for _ in range(3):
        controlled([net[1]], closure_of(net, x, label))
        closure_of(plain, x, label)()
        assert net[1].info.control is not None
        assert not net[1].info.control.checked
        assert all(torch.equal(a, b) for a, b in zip(grads(net), grads(plain), strict=True))


def test_two_forwards_before_one_backward() -> None:
    """Each call is controlled on its own, checked or not, and the gradients add up."""
    trunk = twin("dense", 64, POOR, POOR, control=TIGHT)
    one, other = (normal(5, 4, seed=0), normal(5, 4, seed=1)), (normal(3, 4, seed=2), normal(3, 4, seed=3))
    total: dict[str, Tensor] = {}
    for y, c in (one, other):
        for n, g in plain_gradients(trunk, y, c)[2].items():
            total[n] = total.get(n, torch.zeros_like(g)) + g
    sum((trunk(y) * c).sum() for y, c in (one, other)).backward()  # type: ignore[union-attr]
    assert all(error(p.grad, total[n]) < 1e-11 for n, p in trunk.theta.items() if p.grad is not None)


@pytest.mark.parametrize("solver", [POOR, MGRIT(coarsening=8, cycles=0, initial="tau")], ids=["coarse", "tau"])
def test_two_trunks(solver: MGRIT) -> None:
    """Both are checked, together, with the exact gradient of the whole net in the end."""
    trunks = [twin("dense", n, solver, solver, control=TIGHT, seed=n) for n in (64, 72)]
    net = nn.Sequential(trunks[0], nn.Tanh(), trunks[1])
    y, c = normal(6, 4), normal(6, 4, seed=1)

    def closure() -> Tensor:
        net.zero_grad()
        loss = (net(y) * c).sum()
        loss.backward()
        return loss.detach()

    controlled(trunks, closure)
    found = grads(net)
    assert all(t.info.control is not None and t.info.control.checked for t in trunks)
    with lpnet.exact(net):
        closure()
    close(found, grads(net), 1e-11)


@pytest.mark.parametrize("frozen", ["weights", "input"])
def test_what_is_frozen_gets_no_gradient_and_no_needless_checks(frozen: str) -> None:
    """A check at the first step, and then as often as it was asked for."""
    trunk = twin("dense", 64, POOR, POOR, control=LOOSE, T=1.0)
    for p in trunk.theta.values():
        p.requires_grad_(frozen != "weights")
    checks = 0
    for step in range(6):
        y = normal(6, 4, seed=step).requires_grad_(frozen != "input")
        trunk(y).square().sum().backward()
        assert (y.grad is None) == (frozen == "input")
        assert all((p.grad is None) == (frozen == "weights") for p in trunk.theta.values())
        assert trunk.info.control is not None
        checks += trunk.info.control.checked
    assert checks == 1


# ---- random layers ---------------------------------------------------------------------------------------------------


def dropping(width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Linear(width, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, width))


@pytest.mark.parametrize("deferred", [True, False], ids=["controlled", "plain loop"])
def test_a_check_sees_the_masks_of_its_step(deferred: bool) -> None:
    """The checked gradients of a run are those of the exact chain, step after step, each with masks of its own."""
    x, _ = examples(number=6)
    nets = [
        network(24, forward=s, adjoint=s, control=c, dynamics=dropping())
        for s, c in (
            (MGRIT(coarsening=4, cycles=0), Adaptive(gradient_tol=1e-9, every=1, plan_ranks=4)),
            (Serial(), None),
        )
    ]
    nets[0][1].load_state_dict(nets[1][1].state_dict())
    before = None
    for _ in range(3):
        found, drawn = [], torch.get_rng_state()
        for net in nets:
            torch.set_rng_state(drawn)
            leaf = x.clone().requires_grad_()
            net[1].zero_grad()

            def closure(net: nn.Sequential = net, leaf: Tensor = leaf) -> Tensor:
                net.zero_grad()
                leaf.grad = None
                loss = net[1](net[0](leaf)).sum()  # a cotangent that does not depend on y_N
                loss.backward()
                return loss.detach()

            controlled([net[1]], closure) if deferred and net is nets[0] else closure()
            found.append([p.grad.clone() for p in net[1].theta.values() if p.grad is not None])
        close(found[0], found[1], 1e-10)
        assert before is None or error(found[1][0], before) > 1e-2
        before = found[1][0]


def test_dropout_beside_the_trunk_is_no_error_of_the_trunk() -> None:
    """A check repeats the step, with all that is random in it."""
    good = MGRIT(coarsening=4, cycles=2)
    net = network(32, forward=good, adjoint=good, control=Adaptive(every=1), T=1.0)
    net = nn.Sequential(net[0], nn.Dropout(0.5), net[1], net[2])
    x, label = examples(number=20)
    torch.manual_seed(0)
    controlled([net[2]], closure_of(net, x, label))
    report = net[2].info.control
    assert report is not None
    assert report.checked
    assert report.gradient_error < 0.05


# ---- what leaves control alone ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["eval", "no_grad", "exact", "repeating"])
def test_evaluation_does_not_touch_the_controller(how: str) -> None:
    """Nor what training does afterwards."""
    x, label = examples(number=20)
    solver = MGRIT(coarsening=8, cycles=1)
    nets = [network(32, forward=solver, adjoint=solver, control=Adaptive(every=2)) for _ in range(2)]
    for step in range(6):
        for net in nets:
            controlled([net[1]], closure_of(net, x, label))
        assert nets[0][1].info.control == nets[1][1].info.control
        assert all(torch.equal(a, b) for a, b in zip(grads(nets[0]), grads(nets[1]), strict=True)), step
        evaluate(nets[0], x, how)


def evaluate(net: nn.Sequential, x: Tensor, how: str) -> None:
    net.train(how != "eval")
    with torch.set_grad_enabled(how in ("eval", "exact")):
        if how == "exact":
            with lpnet.exact(net):
                net(x).sum().backward()
        elif how == "repeating":
            with lpnet.gradient.repeating([net[1]]):
                net(x)
        else:
            net(x)
    net.train()


def test_validation_does_not_disturb_what_training_starts_from() -> None:
    """A look at other examples in eval mode leaves the states of the training examples where they are."""
    x, label = examples(number=20)
    other = examples("swissroll", 20)[0]
    solver = MGRIT(coarsening=8, cycles=0, initial="tau")
    nets = [network(32, forward=solver, adjoint=solver) for _ in range(2)]
    for step in range(3):
        for net in nets:
            closure_of(net, x, label)()
        assert all(torch.equal(a, b) for a, b in zip(grads(nets[0]), grads(nets[1]), strict=True)), step
        evaluate(nets[0], other, "eval")


def test_an_error_in_the_closure_leaves_a_trunk_as_it_was() -> None:
    """A later step is controlled as ever."""
    x, label = examples(number=20)
    net = network(64, forward=POOR, adjoint=POOR, control=TIGHT)

    def failing() -> Tensor:
        closure_of(net, x, label)()
        raise KeyError("user")

    with pytest.raises(KeyError):
        controlled([net[1]], failing)
    controlled([net[1]], closure_of(net, x, label))
    close(grads(net), exact_grads(net, x, label), 1e-11)


@pytest.mark.parametrize("control", [TIGHT, None], ids=["control", "none"])
@pytest.mark.parametrize("how", ["eval", "no_grad", "repeating", "forward"])
def test_what_is_said_of_a_gradient_stays_until_the_next(how: str, control: Adaptive | None) -> None:
    """Whatever is evaluated in between; an exact gradient is said to be one, without a report."""
    x, label = examples(number=20)
    net = network(64, forward=POOR, adjoint=Serial(), control=control)
    info = net[1].info
    assert (info.is_exact, info.diverged, info.gradient_error, info.control) == (False, False, None, None)
    closure_of(net, x, label)()
    found = info.is_exact, info.diverged, info.gradient_error, info.control, info.schedules
    assert found[0] == (control is not None)
    assert (found[2] is None) == (found[3] is None) == (control is None)
    evaluate(net, x, how)
    with lpnet.exact(net), torch.no_grad():
        net(x)
    assert info.forward is not None
    assert info.forward.solver == "serial"  # the last solve
    assert (info.is_exact, info.diverged, info.gradient_error, info.control, info.schedules) == found
    with lpnet.exact(net):
        closure_of(net, x, label)()
    assert (info.is_exact, info.diverged, info.gradient_error, info.control) == (True, False, 0.0, None)
    assert [s.exact for s in info.schedules] == [True]


def test_descent_is_a_plain_loop_where_nothing_is_controlled() -> None:
    x, label = examples(number=20)
    nets = [network(16, forward=POOR, adjoint=POOR) for _ in range(2)]
    optimizers = [torch.optim.Adam(net.parameters(), lr=1e-2) for net in nets]
    descent, loss = Descent(nets[0], optimizers[0], with_ddt(nets[0])), with_ddt(nets[1])
    for _ in range(4):
        found = descent.step(x, label)
        optimizers[1].zero_grad()
        value = loss(nets[1](x), label)
        value.backward()
        optimizers[1].step()
        assert found.loss == value.item()
        assert (found.gradient_error, found.exact, found.checked) == (None, False, False)
    assert all(torch.equal(a, b) for a, b in zip(nets[0].parameters(), nets[1].parameters(), strict=True))
