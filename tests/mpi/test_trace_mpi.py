"""Traces of several ranks: one file, a row for each, and what messages say of time."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from reference import F64, normal
from tracing import check_format, events_of, rows_of

import lpnet
from lpnet import MGRIT, Serial, launch, slab
from lpnet.trace import recording
from lpnet.trace.alignment import aligned
from lpnet.virtual import VirtualComm

pytestmark = pytest.mark.mpi


def gradient(comm: slab.Comm, solver: lpnet.options.SolverOptions) -> torch.Tensor:
    trunk = lpnet.LayerParallel(
        lpnet.dynamics.Dense(3), 20, 1.0, forward=solver, adjoint=solver, init="random", dtype=F64, comm=comm
    )
    trunk(normal(4, 3)).square().sum().backward()
    return torch.cat([p.grad.flatten() for p in trunk.parameters() if p.grad is not None])


@pytest.mark.filterwarnings("ignore:lpnet")
@pytest.mark.parametrize("solver", [MGRIT((2, 2), 3, cycles=1), Serial(2)])
@pytest.mark.parametrize("modelled", [False, True])
def test_a_row_a_rank(comm: slab.Comm, tmp_path: Path, solver: lpnet.options.SolverOptions, modelled: bool) -> None:
    path = Path(launch.share(comm, str(tmp_path))) / "trace.json"
    ranks = VirtualComm(comm) if modelled else comm
    before = gradient(ranks, solver)
    with recording(path, ranks):
        found = gradient(ranks, solver)
    assert torch.equal(found, before)
    assert ranks.observer is None
    events = events_of(path)
    check_format(events, comm.size)
    chain = isinstance(solver, Serial)
    for row in rows_of(events).values():
        names = {event["name"] for event in row}
        assert names >= {"forward", "adjoint", "weights", "broadcast"} - ({"broadcast"} if comm.size == 1 else set())
        assert names >= ({"layers"} if chain else {"sweep", "chain", "cycle", "linearize", "pull, gradients"})
    arrows = [{e["id"]: e["ts"] for e in events if e["ph"] == kind} for kind in "sf"]
    assert arrows[0] or comm.size == 1
    assert all(arrows[1][key] > begin for key, begin in arrows[0].items())
    comm.barrier()


def test_clocks_are_aligned(comm: slab.Comm) -> None:
    """Whatever they show: the begin is the same moment on all ranks, which share a clock here."""
    shift = 1000.0 * comm.rank
    found = aligned(comm, lambda: time.perf_counter() + shift)
    row = np.array([[found.origin - shift, found.error]])
    begins, errors = comm.allgather(row, [1] * comm.size).T
    assert (np.abs(begins - begins[0]) <= errors + 1e-9).all()
    assert errors[0] == 0
    assert (errors < 1).all()


@pytest.mark.filterwarnings("ignore:lpnet")
def test_a_failure_leaves_no_observer(comm: slab.Comm, tmp_path: Path) -> None:
    path = Path(launch.share(comm, str(tmp_path))) / "trace.json"
    with pytest.raises(ZeroDivisionError), recording(path, comm):
        _ = 1 / 0
    assert comm.observer is None
    with pytest.raises(lpnet.InputError, match="path: "), recording(path / "no" / "folder", comm):
        pass
    with pytest.raises(lpnet.InputError, match="one recording at a time"), recording(path, comm), recording(path, comm):
        pass
    assert not path.exists()
