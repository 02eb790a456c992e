"""Norms, clipping, optimizers and exact evaluation of networks with a trunk, against torch on the plain network."""

import copy
import math
from typing import Any

import pytest
import torch
from gradients import BATCH, WIDTH, data, gradients
from reference import F64, KINDS, error, normal, trunk, twin
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, InputError, Serial
from lpnet.optim import LBFGS
from lpnet.sharded import slab_of, trunks

ONE = MGRIT(coarsening=4, cycles=0)


def net(kind: str = "dense", forward: Any = None, adjoint: Any = None, comm: Any = None) -> nn.Sequential:
    """A linear layer, a trunk, a linear layer."""
    make = twin if comm is None else trunk
    ends = [nn.Linear(3, WIDTH, dtype=F64), nn.Linear(WIDTH, 2, dtype=F64)]
    with torch.no_grad():
        for i, p in enumerate([*ends[0].parameters(), *ends[1].parameters()]):
            p.copy_(normal(*p.shape, seed=i))
    return nn.Sequential(ends[0], make(kind, 13, forward, adjoint), ends[1])


def plain_of(one: nn.Sequential) -> nn.Sequential:
    return nn.Sequential(copy.deepcopy(one[0]), one[1].as_sequential(), copy.deepcopy(one[2]))


def loss(one: nn.Module) -> Tensor:
    return (one(normal(BATCH, 3)) - normal(BATCH, 2, seed=1)).square().sum()


def layer_parameters(plain: nn.Sequential) -> dict[str, Tensor]:
    layers = [m.dynamics for m in plain[1] if hasattr(m, "dynamics")][-13:]
    return {n: torch.stack([layer.get_parameter(n) for layer in layers]) for n, _ in layers[0].named_parameters()}


@pytest.mark.parametrize("kind", ["dense", "antisymmetric"])
@pytest.mark.parametrize("factor", [0.1, 0.999, 1.5, math.inf])
def test_clipping_is_that_of_torch_on_the_plain_network(kind: str, factor: float) -> None:
    one = net(kind)
    plain = plain_of(one)
    for each in (one, plain):
        loss(each).backward()
    true = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in plain.parameters()]))
    assert error(lpnet.grad_norm(one.parameters()), true) < 1e-13
    size = factor * true.item()
    norm = lpnet.clip_grad_norm_(one.parameters(), size)
    expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), size)
    assert norm.dtype == F64
    assert error(norm, expected) < 1e-13
    layers = [m.dynamics for m in plain[1] if hasattr(m, "dynamics")]
    for name, p in one[1].theta.items():
        assert error(p.grad, torch.stack([layer.get_parameter(name).grad for layer in layers])) < 1e-12
    for a, b in zip([*one[0].parameters()], [*plain[0].parameters()], strict=True):
        assert error(a.grad, b.grad) < 1e-12


def test_norms_of_some_or_of_no_gradients() -> None:
    one = net()
    assert lpnet.grad_norm(one.parameters()).item() == 0
    assert lpnet.grad_norm([]).item() == 0
    loss(one).backward()
    K = one[1].theta["K"]
    assert error(lpnet.grad_norm(K), K.grad.norm()) < 1e-14
    assert lpnet.clip_grad_norm_(iter(one.parameters()), 1e-3) > 1e-3  # an iterator is used once
    assert lpnet.grad_norm(one.parameters()).item() == pytest.approx(1e-3, rel=1e-3)
    for size in (0.0, -1.0, math.nan):
        with pytest.raises(InputError, match=r"^max_norm: .* given, .* allowed$"):
            lpnet.clip_grad_norm_(one.parameters(), size)


@pytest.mark.parametrize("name", ["SGD", "AdamW", "Adam", "RMSprop", "NAdam", "Rprop"])
def test_optimizers_that_act_on_each_number_work_on_slabs(name: str) -> None:
    one = net()
    plain = plain_of(one)
    for each in (one, plain):
        optimizer = getattr(torch.optim, name)(each.parameters(), lr=1e-2)
        for _ in range(3):
            optimizer.zero_grad()
            loss(each).backward()
            optimizer.step()
    for key, stack in layer_parameters(plain).items():
        assert error(one[1].theta[key], stack) < 1e-9
    assert error(one[2].weight, plain[2].weight) < 1e-9


