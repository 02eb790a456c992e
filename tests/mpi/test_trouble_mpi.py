"""What goes wrong goes wrong on all ranks alike, and is answered by all of them in the same way."""

import pytest
import torch
from reference import F64, error, normal

import lpnet
from lpnet import MGRIT, Serial
from lpnet.slab import Comm

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
