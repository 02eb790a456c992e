"""Modelled time of real ranks: a communicator with a virtual clock, for more ranks than there are cores.

Every rank r sums up in t_r what it computes between its calls of the communicator, and messages carry the clock of
their sender:

    computing             t_r ← t_r + own time of the thread
    send, receive         stamp = t_r,          t_r ← max(t_r, stamp + hop)
    broadcast, gather     t_r ← max_r t_r + broadcast, … + gather

with hop, broadcast and gather of a `Fabric`. What a rank computes is measured in processor time of its thread, which
stands still while the rank waits for a core; so ranks may share cores. Waiting, copying and whatever else is done
inside the communicator is not counted. These are the rules of `lpnet.clock`, which runs the same solver without ranks.

Results are those of the communicator inside; this time is never to be compared with that of a clock on the wall, except
to validate it.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpnet.errors import InputError, warn
from lpnet.fabrics import Fabric, fabric_of
from lpnet.messages import Posted
from lpnet.phases import phase
from lpnet.slab import Comm, as_comm


class VirtualComm(Comm):
    """The ranks of another communicator, with virtual clocks.

    Args:
        comm: the communicator inside, which carries the messages; an mpi4py communicator, a `slab.Comm`, or None: the
            world.
        fabric: what messages take, or its name.
        clock: seconds that this rank has computed up to now; by default processor time of the calling thread, which is
            all of it with one thread of torch only: there is a warning where there are more. Where ranks do not share
            cores, or compute on a GPU, `time.perf_counter`.
    """

    def __init__(
        self, comm: Any, fabric: Fabric | str = "default", clock: Callable[[], float] = time.thread_time
    ) -> None:
        if not callable(clock):
            raise InputError(f"clock: {clock!r} given, a function such as time.thread_time allowed")
        comm = as_comm(comm)
        self.inside, self.fabric, self.clock = comm, fabric_of(fabric), clock
        self.rank, self.size = comm.rank, comm.size
        if clock is time.thread_time and torch.get_num_threads() > 1 and self.rank == 0:
            warn(f"virtual clock counts 1 of {torch.get_num_threads()} threads: torch.set_num_threads(1) before")
        self.local_rank, self.local_size = getattr(comm, "local_rank", 0), getattr(comm, "local_size", 1)
        self._time, self._mark = 0.0, clock()

    @property
    def now(self) -> float:
        """Virtual seconds of this rank since the last reset."""
        self._count()
        return self._time

    def reset(self) -> None:
        """All clocks to 0; collective."""
        self.inside.barrier()
        self._time, self._mark = 0.0, self.clock()

    def latest(self) -> float:
        """The latest clock of all ranks, the same on all of them, which changes none; collective."""
        with self._outside():
            return self._latest()

    def _count(self) -> None:
        clock = self.clock()
        self._time, self._mark = self._time + (clock - self._mark), clock

    @contextmanager
    def _outside(self, why: str | None = None) -> Iterator[None]:
        """What is done inside is not counted; observers are told of it as this phase."""
        with phase(self, why):
            self._count()
            yield
            self._mark = self.clock()

    def _latest(self) -> float:
        return float(self.inside.allgather(np.array([self._time]), [1] * self.size).max())

    # ---- the communicator ----------------------------------------------------------------------------------------

    def barrier(self, idle: bool = False) -> None:
        with self._outside("barrier"):
            self.inside.barrier(idle)
            self._time = self._latest() + self.fabric.gather(0, self.size)

    def all_here(self, seconds: float) -> bool:
        return self.inside.all_here(seconds)

    def abort(self, code: int) -> None:
        self.inside.abort(code)

    def send(self, x: Tensor, to: int) -> None:
        if self.observer is not None:
            self.observer.sent(to, bytes_of(x))
        with self._outside():
            self.inside.send(torch.tensor(self._time, dtype=torch.float64), to)
            self.inside.send(x, to)

    def recv(self, like: Tensor, source: int) -> Tensor:
        return self.post(like, source).wait()

    def post(self, like: Tensor, source: int) -> Posted:
        with self._outside():
            stamp = self.inside.post(torch.tensor(0.0, dtype=torch.float64), source)
            return _Stamped(self, source, stamp, self.inside.post(like, source))

    def arrive(self, source: int, stamp: Posted, value: Posted) -> Tensor:
        """Wait for a message, and be no earlier than it."""
        with self._outside("wait"):
            sent, x = stamp.wait().item(), value.wait()
            self._time = max(self._time, sent + self.fabric.hop(bytes_of(x)))
        if self.observer is not None:
            self.observer.received(source)
        return x

    def bcast_(self, x: Tensor, root: int) -> Tensor:
        with self._outside("broadcast"):
            self._time = self._latest() + self.fabric.broadcast(bytes_of(x), self.size)
            return self.inside.bcast_(x, root)

    def agree(self, value: int) -> int:
        with self._outside("gather"):
            self._time = self._latest() + self.fabric.gather(8 * self.size, self.size)
            return self.inside.agree(value)

    def allgather(self, row: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        with self._outside("gather"):
            out = self.inside.allgather(row, counts)
            self._time = self._latest() + self.fabric.gather(out.nbytes, self.size)
            return out


class _Stamped(Posted):
    """A message and the clock of its sender."""

    def __init__(self, comm: VirtualComm, source: int, stamp: Posted, value: Posted) -> None:
        self._to, self._source, self._stamp, self._value = comm, source, stamp, value

    def wait(self) -> Tensor:
        return self._to.arrive(self._source, self._stamp, self._value)


def bytes_of(x: Tensor) -> int:
    """Bytes of a tensor on the way."""
    return x.numel() * x.element_size()
