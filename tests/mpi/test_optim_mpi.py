"""L-BFGS on several ranks is L-BFGS on one: the same steps, losses, decisions, and inner products bit for bit."""

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from descent import closure_of, fitting, network
from reference import F64, error, normal
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, Serial
from lpnet.optim import LBFGS, Armijo, vector
from lpnet.sharded import slab_of
from lpnet.slab import Comm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]


def made(layers: int, solver: Any, comm: Comm) -> nn.Sequential:
    net = network(layers, comm)
    net[1].steer(solver, solver, None)
    return net


def whole(net: nn.Sequential, optimizer: LBFGS) -> list[Tensor]:
    """All layers' weights, and whatever the optimizer keeps of them; collective."""
    found = []
    for p in net.parameters():
        slab = slab_of(p)
        kept = [p.detach(), *(t for _, t in sorted(optimizer.state[p].items()))]
        found += kept if slab is None else [slab.gather(t) for t in kept]
    return found


@pytest.mark.parametrize("layers", [1, 2, 7, 13])
@pytest.mark.parametrize("solver", [Serial(), Serial(2), MGRIT(coarsening=3, cycles=1)])
def test_the_steps_are_those_of_one_rank(layers: int, solver: Any, comm: Comm) -> None:
    runs = []
    for ranks in (comm, Comm()):
        net = made(layers, solver, ranks)
        optimizer, loss = LBFGS(net.parameters(), lr=3.0, memory=4), fitting(net)
        losses, reports = [], []
        for _ in range(8):
            losses.append(optimizer.step(closure_of(optimizer, loss), loss))
            reports.append(optimizer.report)
        runs.append((losses, reports, whole(net, optimizer)))
    (losses, reports, mine), (alone, expected, twin) = runs
    np.testing.assert_allclose(losses, alone, rtol=1e-10)
    for one, other in zip(reports, expected, strict=True):
        assert one.step == pytest.approx(other.step, rel=1e-10)
        counts = [(r.evaluations, r.accepted, r.pairs, r.skipped) for r in (one, other)]
        assert counts[0] == counts[1]
    assert sum(r.evaluations for r in reports) > len(reports)  # the searches had something to decide
    for a, b in zip(mine, twin, strict=True):
        assert (a - b).norm() <= 1e-8 * b.norm() + 1e-13
    if isinstance(solver, Serial):
        assert all(b < a for a, b in itertools.pairwise(losses))


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(("layers", "width"), [(1, 4), (5, 4), (3, 190), (29, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.usefixtures("threads")
def test_inner_products_have_the_same_bits_on_any_number_of_ranks(
    layers: int, width: int, dtype: torch.dtype, comm: Comm
) -> None:
    found = []
    for ranks in (comm, Comm()):
        trunk = lpnet.LayerParallel(lpnet.dynamics.Dense(width), layers, 1.0, comm=ranks, dtype=dtype)
        theta = [nn.Parameter(torch.zeros(40_000, dtype=dtype)), *trunk.parameters(), nn.Parameter(torch.zeros(()))]
        vectors = []
        for seed in range(3):
            v = [normal(p.numel(), seed=seed, dtype=dtype).reshape(p.shape) for p in theta]
            for i, p in enumerate(theta):
                if slab_of(p) is not None:
                    rows = [normal(*p.shape[1:], seed=100 * j + seed, dtype=dtype) for j in trunk.local_layers]
                    v[i] = torch.stack(rows) if rows else p.detach()
            vectors.append(v)
        found.append(vector.dots(theta, list(itertools.combinations_with_replacement(vectors, 2))).tolist())
    assert found[0] == found[1]


def test_ranks_whose_replicas_have_drifted_decide_alike(comm: Comm) -> None:
    """By so much that every rank would decide by itself in another way."""
    net = made(9, Serial(), comm)
    with torch.no_grad():
        net[2].weight *= 1 + 0.5 * comm.rank
    optimizer, loss = LBFGS(net.parameters(), lr=4.0, search=Armijo(decrease=0.3)), fitting(net)
    for _ in range(8):
        optimizer.step(closure_of(optimizer, loss), loss)
        report = optimizer.report
        row = np.array([[report.step, report.evaluations, report.accepted, report.pairs, report.skipped]])
        everyone = comm.allgather(row.astype(np.float64), [1] * comm.size)
        assert (everyone == everyone[0]).all()


def test_a_run_goes_on_with_another_number_of_ranks(comm: Comm) -> None:
    net, alone = (made(11, Serial(), ranks) for ranks in (comm, Comm()))
    optimizer, resumed = (LBFGS(one.parameters(), memory=3) for one in (net, alone))
    loss = fitting(net)
    for _ in range(6):
        optimizer.step(closure_of(optimizer, loss), loss)
    state = copy.deepcopy(optimizer.state_dict())
    for i, p in enumerate(net.parameters()):
        slab = slab_of(p)
        if slab is not None:
            state["state"][i] = {name: slab.gather(t) for name, t in state["state"][i].items()}
    trunk = {f"1.{name}": value for name, value in net[1].gather_state_dict().items()}
    alone.load_state_dict({**net.state_dict(), **trunk})
    resumed.load_state_dict(state)
    for _ in range(4):
        losses = [o.step(closure_of(o, fitting(n)), fitting(n)) for o, n in ((optimizer, net), (resumed, alone))]
        assert losses[0] == pytest.approx(losses[1], rel=1e-10)
        assert optimizer.report.evaluations == resumed.report.evaluations
        assert optimizer.report.pairs == resumed.report.pairs == 3
    for a, b in zip(whole(net, optimizer), whole(alone, resumed), strict=True):
        assert error(a, b) < 1e-7