@pytest.mark.parametrize("name", ["LBFGS", "Adafactor", "Muon"])
def test_optimizers_that_mix_numbers_are_refused_on_slabs(name: str) -> None:
    if not hasattr(torch.optim, name):
        pytest.skip(f"torch has no {name}")
    one = net()
    weights = [p for p in one.parameters() if p.ndim == 2] if name == "Muon" else list(one.parameters())
    loss(one).backward()
    optimizer = getattr(torch.optim, name)(weights)
    before = one[0].weight.detach().clone()
    with pytest.raises(InputError, match=rf"^optimizer: {name} given, .* allowed$"):
        optimizer.step(lambda: loss(one))
    assert torch.equal(one[0].weight, before)
    ends = [p for p in one.parameters() if slab_of(p) is None and p.ndim == 2]
    getattr(torch.optim, name)(ends).step(lambda: loss(one))  # replicated ones are nobody's concern


def test_lbfgs_of_torch_is_refused_in_any_guise_and_that_of_lpnet_is_not() -> None:
    one = net()
    mine = type("Mine", (torch.optim.LBFGS,), {})(one.parameters())
    with pytest.raises(InputError, match=r"^optimizer: Mine given, .*lpnet\.optim\.LBFGS.* allowed$"):
        mine.step(lambda: loss(one))

    def closure() -> Tensor:
        one.zero_grad()
        value = loss(one)
        value.backward()
        return value

    before = loss(one).item()
    LBFGS(one.parameters()).step(closure)
    assert loss(one).item() < before


@pytest.mark.parametrize(
    "change",
    [
        lambda one: one.float(),
        lambda one: one.to(torch.float32).double(),
        copy.deepcopy,
        lambda one: one if one.load_state_dict(one.state_dict()) else None,
        lambda one: one if one[1].load_state_dict(one[1].gather_state_dict(), assign=True) else None,
        lambda one: one if one.load_state_dict(one.state_dict(), assign=True) else None,
        lambda one: one.requires_grad_(False),
        lambda one: one.to_empty(device="cpu"),
    ],
    ids=["float", "to", "deepcopy", "load", "assign", "assign through the network", "freeze", "to_empty"],
)
def test_slabs_stay_known(change: Any) -> None:
    """Whatever is done to a network, its sharded parameters are still known as such, and no others."""
    one = change(net())
    assert trunks(one) == [one[1]]
    assert all(slab_of(p) is one[1]._slab for p in one[1].parameters())
    assert all(slab_of(p) is None for p in [*one[0].parameters(), *one[2].parameters()])


@pytest.mark.parametrize("kind", KINDS)
def test_exact_evaluation(kind: str) -> None:
    one, y = twin(kind, 13, ONE, ONE), data()[0]
    chain, inexact = twin(kind, 13)(y).detach(), one(y).detach()
    assert error(inexact, chain) > 1e-6
    with lpnet.exact(one) as same:
        assert same is one
        assert torch.equal(one(y), chain)
        assert one.info.forward.solver == "serial"
        with lpnet.exact(nn.Sequential(one)):
            assert torch.equal(one(y), chain)
        assert torch.equal(one(y), chain)
    assert torch.equal(one(y), inexact)
    with pytest.raises(KeyError), lpnet.exact(one):
        raise KeyError
    assert torch.equal(one(y), inexact)


def test_exact_holds_for_the_backward_pass_of_what_was_propagated_inside() -> None:
    (y, c), one, chain = data(), twin("dense", 13, ONE, ONE), twin("dense", 13)
    gradients(chain, y, c)
    with lpnet.exact(one):
        value = (one(y) * c).sum()
    value.backward()
    for p, q in zip(one.parameters(), chain.parameters(), strict=True):
        assert error(p.grad, q.grad) < 1e-13
    assert one.info.adjoint.solver == "serial"


def test_exact_keeps_the_micro_batches() -> None:
    one, y = twin("dense", 13, Serial(3), ONE), data()[0]
    with lpnet.exact(one):
        one(y).sum().backward()
    assert one.info.forward.evaluations == 3 * 13


def test_one_rank_is_always_synchronous() -> None:
    one = net()
    before = {n: t.clone() for n, t in one.state_dict().items()}
    assert lpnet.synchronize(one) is False
    assert all(torch.equal(t, before[n]) for n, t in one.state_dict().items())
    assert lpnet.synchronize(nn.Linear(2, 2)) is False
