"""The outlook on a trunk is the same on every rank, and one rank speaks."""

import warnings

import pytest
import torch
from reference import normal, trunk, twin

from lpnet.slab import Comm
from lpnet.stability import norms

pytestmark = pytest.mark.mpi


@pytest.mark.parametrize("layers", [2, 20])
def test_one_warning_of_all_ranks(comm: Comm, layers: int) -> None:
    """The one layer that is beyond the limit lies on the last rank with layers."""
    made, alone = trunk("hamiltonian", layers, comm=comm), twin("hamiltonian", layers)
    with torch.no_grad():
        for j, row in enumerate(made.local_layers):
            made.theta["K"][j] *= 40.0 if row == layers - 1 else 1e-3
        alone.theta["K"] *= 1e-3
        alone.theta["K"][-1] *= 40e3
    found, expected = (one._outlook({n: p.detach() for n, p in one.theta.items()}, norms) for one in (made, alone))
    assert found is not None
    assert expected is not None
    assert found.layer == expected.layer == layers - 1
    assert (found.value, found.growth) == pytest.approx((expected.value, expected.growth), rel=1e-10)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            made(normal(3, 4))
    assert len(caught) == (comm.rank == 0)
