"""Weights and buffers of a user's layer are those of rank 0, whatever the ranks drew."""

from pathlib import Path

import pytest
import torch
from reference import F64
from torch import Tensor, nn

import lpnet
from lpnet import Serial, launch
from lpnet.slab import Comm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]
WIDTH = 4


class Masked(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        source = torch.Generator().manual_seed(seed)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.rate = nn.Parameter(torch.rand((), generator=source))
        self.register_buffer("scale", torch.rand(1, generator=source).expand(WIDTH))
        self.register_buffer("order", torch.randperm(WIDTH, generator=source))
        self.register_buffer("on", torch.rand(WIDTH, generator=source) > 0.5, persistent=False)

    def forward(self, y: Tensor) -> Tensor:
        return self.rate * torch.tanh(self.inner(y))[:, self.order] * self.scale * self.on


def made(comm: Comm, seed: int, init: str = "random") -> lpnet.LayerParallel:
    torch.manual_seed(seed)
    return lpnet.LayerParallel(
        Masked(seed), 7, 1.0, forward=Serial(), adjoint=Serial(), comm=comm, init=init, dtype=F64
    )


def y() -> Tensor:
    return torch.linspace(-1, 1, 3 * WIDTH, dtype=F64).reshape(3, WIDTH)


@pytest.mark.parametrize("init", ["constant", "random"])
def test_they_are_those_of_rank_0(comm: Comm, init: str) -> None:
    many, one = made(comm, 5 + comm.rank, init), made(Comm(), 5, init)
    assert torch.equal(many(y()), one(y()))
    for name, b in one.named_buffers():
        assert torch.equal(many.get_buffer(name), b), name
    assert not lpnet.synchronize(many)


def test_they_are_synchronised_again(comm: Comm) -> None:
    trunk = made(comm, 1)
    before = trunk(y())
    trunk.scale = trunk.scale * (1 + comm.rank)
    assert lpnet.synchronize(trunk) == (comm.size > 1)
    assert torch.equal(trunk(y()), before)


def test_checkpoints_have_them(comm: Comm, tmp_path: Path) -> None:
    path = Path(launch.share(comm, str(tmp_path))) / "net.h5"
    trunk = made(comm, 1)
    trunk.scale.mul_(3)
    lpnet.checkpoint.save(path, trunk)
    comm.barrier()
    for ranks in (comm, Comm()):
        other = made(ranks, 2)
        other.on.copy_(trunk.on)
        lpnet.checkpoint.load(path, other)
        assert torch.equal(other(y()), trunk(y()))
