"""The clocks of the ranks against that of rank 0.

All ranks exchange their clocks: rank r sends s_r and has heard of all others at e_r, each by its own clock. What is
sent comes before it is heard of, so the offset of clock r against clock 0 is bounded,

    s_r − e_0  ≤  offset_r  ≤  e_r − s_0,

and by the closest of some exchanges it is known within about the time of a message. Where 0 is possible it is taken:
the ranks of a node share their clock.

Source: Mills, Internet Time Synchronization: The Network Time Protocol (1991), section 4 (bounds by round trips).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from lpnet.slab import Comm

EXCHANGES = 16


class Alignment(NamedTuple):
    """Of this rank's clock.

    Attributes:
        origin: what this clock showed at the begin, which is the same moment on all ranks.
        error: seconds by which it may be wrong.
    """

    origin: float
    error: float


def aligned(comm: Comm, clock: Callable[[], float]) -> Alignment:
    """The begin by this rank's clock; collective."""
    times = np.zeros((1, EXCHANGES, 2))
    comm.barrier()
    for k in range(EXCHANGES):
        times[0, k, 0] = clock()
        comm.allgather(times[:, k, 0], [1] * comm.size)
        times[0, k, 1] = clock()
    table = comm.allgather(times, [1] * comm.size)
    return offset_of(comm.rank, table)


def offset_of(rank: int, table: np.ndarray) -> Alignment:
    """From the exchanges of all ranks: (P, exchanges, 2), when each sent and when it had heard of all others."""
    begin = table[0, -1, 1]
    if rank == 0:
        return Alignment(begin, 0.0)
    low = (table[rank, :, 0] - table[0, :, 1]).max()
    high = (table[rank, :, 1] - table[0, :, 0]).min()
    offset = 0.0 if low <= 0 <= high else (low + high) / 2
    return Alignment(begin + offset, (high - low) / 2)
