"""Virtual clocks of ranks: the rules, by clocks that are set by hand and ranks that are threads."""

import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lpnet.crew import Crew
from lpnet.errors import InputError
from lpnet.fabrics import Fabric
from lpnet.slab import Comm
from lpnet.virtual import VirtualComm

FABRIC = Fabric("slow", 0.5, 64.0)
X = torch.zeros(16, dtype=torch.float64)  # 128 bytes: 2 seconds


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def on(ranks: int, what: Callable[[VirtualComm, Hand], Any]) -> list[Any]:
    """What each rank returns."""

    def rank(comm: Comm) -> Any:
        hand = Hand()
        return what(VirtualComm(comm, FABRIC, hand), hand)

    return Crew(ranks).run(rank)


def test_a_message_makes_the_receiver_wait() -> None:
    """By hop = 0.5 + 2 after it was sent; not where the receiver has computed longer than that."""

    def rank(comm: VirtualComm, hand: Hand) -> float:
        hand.time += 1.0 + comm.rank
        if comm.rank:
            comm.recv(X, comm.rank - 1)
        hand.time += 1.0
        if comm.rank + 1 < comm.size:
            comm.send(X, comm.rank + 1)
        hand.time += 0.25
        return comm.now

    assert on(3, rank) == [2.25, max(2.0, 2.0 + 2.5) + 1.25, max(3.0, 5.5 + 2.5) + 1.25]


def test_messages_of_one_rank_keep_their_own_stamps() -> None:
    """Sent at 1 and at 2; the first one is received late, the second one waited for."""

    def rank(comm: VirtualComm, hand: Hand) -> list[float]:
        found = []
        for k in range(2):
            hand.time += 1.0 if comm.rank == 0 else 3.75 * (1 - k)
            if comm.rank == 0:
                comm.send(X + k, 1)
            else:
                assert comm.recv(X, 0)[0] == k
            found.append(comm.now)
        return found

    assert on(2, rank) == [[1.0, 2.0], [3.75, 4.5]]


@pytest.mark.parametrize(
    ("call", "takes"),
    [
        (lambda comm: comm.barrier(), 1.0),
        (lambda comm: comm.agree(comm.rank), 1.0 + 24 * 2 / 3 / 64),
        (lambda comm: comm.allgather(np.zeros((1, 8)), [1] * 3), 1.0 + 192 * 2 / 3 / 64),
        (lambda comm: comm.bcast_(X.clone(), 1), 2 * 2.5),
    ],
)
def test_collectives_end_after_the_last_rank_has_come(call: Callable[[VirtualComm], Any], takes: float) -> None:
    def rank(comm: VirtualComm, hand: Hand) -> float:
        hand.time += 4.0 * comm.rank
        call(comm)
        return comm.now

    assert on(3, rank) == [8.0 + takes] * 3


def test_what_is_done_inside_is_not_counted() -> None:
    """The clock goes on in the communicator, as it does where a rank spins for a message."""

    def rank(comm: VirtualComm, hand: Hand) -> float:
        send = comm.inside.send

        def slow(x: torch.Tensor, to: int) -> None:
            hand.time += 10.0
            send(x, to)

        comm.inside.send = slow  # type: ignore[method-assign]
        comm.send(X, comm.rank)
        return comm.now

    assert on(1, rank) == [0.0]


def test_reset_and_latest() -> None:
    def rank(comm: VirtualComm, hand: Hand) -> list[float]:
        hand.time += 1.0 + comm.rank
        found = [comm.latest(), comm.now]
        comm.reset()
        hand.time += 0.5
        return [*found, comm.now]

    assert on(2, rank) == [[2.0, 1.0, 0.5], [2.0, 2.0, 0.5]]


def test_a_rank_that_sleeps_does_not_compute() -> None:
    comm = VirtualComm(Comm())
    comm.reset()
    time.sleep(0.1)
    assert comm.now < 0.05
    busy = time.thread_time()
    while time.thread_time() - busy < 0.01:
        pass
    assert comm.now >= 0.01


def test_work_of_other_threads_is_warned_of() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.warns(UserWarning, match="lpnet: virtual clock counts 1 of 2 threads"):
            VirtualComm(Comm())
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            VirtualComm(Comm(), clock=time.perf_counter)
            torch.set_num_threads(1)
            VirtualComm(Comm())
    finally:
        torch.set_num_threads(threads)


def test_fabrics_are_known_by_name() -> None:
    assert VirtualComm(Comm(), "ethernet").fabric.name == "ethernet"
    with pytest.raises(InputError, match="fabric: 'rope' given"):
        VirtualComm(Comm(), "rope")
    with pytest.raises(InputError, match="clock: 3 given"):
        VirtualComm(Comm(), clock=3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="comm: 'two' given"):
        VirtualComm("two")
