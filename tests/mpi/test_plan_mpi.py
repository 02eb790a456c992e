"""All ranks return the same plan, and for given costs that of one rank."""

import hashlib
from typing import Any

import numpy as np
import pytest
import torch
from reference import KINDS, normal, trunk
from torch import Tensor

from lpnet import InputError, Serial, slab
from lpnet.cost import Costs
from lpnet.plan import Plan, plan
from lpnet.slab import Comm

pytestmark = pytest.mark.mpi
WIDTH = 4
CPU = Costs(fine=1.0, pull=0.4, gradient=0.4, batched=0.9, latency=0.3, message=0.1, fixed=0.2, overhead=0.5)


def same_everywhere(found: Plan, comm: Comm) -> bool:
    """All of it, to the last bit."""
    digest = np.frombuffer(hashlib.sha256(repr(found).encode()).digest(), dtype=np.uint8)[None]
    rows = comm.allgather(digest, [1] * comm.size)
    return bool((rows == rows[0]).all())


def loss(y: Tensor) -> Tensor:
    return y.square().sum()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("layers", "tol"), [(2, 0.1), (37, 0.1), (37, 1e-3), (64, 1e-2)])
def test_given_costs_give_the_plan_of_one_rank(kind: str, layers: int, tol: float, comm: Comm) -> None:
    plans = [plan(trunk(kind, layers, comm=c), normal(6, WIDTH), tol, 8, loss, CPU) for c in (comm, Comm())]
    assert same_everywhere(plans[0], comm)
    many, one = plans
    assert (many.forward, many.adjoint, many.ranks, many.predicted) == (one.forward, one.adjoint, 8, one.predicted)
    assert many.gradient_error == pytest.approx(one.gradient_error, rel=1e-6, abs=1e-13)


@pytest.mark.parametrize("plan_ranks", [None, 16])
def test_measured_costs_give_the_same_plan_on_all_ranks(plan_ranks: Any, comm: Comm, monkeypatch: Any) -> None:
    monkeypatch.setattr("lpnet.calibration.SECONDS", 0.05)
    net = trunk("dense", 40, comm=comm)
    found = plan(net, normal(6, WIDTH), 0.05, plan_ranks)
    assert same_everywhere(found, comm)
    assert found.ranks == (plan_ranks or comm.size)
    net.steer(Serial(), Serial(), None)
    assert torch.isfinite(net(normal(6, WIDTH))).all()


def test_bad_input_is_refused_on_all_ranks() -> None:
    with pytest.raises(InputError, match="gradient_tol: 2 given"):
        plan(trunk("dense", 8, comm=slab.world()), normal(6, WIDTH), 2)
