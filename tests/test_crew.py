"""Ranks that are threads: one works at a time, messages arrive, and a failure ends all."""

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch

import lpnet
from lpnet import MGRIT
from lpnet.crew import Crew, ThreadComm
from lpnet.errors import InputError
from lpnet.slab import Comm


@pytest.mark.parametrize("ranks", [1, 2, 7])
def test_messages_and_collectives(ranks: int) -> None:
    def rank(comm: ThreadComm) -> list[float]:
        for k in range(3):
            x = torch.full((2,), comm.rank + 10.0 * k)
            comm.send(x, (comm.rank + 1) % comm.size)
            x.zero_()
        before = (comm.rank - 1) % comm.size
        coming = [comm.post(torch.zeros(2), before) for _ in range(3)]
        assert [posted.wait()[0].item() for posted in coming] == [before, before + 10, before + 20]
        comm.barrier()
        rows = comm.allgather(np.full((comm.rank, 2), comm.rank), list(range(comm.size)))
        assert rows[:, 0].tolist() == [r for r in range(comm.size) for _ in range(r)]
        return [comm.bcast_(torch.tensor(float(comm.rank)), comm.size - 1).item(), comm.agree(-comm.rank)]

    assert Crew(ranks).run(rank) == [[ranks - 1, 0]] * ranks


def test_one_works_at_a_time() -> None:
    working = [0]

    def rank(comm: ThreadComm) -> None:
        for _ in range(5):
            working[0] += 1
            time.sleep(1e-3)
            assert working[0] == 1
            working[0] -= 1
            comm.barrier()

    Crew(4).run(rank)


@pytest.mark.parametrize("waiting", ["recv", "barrier"])
def test_a_failure_ends_all_and_is_told(waiting: str) -> None:
    def rank(comm: ThreadComm) -> None:
        if comm.rank == 1:
            raise KeyError("rank 1")
        if waiting == "recv":
            comm.recv(torch.zeros(1), 1)
        comm.barrier()

    with pytest.raises(KeyError, match="rank 1"):
        Crew(3).run(rank)
    assert threading.active_count() < 10


@pytest.mark.parametrize("size", [0, -1, 1.5, "x", True])
def test_a_crew_has_at_least_one_rank(size: Any) -> None:
    with pytest.raises(InputError, match=f"size: {size!r} given"):
        Crew(size)


def test_a_message_of_another_shape_is_an_error() -> None:
    def rank(comm: ThreadComm) -> None:
        comm.send(torch.zeros(2), 0)
        comm.recv(torch.zeros(3), 0)

    with pytest.raises(RuntimeError, match=r"\(3,\) awaited, \(2,\) came from 0"):
        Crew(1).run(rank)


def test_a_trunk_has_the_same_gradient_on_any_crew() -> None:
    options = MGRIT((3, 2), 3, cycles=1)

    def gradient(comm: Comm) -> list[torch.Tensor]:
        trunk = lpnet.LayerParallel(
            lpnet.dynamics.Dense(3), 23, 2.0, forward=options, adjoint=options, init="random", comm=comm
        ).double()
        y = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3).requires_grad_()
        trunk(y).square().sum().backward()
        return [y.grad, *(trunk._slab.gather(p.grad) for p in trunk.parameters())]

    alone = gradient(Comm())
    for found in Crew(5).run(gradient):
        for a, b in zip(found, alone, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
