"""Buffers of a user's layer: one for all layers, which a trunk has, saves, loads, moves and copies as its own."""

import copy
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from gradients import WIDTH, data, user_trunk
from reference import error
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, InputError


class Masked(nn.Module):
    """Buffers of several types, nested, one shared by all examples, one that is not saved, and a place without one."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.mask = nn.Module()
        self.register_buffer("scale", torch.rand(1, generator=source).expand(WIDTH))
        self.mask.register_buffer("order", torch.randperm(WIDTH, generator=source))
        self.mask.register_buffer("on", torch.rand(WIDTH, generator=source) > 0.5)
        self.mask.register_buffer("shift", torch.rand(WIDTH, generator=source), persistent=False)
        self.register_buffer("nothing", None)

    def forward(self, y: Tensor) -> Tensor:
        return torch.tanh(self.inner(y))[:, self.mask.order] * self.scale + self.mask.shift * self.mask.on


def net_of(seed: int, **more: Any) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH).double(), user_trunk(Masked(seed), **more))


def output(net: nn.Module) -> Tensor:
    with lpnet.exact(net), torch.no_grad():
        return net(data()[0])


def same(net: nn.Module, other: nn.Module) -> bool:
    """But for the buffer that is not saved."""
    other[1].mask.shift.copy_(net[1].mask.shift)
    return torch.equal(output(net), output(other))


SAVED = ["scale", "mask.order", "mask.on"]


def test_they_are_those_of_the_trunk() -> None:
    trunk, one = user_trunk(Masked()), Masked()
    assert {n for n, _ in trunk.named_buffers()} == {n for n, _ in one.named_buffers()}
    assert set(trunk.state_dict()) == set(trunk.gather_state_dict()) == {*trunk.theta, *SAVED}
    assert torch.equal(trunk.scale, one.scale.double())
    assert user_trunk(nn.Linear(WIDTH, WIDTH)).state_dict().keys() == {"weight", "bias"}


@pytest.mark.parametrize("way", ["gather", "state", "assign", "checkpoint", "file"])
def test_saved_and_loaded(way: str, tmp_path: Path) -> None:
    first, second = net_of(1), net_of(2)
    assert not same(first, second)
    second[0].load_state_dict(first[0].state_dict())
    if way == "gather":
        second[1].load_state_dict(first[1].gather_state_dict())
    elif way == "checkpoint":
        lpnet.checkpoint.save(tmp_path / "net.h5", first)
        lpnet.checkpoint.load(tmp_path / "net.h5", second)
    else:
        state = first.state_dict()
        if way == "file":
            torch.save(state, tmp_path / "net.pt")
            state = torch.load(tmp_path / "net.pt")
        second.load_state_dict(state, assign=way == "assign")
    assert same(first, second)
    assert error(second[1].as_sequential()(data()[0]), second[1](data()[0])) < 1e-6


def test_changes_are_what_is_evaluated() -> None:
    """In place, by assignment, in another type; and gathered ones are copies."""
    net = net_of(1)
    trunk, before = net[1], output(net)
    gathered = trunk.gather_state_dict()["scale"]
    trunk.scale.mul_(2)
    twice = output(net)
    assert not torch.equal(before, twice)
    trunk.scale = trunk.scale / 2
    assert torch.equal(output(net), before)
    assert torch.equal(gathered, trunk.scale)
    trunk.float()
    assert trunk.scale.dtype == torch.float32
    assert trunk(data()[0].float()).dtype == torch.float32
    trunk.double()
    assert trunk.mask.on.dtype == torch.bool
    assert error(output(net), before) < 1e-6


def test_copies_have_their_own() -> None:
    net = net_of(1)
    before = output(net)
    other = copy.deepcopy(net)
    other[1].scale.zero_()
    assert torch.equal(output(net), before)
    assert not torch.equal(output(other), before)
    finer = lpnet.multilevel.prolongate_net(net, 26)
    assert torch.equal(finer[1].scale, net[1].scale)
    finer[1].scale.zero_()
    assert torch.equal(output(net), before)


def test_plain_copies_have_them() -> None:
    net = net_of(1)
    held = io.BytesIO()
    torch.save(net[1].as_sequential(), held)
    held.seek(0)
    assert torch.equal(torch.load(held, weights_only=False)(data()[0]), net[1].as_sequential()(data()[0]))


def test_training_and_planning_with_buffers() -> None:
    solver = MGRIT(coarsening=4, cycles=1, samples=4)
    net = net_of(1, forward=solver, adjoint=solver)
    x, c = data()
    shot = lpnet.OneShot(
        net, torch.optim.SGD(net.parameters(), lr=0.1), nn.functional.mse_loss, control=lpnet.Adaptive(0.1, every=2)
    )
    losses = [shot.step(x, c).loss for _ in range(6)]
    assert losses[-1] < losses[0]
    assert lpnet.plan(net[1], x, 0.1).describe()


def test_weights_without_the_buffers_are_not_taken() -> None:
    trunk = user_trunk(Masked())
    with pytest.raises(RuntimeError, match=r"scale"):
        trunk.load_state_dict(dict(trunk.theta))


@pytest.mark.parametrize("name", ["h", "comm", "info"])
def test_taken_names_are_refused(name: str) -> None:
    one = Masked()
    one.register_buffer(name, torch.ones(WIDTH))
    with pytest.raises(InputError, match=rf"^dynamics: a buffer named '{name}'"):
        user_trunk(one)
