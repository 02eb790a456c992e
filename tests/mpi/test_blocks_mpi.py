"""Block methods on several ranks take the steps that they take on one."""

from typing import Any

import numpy as np
import pytest
import torch
from blocks import LABEL, X, network, penalties
from torch import nn

from lpnet import MGRIT, Serial
from lpnet.optim import BlockCoordinateDescent, VariableProjection
from lpnet.slab import Comm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]


def whole(net: nn.Sequential) -> np.ndarray:
    """All weights; collective."""
    parts = [*net[0].parameters(), *net[1].gather_state_dict().values(), *net[2].parameters()]
    return torch.cat([t.detach().flatten() for t in parts]).numpy()


@pytest.mark.parametrize(
    ("method", "solver"),
    [(VariableProjection, MGRIT(coarsening=3, cycles=1)), (BlockCoordinateDescent, Serial())],
    ids=["varpro", "bcd"],
)
def test_the_steps_are_those_of_one_rank(method: Any, solver: Any, comm: Comm) -> None:
    runs = []
    for ranks in (comm, Comm()):
        net = network(7, ranks, forward=solver, adjoint=solver)
        optimizer = method(net, penalties(net), lr=4.0)
        runs.append(([optimizer.step_on(X, LABEL) for _ in range(3)], whole(net)))
    (mine, theta), (alone, twin) = runs
    for one, other in zip(mine, alone, strict=True):
        counts = [(r.pcg.iterations, r.pcg.stop, r.evaluations, r.accepted, r.fell_back, r.work) for r in (one, other)]
        assert counts[0] == counts[1]
        np.testing.assert_allclose(*[(r.before, r.after, r.step) for r in (one, other)], rtol=1e-10)
    assert sum(r.evaluations for r in mine) > len(mine)  # the searches had something to decide
    np.testing.assert_allclose(theta, twin, rtol=1e-8, atol=1e-10)
