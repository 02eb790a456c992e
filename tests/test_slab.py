"""Laws of ownership, and of the serial twin of the communicator."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import normal

from lpnet import slab
from lpnet.slab import Comm, Slab, partition

LAYERS, RANKS, UNITS = st.integers(1, 400), st.integers(1, 64), st.integers(1, 40)


class Rank(Comm):
    """One of several ranks, without the others."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@given(layers=LAYERS, ranks=RANKS, unit=UNITS)
def test_slabs_are_contiguous_and_cover_all_layers(layers: int, ranks: int, unit: int) -> None:
    starts = partition(layers, ranks, unit)
    assert len(starts) == ranks + 1
    assert (starts[0], starts[-1]) == (0, layers)
    assert all(a <= b for a, b in pairwise(starts))


@given(layers=LAYERS, ranks=RANKS, unit=UNITS)
def test_slabs_are_balanced(layers: int, ranks: int, unit: int) -> None:
    starts = partition(layers, ranks, unit)
    counts = [b - a for a, b in pairwise(starts)]
    if -(-layers // unit) >= ranks:
        assert all(s % unit == 0 for s in starts[:-1])
        units = [-(-n // unit) for n in counts]
        assert min(units) >= 1
        assert max(units) - min(units) <= 1
    else:
        busy = [n for n in counts if n]
        assert len(busy) == min(layers, ranks)
        assert max(busy) - min(busy) <= 1


@given(layers=LAYERS, ranks=RANKS, unit=UNITS)
def test_everybody_knows_every_owner(layers: int, ranks: int, unit: int) -> None:
    slabs = [Slab(layers, Rank(r, ranks), unit) for r in range(ranks)]
    for one in (slabs[0], slabs[-1]):
        for r, other in enumerate(slabs):
            assert all(one.owner(j) == r for j in (other.lo, other.hi - 1) if other.lo < other.hi)
        assert one.counts == [other.hi - other.lo for other in slabs]
        assert (one.first, one.last) == (one.owner(0), one.owner(layers - 1))


def test_the_twin_is_one_rank_that_talks_to_nobody() -> None:
    comm = Comm()
    x = normal(3, 2)
    assert (comm.rank, comm.size) == (0, 1)
    assert comm.bcast_(x, 0) is x
    assert comm.agree(7) == 7
    np.testing.assert_array_equal(comm.allgather(x.numpy(), [3]), x.numpy())
    comm.barrier()
    comm.barrier(idle=True)
    with pytest.raises(RuntimeError, match="single rank"):
        comm.send(x, 0)
    with pytest.raises(RuntimeError, match="single rank"):
        comm.recv(x, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sums_are_taken_in_float64_and_in_layer_order(dtype: torch.dtype) -> None:
    rows = torch.tensor([[1e16, 1.0], [1.0, 1e-20], [-1e16, 2.0]], dtype=torch.float64).to(dtype)
    found = Slab(3, Comm()).sums(rows)
    expected = ((rows[0].double() + rows[1].double()) + rows[2].double()).tolist()
    assert found.dtype == torch.float64
    assert found.tolist() == expected
    assert Slab(3, Comm()).sums(rows[[0, 2, 1]]).tolist() != expected  # the order is seen


def test_gather_copies() -> None:
    local = normal(4, 2, 3).requires_grad_()
    found = Slab(4, Comm()).gather(local)
    assert torch.equal(found, local.detach())
    assert not found.requires_grad
    found.zero_()  # on one rank as on many
    assert local.detach().any()


@pytest.mark.parametrize(
    ("variable", "name"),
    [("PMI_RANK", "PMI"), ("PMIX_RANK", "PMIx"), ("OMPI_COMM_WORLD_RANK", "Open MPI"), ("SHELL", None)],
)
def test_launcher_is_known_by_its_variable(monkeypatch: Any, variable: str, name: str | None) -> None:
    for known in slab._LAUNCHERS:
        monkeypatch.delenv(known, raising=False)
    monkeypatch.setenv(variable, "0")
    assert slab.launcher() == name


def test_a_comm_is_taken_as_it_is() -> None:
    comm = Comm()
    assert slab.as_comm(comm) is comm
    assert slab.as_comm(None) is slab.world()
    assert slab.world() is slab.world()
