"""Laws of the state of optimizers under prolongation."""

from typing import Any

import pytest
import torch
from reference import F64, error
from small_training import examples, network
from torch import nn
from torch.optim import lr_scheduler

import lpnet
from lpnet import InputError, Serial
from lpnet.multilevel import prolongate, prolongate_net, prolongate_state
from lpnet.optimizers import OPTIMIZERS

ELEMENTWISE = [name for name, kind in OPTIMIZERS.items() if kind.__module__.startswith("torch.")]


def descend(net: nn.Module, optimizer: Any, steps: int) -> None:
    x, label = examples()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), label).backward()
        optimizer.step()


def made(layers: int = 6) -> nn.Sequential:
    return network(layers, forward=Serial(), adjoint=Serial())


@pytest.mark.parametrize("name", ELEMENTWISE)
def test_every_elementwise_optimizer_goes_on(name: str) -> None:
    more = {"momentum": 0.9} if name in ("sgd", "rmsprop") else {}
    net = made()
    groups = [{"params": [*net[1].parameters()], "lr": 3e-3}, {"params": [*net[0].parameters(), *net[2].parameters()]}]
    old = OPTIMIZERS[name](groups, lr=1e-3, **more)
    lr_scheduler.ExponentialLR(old, 0.5)
    descend(net, old, 3)
    fine = prolongate_net(net, 12)
    new = prolongate_state(old, net, fine)
    assert type(new) is type(old)
    assert [{**g, "params": 0} for g in new.param_groups] == [{**g, "params": 0} for g in old.param_groups]
    pairs = dict(zip(net.parameters(), fine.parameters(), strict=True))
    for coarse, p in pairs.items():
        assert new.state[p].keys() == old.state[coarse].keys()
        for key, value in new.state[p].items():
            if isinstance(value, torch.Tensor) and value.ndim:
                assert value.shape == p.shape
            else:
                assert value == old.state[coarse][key]
        if coarse.shape == p.shape:  # beside the trunk
            assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(old.state[coarse][k]))
                       for k, v in new.state[p].items())
    descend(fine, new, 2)  # and the old one has not been touched
    assert all(g["params"] is not h["params"] for g, h in zip(old.param_groups, new.param_groups, strict=True))


def test_moments_are_those_of_the_fine_network() -> None:
    """A shadow on the fine network takes the gradients there, at the prolongated weights of each coarse step.

    Without the powers of h the first moments were wrong by a factor 2, and the second ones by 4.
    """
    net, (x, label) = made(64), examples()
    with torch.no_grad():  # smooth weights, so that layers between layers have gradients between theirs
        net[1].K.copy_(net[1].K[:1].expand_as(net[1].K))
    adam = torch.optim.Adam(net.parameters(), lr=1e-3)
    fine = prolongate_net(net, 128)
    first, second = ([torch.zeros_like(p) for p in fine.parameters()] for _ in range(2))
    for _ in range(5):
        fine = prolongate_net(net, 128)
        grads = torch.autograd.grad(nn.functional.cross_entropy(fine(x), label), list(fine.parameters()))
        first = [0.9 * m + 0.1 * g for m, g in zip(first, grads, strict=True)]
        second = [0.999 * v + 0.001 * g * g for v, g in zip(second, grads, strict=True)]
        descend(net, adam, 1)
    state = prolongate_state(adam, net, fine).state
    for p, m, v in zip(fine.parameters(), first, second, strict=True):
        assert error(state[p]["exp_avg"], m) < 0.1
        assert error(state[p]["exp_avg_sq"], v) < 0.2
        assert state[p]["step"] == 5


def test_the_memory_of_lbfgs_is_dropped_and_its_options_stay() -> None:
    net = made()
    search = lpnet.optim.Armijo()
    old = lpnet.optim.LBFGS(net.parameters(), lr=0.5, memory=3, search=search)
    x, label = examples()
    for _ in range(2):
        def closure() -> Any:
            old.zero_grad()
            loss = nn.functional.cross_entropy(net(x), label)
            loss.backward()
            return loss
        old.step(closure)
    fine = prolongate_net(net, 12)
    new = prolongate_state(old, net, fine)
    assert isinstance(new, lpnet.optim.LBFGS)
    assert (new.param_groups[0]["lr"], new.param_groups[0]["memory"], new.search) == (0.5, 3, search)
    assert not new.state
    assert new.param_groups[0]["params"] == list(fine.parameters())
    assert old.param_groups[0]["slots"]
    assert not new.param_groups[0]["slots"]


class Odd(torch.optim.SGD):
    """Keeps something of its own."""


def test_what_cannot_be_taken_over_is_refused() -> None:
    net, other = made(), made()
    fine = prolongate_net(net, 12)
    with pytest.raises(InputError, match=r"^optimizer: a Adam of other parameters given, those of old needed"):
        prolongate_state(torch.optim.Adam(other.parameters()), net, fine)
    odd = Odd(net.parameters(), lr=0.1)
    odd.state[net[1].K]["own"] = torch.ones_like(net[1].K)
    with pytest.raises(InputError, match=r"^optimizer: Odd given, which keeps 'own' of each weight"):
        prolongate_state(odd, net, fine)
    newton = lpnet.optim.GaussNewton(net)
    with pytest.raises(InputError, match=r"^optimizer: GaussNewton given, .* a new GaussNewton\(new, ...\) allowed"):
        prolongate_state(newton, net, fine)
    with pytest.raises(InputError, match=r"^optimizer: LBFGS given"):
        prolongate_state(torch.optim.LBFGS(net.parameters()), net, fine)
    assert prolongate(net[1], 12).K.dtype == F64
