"""What goes wrong goes wrong on all ranks alike, and is answered by all of them in the same way."""

import math

import pytest
import torch
from poison import poison
from reference import F64, error, normal
from resumption import Told
from small_runs import network

import lpnet
from lpnet import MGRIT, Serial
from lpnet.slab import Comm
from lpnet.training import trouble
from lpnet.training.loop import fit

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]


@pytest.mark.parametrize("layers", [7, 64])
def test_cycles_that_diverge_are_replaced_on_all_ranks(comm: Comm, layers: int) -> None:
    """Output and cotangent of the input are those of the exact chain, bit for bit, and the gradients to rounding."""
    found = []
    for solver in (MGRIT(coarsening=2 if layers == 7 else 8, cycles=1), Serial()):
        trunk = lpnet.LayerParallel(
            lpnet.dynamics.Dense(4), layers, 20.0, forward=solver, adjoint=solver, seed=1, init="random", dtype=F64,
            comm=comm,
        )  # fmt: skip
        with torch.no_grad():
            for p in trunk.parameters():
                p.mul_(4.0)
        y = normal(5, 4).requires_grad_()
        out = trunk(y)
        out.square().sum().backward()
        found.append([out, y.grad, *(trunk.grid.gather(p.grad) for p in trunk.parameters())])
        assert trunk.info.forward is not None
        assert trunk.info.forward.diverged == isinstance(solver, MGRIT)
    assert all(torch.equal(a, b) for a, b in zip(found[0][:2], found[1][:2], strict=True))
    for a, b in zip(found[0][2:], found[1][2:], strict=True):
        assert error(a, b) < 1e-14  # slabs are cut elsewhere


def test_the_first_layer_is_named_with_its_rank(comm: Comm) -> None:
    """By all ranks alike: of weights, of states that overflow, and of gradients from behind."""
    net, data = network("--run.dtype=float32", "--trunk.activation=relu", "--trunk.dynamics=dense", comm=comm)
    trunk, owner = net.trunk, net.trunk._slab.owner
    net(data.train_x).square().sum().backward()

    def put(tensor: torch.Tensor | None, first: int, last: int, value: float) -> None:
        assert tensor is not None
        with torch.no_grad():
            for row, layer in enumerate(trunk.local_layers):
                if first <= layer <= last:
                    tensor[row] = value

    put(trunk.K.grad, 1, 3, math.nan)
    gradient = f"the gradient of layer 3 (rank {owner(3)}) is not finite, the first one on the way back"
    assert trouble.whereabouts(net, data.train_x) == gradient
    put(trunk.K, 5, 8, 3e38)
    put(trunk.b, 5, 8, 3e38)
    assert trouble.whereabouts(net, data.train_x) == f"the state behind layer 5 (rank {owner(5)}) is not finite"
    put(trunk.b, 6, 7, math.inf)
    assert trouble.whereabouts(net, data.train_x) == f"the weights of layer 6 (rank {owner(6)}) are not finite"


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_steps_are_taken_back_on_all_ranks(comm: Comm, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("--training.on_nan=rollback", f"--optimizer.name={name}", "--training.batch=null", "--training.steps=5")
    runs = []
    for ranks in (comm, Comm()):
        poison(monkeypatch, 3, 4)
        net, data = network(*given, comm=ranks)
        log = Told()
        runs.append((log.records, fit(net, data, log)["rollbacks"]))
    (mine, back), (one, alone) = runs
    assert back == alone == 2
    for a, b in zip(mine, one, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)
        assert a["lr"] == b["lr"]
