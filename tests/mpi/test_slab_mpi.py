"""What travels between ranks arrives as it was sent; sums and ownership do not depend on the number of ranks."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import F64, normal
from torch import Tensor

import lpnet
from lpnet import slab
from lpnet.slab import Comm, Slab

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]
few = settings(max_examples=15)

KINDS: dict[str, Callable[[int], Tensor]] = {
    "float64": lambda r: normal(3, 4, seed=r),
    "float32": lambda r: normal(3, 4, seed=r).float(),
    "whole": lambda r: torch.arange(6).reshape(2, 3) + r,
    "truth": lambda r: torch.arange(4) > r,
    "number": lambda r: torch.tensor(r + 0.5),
    "nothing": lambda r: torch.zeros(0, 3),
    "strided": lambda r: normal(4, 6, seed=r).T[::2],
    "gradient": lambda r: normal(3, seed=r).requires_grad_(),
}
each = pytest.mark.parametrize("kind", list(KINDS))


@each
def test_messages_arrive_in_order_and_as_they_were_when_sent(comm: Comm, kind: str) -> None:
    """Around the ring, three in a row, without anyone waiting; the sender may overwrite what it sent."""
    if comm.size == 1:
        return
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for k in range(3):
        x = KINDS[kind](comm.rank + 10 * k)
        comm.send(x, after)
        x.detach().zero_()
    for k in range(3):
        like = KINDS[kind](99)
        kept = like.detach().clone()
        found = comm.recv(like, before)
        assert torch.equal(found, KINDS[kind](before + 10 * k).detach())
        assert found.dtype == like.dtype
        assert torch.equal(like.detach(), kept)


@each
def test_receives_can_be_posted_before_anything_is_sent(comm: Comm, kind: str) -> None:
    """They are those of the messages in the order of their posts, and of the tensors that come after."""
    if comm.size == 1:
        return
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    for turn in range(2):  # with buffers that were used before
        coming = [comm.post(KINDS[kind](99), before) for _ in range(3)]
        for k in range(4):
            comm.send(KINDS[kind](comm.rank + 10 * k + turn), after)
        found = [posted.wait() for posted in coming]
        found.append(comm.recv(KINDS[kind](99), before))
        for k, x in enumerate(found):
            assert torch.equal(x, KINDS[kind](before + 10 * k + turn).detach())


@each
def test_broadcast_overwrites_in_place(comm: Comm, kind: str) -> None:
    for root in range(comm.size):
        x = KINDS[kind](comm.rank)
        found = comm.bcast_(x, root)
        assert found is x
        assert torch.equal(x.detach(), KINDS[kind](root).detach())


def test_agreement_is_the_largest(comm: Comm) -> None:
    assert comm.agree(comm.rank) == comm.size - 1
    assert comm.agree(-comm.rank) == 0
    assert comm.agree(2**40 + comm.rank) == 2**40 + comm.size - 1


@few
@given(
    st.lists(st.integers(0, 3), min_size=8, max_size=8), st.sampled_from([np.float64, np.float32, np.int64, np.uint8])
)
def test_gathered_rows_are_in_rank_order(counts: list[int], dtype: Any) -> None:
    comm = slab.world()
    counts = counts[: comm.size]
    counts[0] = max(counts[0], 1)
    rows = [
        np.full((n, 2, 3), 10 * r + 1, dtype) + np.arange(n, dtype=dtype)[:, None, None] for r, n in enumerate(counts)
    ]
    found = comm.allgather(rows[comm.rank], counts)
    np.testing.assert_array_equal(found, np.concatenate(rows))
    assert found.dtype == dtype


def test_barriers(comm: Comm) -> None:
    comm.barrier()
    comm.barrier(idle=True)


@few
@given(layers=st.integers(1, 40), unit=st.integers(1, 6), seed=st.integers(0, 99))
def test_sums_have_the_same_bits_on_any_number_of_ranks(layers: int, unit: int, seed: int) -> None:
    own, alone = Slab(layers, slab.world(), unit), Slab(layers, Comm())
    rows = normal(layers, 3, seed=seed) * 10.0 ** (10 * normal(layers, 3, seed=seed + 1))
    assert torch.equal(own.sums(rows[own.lo : own.hi]), alone.sums(rows))


@few
@given(layers=st.integers(1, 40), unit=st.integers(1, 6))
def test_gathered_layers_are_in_order(layers: int, unit: int) -> None:
    own = Slab(layers, slab.world(), unit)
    for whole in (normal(layers, 2, 3), normal(layers).float()):
        assert torch.equal(own.gather(whole[own.lo : own.hi]), whole)


def halves(comm: Comm) -> Any:
    """The ranks in two groups, with communicators of their own; None where there is nothing to split."""
    return None if comm.size == 1 else comm.mpi.Split(comm.rank % 2, comm.rank)  # type: ignore[attr-defined]


def test_a_trunk_on_a_part_of_the_ranks(comm: Comm) -> None:
    """Two groups propagate different batches at the same time, and do not hear of each other."""
    group = slab.as_comm(halves(comm)) if comm.size > 1 else comm
    assert group.size <= (comm.size + 1) // 2
    options = lpnet.MGRIT(coarsening=3, cycles=2)
    settings: dict[str, Any] = {"forward": options, "adjoint": options, "init": "random", "dtype": F64}
    found = []
    for ranks in (group, Comm()):
        trunk = lpnet.LayerParallel(lpnet.dynamics.Dense(4), 13, 2.0, comm=ranks, **settings)
        y = normal(5, 4, seed=comm.rank % 2).requires_grad_()
        out = trunk(y)
        (out.square().sum() + lpnet.regularizers.TimeDerivative(trunk, 1.0)()).backward()
        found.append([out.detach(), y.grad, *(trunk._slab.gather(p.grad) for p in trunk.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)


def test_messages_of_two_communicators_do_not_meet(comm: Comm) -> None:
    if comm.size == 1:
        return
    other = slab.as_comm(comm.mpi)  # type: ignore[attr-defined]
    after, before = (comm.rank + 1) % comm.size, (comm.rank - 1) % comm.size
    comm.send(torch.tensor([1.0]), after)
    other.send(torch.tensor([2.0]), after)
    assert other.recv(torch.zeros(1), before).item() == 2.0
    assert comm.recv(torch.zeros(1), before).item() == 1.0
