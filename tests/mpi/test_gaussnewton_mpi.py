"""Gauss–Newton on several ranks takes the steps of one: the same counts, the same weights to rounding."""

from typing import Any

import numpy as np
import pytest
import torch
from descent import flat
from reference import normal, trunk
from test_optim_problem import LABEL, chain

import lpnet
from lpnet import MGRIT, Adaptive, Controls
from lpnet.oneshot import OneShot
from lpnet.optim import DCT, GaussNewton, vector
from lpnet.regularizers import Tikhonov, TimeDerivative
from lpnet.sharded import slab_of
from lpnet.slab import Comm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]


CYCLES = MGRIT(coarsening=3, cycles=0)
CONTROL = {"T": 5.0, "forward": CYCLES, "adjoint": CYCLES, "control": Adaptive(0.1, every=2)}


@pytest.mark.parametrize(("layers", "more"), [(7, {}), (7, {"controls": Controls(4)}), (24, CONTROL)])
def test_the_steps_are_those_of_one_rank(layers: int, more: dict[str, Any], comm: Comm) -> None:
    runs = []
    for ranks in (comm, Comm()):
        net = chain(layers, ranks, **more)
        gn = GaussNewton(net, lr=2.0, penalties=[Tikhonov(net[1], 1e-2), TimeDerivative(net[1], 1e-2)])
        reports = [gn.step_on(normal(6, 2), LABEL) for _ in range(4)]
        weights = [p.detach() if slab_of(p) is None else slab_of(p).gather(p) for p in net.parameters()]
        runs.append((reports, weights))
    (reports, mine), (expected, twin) = runs
    for one, other in zip(reports, expected, strict=True):
        counts = [(r.pcg.iterations, r.pcg.stop, r.evaluations, r.accepted, r.fell_back, r.work) for r in (one, other)]
        assert counts[0] == counts[1]
        values = [(r.before, r.after, r.step, r.gradient_norm) for r in (one, other)]
        np.testing.assert_allclose(*values, rtol=1e-8)
    assert sum(r.evaluations for r in reports) > len(reports)
    np.testing.assert_allclose(flat(mine), flat(twin), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("layers", [1, 2, 11])
@pytest.mark.parametrize("width", [1, 3])
def test_the_preconditioner_is_that_of_one_rank(layers: int, width: int, comm: Comm) -> None:
    whole = [normal(layers, width, width), normal(layers, width, seed=1)]
    one, alone = (trunk("dense", layers, width=width, comm=ranks) for ranks in (comm, Comm()))
    mine = slice(one._slab.lo, one._slab.hi)
    found = DCT(one, 0.3, 0.1).apply([t[mine] for t in whole])
    expected = DCT(alone, 0.3, 0.1).apply(whole)
    for t, s in zip(found, expected, strict=True):
        np.testing.assert_allclose(t, s[mine], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("layers", "columns"), [(1, 3), (5, 1), (7, 10)])
def test_columns_and_layers(layers: int, columns: int, comm: Comm) -> None:
    slab = lpnet.slab.Slab(layers, comm)
    whole = normal(layers, columns)
    local = whole[slab.lo : slab.hi]
    share = slab.to_columns(local)
    cuts = lpnet.slab.partition(columns, comm.size)
    assert torch.equal(share, whole[:, cuts[comm.rank] : cuts[comm.rank + 1]])
    assert torch.equal(slab.to_layers(share, columns), local)


def test_the_largest_entry_is_that_of_all_ranks(comm: Comm) -> None:
    one = trunk("dense", 5, comm=comm)
    v = [torch.full_like(p, float(comm.rank)) for p in one.parameters()]
    busy = max(r for r, n in enumerate(one._slab.counts) if n)
    assert vector.largest(list(one.parameters()), v) == busy
    bad = [torch.full_like(t, np.nan) if comm.rank == 0 else t for t in v]
    assert np.isnan(vector.largest(list(one.parameters()), bad))


def test_one_shot_steps_are_those_of_one_rank(comm: Comm) -> None:
    """By MGRIT, so that the linearised solves are in parallel."""
    solver = lpnet.MGRIT(coarsening=3, cycles=1)
    runs = []
    for ranks in (comm, Comm()):
        net = chain(13, ranks, forward=solver, adjoint=solver)
        gn = GaussNewton(net, penalties=[Tikhonov(net[1], 1e-2)])
        run, found = OneShot(net, gn), []
        for _ in range(3):
            loss = run.step(normal(6, 2), LABEL).loss
            assert gn.report is not None
            found.append((loss, gn.report))
        runs.append(found)
    for (loss, one), (alone, other) in zip(*runs, strict=True):
        assert loss == pytest.approx(alone, rel=1e-8)
        assert one.after == pytest.approx(other.after, rel=1e-7)
        counts = [(r.pcg.iterations, r.pcg.stop, r.evaluations, r.fell_back) for r in (one, other)]
        assert counts[0] == counts[1]
