"""Nonlinear conjugate gradients on several ranks take the steps of one."""

from typing import Any

import numpy as np
import pytest
from descent import closure_of, fitting, flat, network

from lpnet.optim import Armijo, NonlinearCG, Wolfe
from lpnet.sharded import slab_of
from lpnet.slab import Comm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]


@pytest.mark.parametrize("layers", [2, 7])
@pytest.mark.parametrize("search", [Wolfe(), Armijo(decrease=0.3)])
def test_the_steps_are_those_of_one_rank(layers: int, search: Any, comm: Comm) -> None:
    runs = []
    for ranks in (comm, Comm()):
        net = network(layers, ranks)
        optimizer, loss = NonlinearCG(net.parameters(), lr=3.0, search=search), fitting(net)
        reports = []
        for _ in range(8):
            optimizer.step(closure_of(optimizer, loss), loss)
            reports.append(optimizer.report)
        weights = [p.detach() if slab_of(p) is None else slab_of(p).gather(p) for p in net.parameters()]
        runs.append((reports, weights))
    (reports, mine), (expected, twin) = runs
    assert [(r.evaluations, r.accepted, r.beta > 0) for r in reports] == [
        (r.evaluations, r.accepted, r.beta > 0) for r in expected
    ]
    np.testing.assert_allclose([r.step for r in reports], [r.step for r in expected], rtol=1e-9)
    assert sum(r.evaluations for r in reports) > len(reports)
    np.testing.assert_allclose(flat(mine), flat(twin), rtol=1e-8, atol=1e-10)
