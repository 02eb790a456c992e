"""Virtual clocks of real ranks: the results are those without clocks, and the times are those of the model."""

from typing import Any

import pytest
import torch
from reference import F64, normal
from virtual_ranks import UNEVEN, CountedComm, observed, timed_parts

import lpnet
from lpnet import MGRIT, Serial
from lpnet.cost import Work, critical_path
from lpnet.slab import Comm
from lpnet.steppers import RK4, Euler, Stepper, Verlet
from lpnet.virtual import VirtualComm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]


@pytest.mark.parametrize(
    ("stepper", "solver"),
    [
        (Euler(), Serial(1)),
        (Euler(), Serial(4)),
        (Euler(), MGRIT((3, 2), 3, cycles=1)),
        (RK4(), MGRIT(2, cycles=2, relaxation="FCF")),
        (Verlet(), MGRIT(3, cycles=1, initial="tau", tol=1e-300)),
    ],
)
def test_counted_work_is_the_model(comm: Comm, stepper: Stepper, solver: Any) -> None:
    with timed_parts():
        found = observed(CountedComm(comm, UNEVEN, stepper.memory), stepper, 29, (solver, solver))
    work = critical_path(stepper, 29, comm.size, solver, solver, UNEVEN)
    assert Work(found.times[0], found.times[1], found.times[2] - found.times[1]) == pytest.approx(tuple(work))


def test_clocks_change_no_result(comm: Comm) -> None:
    """The same bits, of a trunk that is used as any other."""
    options = MGRIT(3, cycles=1)
    found = []
    for ranks in (comm, VirtualComm(comm)):
        trunk = lpnet.LayerParallel(
            lpnet.dynamics.Dense(4), 13, 2.0, forward=options, adjoint=options, init="random", dtype=F64, comm=ranks
        )
        y = normal(5, 4).requires_grad_()
        out = trunk(y)
        out.square().sum().backward()
        found.append([out.detach(), y.grad, *(trunk._slab.gather(p.grad) for p in trunk.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert 0 < ranks.now < 5  # type: ignore[attr-defined]
    own = ranks.now  # type: ignore[attr-defined]
    assert ranks.latest() >= own  # type: ignore[attr-defined]
