"""Views of weights that a trunk keeps from step to step are never those of other weights, and hold no other memory."""

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from reference import normal
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lpnet
from lpnet import dynamics

LAYERS, WIDTH = 13, 20
DYNAMICS = {
    "dense": lambda: dynamics.Dense(WIDTH),
    "two": lambda: dynamics.TwoLayer(WIDTH, hidden=WIDTH),
    "shifted": lambda: dynamics.Dense(WIDTH, gamma=0.1),
}


class Unbound(TorchDispatchMode):
    """Counts tensors that are taken apart into as many views as there are layers."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.count += isinstance(out, list | tuple) and len(out) == LAYERS
        return out


def trunk(kind: str = "dense", seed: int = 0) -> lpnet.LayerParallel:
    serial = lpnet.Serial()
    return lpnet.LayerParallel(
        DYNAMICS[kind](), LAYERS, 1.0, forward=serial, adjoint=serial, init="random", seed=seed, dtype=torch.float64
    )


def gradient(net: lpnet.LayerParallel, seed: int = 0) -> list[Tensor]:
    """Of the input and the weights."""
    y = normal(30, WIDTH, seed=seed).to(next(net.parameters())).requires_grad_()
    return list(torch.autograd.grad(net(y).square().sum(), [y, *net.parameters()]))


def anew(net: lpnet.LayerParallel, kind: str) -> lpnet.LayerParallel:
    """A trunk with the same weights that has never been called."""
    made = trunk(kind).to(next(net.parameters()).dtype)
    made.load_state_dict({name: p.detach().clone() for name, p in net.named_parameters()})
    return made


def _updated(net: lpnet.LayerParallel) -> None:
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.5)


def _swapped(net: lpnet.LayerParallel) -> None:
    for p in net.parameters():
        p.data = 0.5 * p.data


def _assigned(net: lpnet.LayerParallel) -> None:
    net.load_state_dict({name: nn.Parameter(0.5 * p) for name, p in net.named_parameters()}, assign=True)


def _copied(net: lpnet.LayerParallel) -> None:
    other = copy.deepcopy(net)
    for _ in range(3):
        gradient(other)
        _updated(other)


def _called_elsewhere(net: lpnet.LayerParallel) -> None:
    with torch.inference_mode():
        for _ in range(3):
            torch.func.functional_call(net, {n: 0.5 * p for n, p in net.named_parameters()}, (normal(30, WIDTH),))


CHANGES: dict[str, Callable[[lpnet.LayerParallel], Any]] = {
    "updated": _updated,
    "data swapped": _swapped,
    "new parameters": _assigned,
    "copied": _copied,
    "in single precision": lpnet.LayerParallel.float,
    "other weights in inference mode": _called_elsewhere,
}


@pytest.mark.parametrize("kind", DYNAMICS)
@pytest.mark.parametrize("change", CHANGES)
def test_gradients_are_those_of_the_weights_as_they_are(kind: str, change: str) -> None:
    net = trunk(kind)
    for _ in range(2):
        gradient(net)
    CHANGES[change](net)
    for seed in range(3):
        assert all(map(torch.equal, gradient(net, seed), gradient(anew(net, kind), seed)))


def test_the_first_calls_may_be_in_inference_mode() -> None:
    net, y = trunk(), normal(30, WIDTH)
    with torch.inference_mode():
        for _ in range(3):
            net(y)
    assert all(map(torch.equal, gradient(net), gradient(anew(net, "dense"))))


@pytest.mark.parametrize("kind", ["dense", "two"])
def test_a_step_takes_no_weights_apart(kind: str) -> None:
    """Gradients are below the size from which memory is lent: those of the matrices are taken apart each time."""
    net = trunk(kind)
    for step in range(4):
        with Unbound() as unbound:
            gradient(net)
        weights = {"dense": 1, "two": 2}[kind]
        assert (unbound.count == weights) == (step >= 2)


@pytest.mark.parametrize("change", ["float", "load"])
def test_parameters_that_are_gone_are_not_held(change: str) -> None:
    net = trunk()
    for _ in range(3):
        gradient(net)
    storages = [weakref.ref(p.untyped_storage()) for p in net.parameters()]
    if change == "float":
        net.float()
    else:
        _assigned(net)
    assert [storage() for storage in storages] == [None, None]


def test_weights_that_are_made_for_a_step_are_not_held() -> None:
    net, held = trunk("shifted"), []
    dense = net._stack.module.dense

    def seen(theta: dict[str, Tensor]) -> Any:
        made = dense(theta)
        held.append(weakref.ref(made["f"].M.untyped_storage()))
        return made

    net._stack.module.dense = seen
    for _ in range(3):
        gradient(net)
    assert len(held) >= 3
    assert all(storage() is None for storage in held)
