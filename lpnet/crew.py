"""Ranks as threads of one process, of which one works at a time: any number of ranks, to run them with virtual clocks.

A rank works until it waits for a message, or for all others; then another one has its turn. All of them share one warm
core, and a rank's processor time is that of its thread. So P ranks take P times as long as they would, and
`lpnet.virtual` says how long that is; threads that work on their own share no cache as well as they share a core.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from lpnet.errors import InputError
from lpnet.slab import Comm

T = TypeVar("T")
PATIENCE = 600.0
"""Seconds after which a rank gives up waiting."""


class Crew:
    """So many ranks, with what they share.

    Raises:
        InputError: no whole number of at least 1.
    """

    def __init__(self, size: int) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise InputError(f"size: {size!r} given, a whole number of at least 1 allowed")
        self.size, self.turn = size, threading.Lock()
        self.meeting = threading.Barrier(size, timeout=PATIENCE)
        self.table: list[Any] = [None] * size
        self._mail: dict[tuple[int, int], SimpleQueue[Tensor | None]] = {}

    def run(self, what: Callable[["ThreadComm"], T]) -> list[T]:
        """What each rank returns; where one fails, its exception, and all end."""
        with ThreadPoolExecutor(self.size) as pool:
            futures = [pool.submit(self._one, what, rank) for rank in range(self.size)]
        failed = [e for e in (future.exception() for future in futures) if e is not None]
        for e in failed:
            if not isinstance(e, threading.BrokenBarrierError):
                raise e
        return [future.result() for future in futures]

    def _one(self, what: Callable[["ThreadComm"], T], rank: int) -> T:
        with self.turn:
            try:
                return what(ThreadComm(self, rank))
            except BaseException:
                self.meeting.abort()
                for queue in list(self._mail.values()):
                    queue.put(None)
                raise

    def mail(self, source: int, to: int) -> "SimpleQueue[Tensor | None]":
        """Messages on their way."""
        return self._mail.setdefault((source, to), SimpleQueue())

    @contextmanager
    def away(self) -> Iterator[None]:
        """Others have their turn meanwhile."""
        self.turn.release()
        try:
            yield
        finally:
            self.turn.acquire()


class ThreadComm(Comm):
    """One rank of a crew."""

    def __init__(self, crew: Crew, rank: int) -> None:
        self.crew, self.rank, self.size = crew, rank, crew.size

    def send(self, x: Tensor, to: int) -> None:
        self.crew.mail(self.rank, to).put(x.detach().clone())

    def recv(self, like: Tensor, source: int) -> Tensor:
        queue = self.crew.mail(source, self.rank)
        if self.crew.meeting.broken:
            raise threading.BrokenBarrierError
        if queue.empty():
            with self.crew.away():
                x = queue.get(timeout=PATIENCE)
        else:
            x = queue.get()
        if x is None:
            raise threading.BrokenBarrierError
        if x.shape != like.shape or x.dtype != like.dtype:
            raise RuntimeError(f"rank {self.rank}: {tuple(like.shape)} awaited, {tuple(x.shape)} came from {source}")
        return x

    def together(self, value: Any) -> list[Any]:
        """The values of all ranks."""
        self.crew.table[self.rank] = value
        with self.crew.away():
            self.crew.meeting.wait()
        values = list(self.crew.table)
        with self.crew.away():
            self.crew.meeting.wait()
        return values

    def barrier(self, idle: bool = False) -> None:
        self.together(None)

    def bcast_(self, x: Tensor, root: int) -> Tensor:
        value = self.together(x.detach().clone() if self.rank == root else None)[root]
        if self.rank != root:
            with torch.no_grad():
                x.copy_(value)
        return x

    def agree(self, value: int) -> int:
        return int(max(self.together(value)))

    def allgather(self, row: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        rows = self.together(row.copy())
        if [len(r) for r in rows] != list(counts):
            raise RuntimeError(f"rank {self.rank}: {list(counts)} rows awaited, {[len(r) for r in rows]} came")
        return np.concatenate(rows)
