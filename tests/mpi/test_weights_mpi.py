"""Parameters that come into the place of a trunk's own, its state dicts and its files, on any number of ranks."""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from reference import error, normal, trunk
from torch import nn

import lpnet
from lpnet import InputError, Serial
from lpnet.sharded import slab_of
from lpnet.slab import Comm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]
LAYERS = 12


def made(comm: Comm) -> lpnet.LayerParallel:
    return trunk("dense", LAYERS, Serial(), Serial(), comm=comm, seed=4)


def of_rank_0(comm: Comm, given: Any) -> Any:
    """What rank 0 has, as a file brings it to the others."""
    file = io.BytesIO()
    torch.save(given, file)
    data = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
    size = comm.agree(len(data) if comm.rank == 0 else 0)
    held = data.clone() if comm.rank == 0 else torch.empty(size, dtype=torch.uint8)
    return torch.load(io.BytesIO(comm.bcast_(held, 0).numpy().tobytes()))


def test_parameters_that_come_in_keep_their_slab(comm: Comm) -> None:
    """Norms count all layers, other optimizers are refused, and nobody's layers become those of rank 0."""
    nets, y = [made(comm), made(Comm())], normal(5, 4)
    for net in nets:
        for name, p in net.theta.items():
            setattr(net, name, nn.Parameter(2 * p.detach()))
        net(y).square().sum().backward()
    mine, whole = nets
    assert lpnet.grad_norm(mine.parameters()).item() == pytest.approx(lpnet.grad_norm(whole.parameters()).item())
    assert all(slab_of(p) is not None for p in mine.parameters())
    with pytest.raises(InputError, match="LBFGS"):
        torch.optim.LBFGS(mine.parameters()).step(lambda: torch.zeros(()))
    before = {name: p.detach().clone() for name, p in mine.theta.items()}
    assert not lpnet.synchronize(mine)
    assert all(torch.equal(p, before[name]) for name, p in mine.theta.items())


def test_the_state_of_one_rank_is_that_of_no_other(comm: Comm) -> None:
    """Others refuse it, and nobody waits for them; that of all ranks is everyone's."""
    net, other, y = made(comm), nn.Sequential(made(comm)), normal(5, 4)
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(0.5)
    other.load_state_dict(nn.Sequential(net).state_dict())  # every rank its own
    assert torch.equal(other(y), net(y))
    state = of_rank_0(comm, nn.Sequential(net).state_dict())
    if comm.rank:
        with pytest.raises(InputError, match=r"^state dict: layers 0 to \d+ of 12 given, .*gather_state_dict\(\)"):
            other.load_state_dict(state)
    else:
        other.load_state_dict(state)
    assert torch.equal(other(y), net(y))
    whole = made(Comm())
    for state in (net.gather_state_dict(), of_rank_0(comm, net.gather_state_dict())):
        for one in (made(comm), whole):
            one.load_state_dict(state)
            assert error(one(y).detach(), net(y).detach()) < 1e-14


def test_a_trunk_of_several_ranks_is_not_pickled(comm: Comm) -> None:
    net, y = nn.Sequential(made(comm)), normal(5, 4)
    if comm.size == 1:
        assert torch.equal(pickle.loads(pickle.dumps(net))(y), net(y))
    else:
        words = rf"^pickle: layers of {comm.size} ranks given, .*gather_state_dict"
        for save in (pickle.dumps, lambda one: torch.save(one, io.BytesIO())):
            for one in (net, net[0].K):
                with pytest.raises(InputError, match=words):
                    save(one)
    for copied in (copy.deepcopy(net), copy.copy(net)):
        assert torch.equal(copied(y), net(y))
