"""Ranks as threads of one process whose clocks count evaluations and messages of the real engine."""

import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Queue
from typing import Any

import numpy as np
from torch import Tensor

from lpnet.coarse_steps import CoarseSteps
from lpnet.cost import Costs
from lpnet.slab import Comm

WIDTH, BATCH = 3, 8


class World:
    """What the ranks share."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.meeting = threading.Barrier(size, timeout=60)
        self.mail: defaultdict[tuple[int, int], Queue[tuple[Tensor, float]]] = defaultdict(Queue)
        self.table: list[Any] = [None] * size

    def run(self, what: Callable[[int], Any]) -> list[Any]:
        """The results of all ranks, each on a thread of its own."""

        def guarded(rank: int) -> Any:
            try:
                return what(rank)
            except BaseException:
                self.meeting.abort()
                raise

        with ThreadPoolExecutor(self.size) as pool:
            return [future.result() for future in [pool.submit(guarded, rank) for rank in range(self.size)]]


class VirtualComm(Comm):
    """One of these ranks: messages carry the sender's time, and weights travel for nothing."""

    def __init__(self, world: World, rank: int, costs: Costs) -> None:
        self.world, self.rank, self.size, self.costs = world, rank, world.size, costs
        self.time = 0.0

    def send(self, x: Tensor, to: int) -> None:
        self.world.mail[self.rank, to].put((x.clone(), self.time))

    def recv(self, like: Tensor, source: int) -> Tensor:
        x, stamp = self.world.mail[source, self.rank].get(timeout=60)
        assert x.shape == like.shape
        if x.shape[-1] != WIDTH:  # a state, which has the batch there
            self.time = max(self.time, stamp + self.costs.latency + self.costs.message * x.shape[-1] / BATCH)
        return x

    def together(self, value: Any) -> list[Any]:
        """The values of all ranks, and the latest time on each."""
        self.world.table[self.rank] = (value, self.time)
        self.world.meeting.wait()
        values, times = zip(*self.world.table, strict=True)
        self.world.meeting.wait()
        self.time = max(times)
        return list(values)

    def rounds(self) -> int:
        return int(np.ceil(np.log2(self.size)))

    def bcast_(self, x: Tensor, root: int) -> Tensor:
        x.copy_(self.together(x.clone())[root])
        self.time += (self.costs.latency + self.costs.message) * self.rounds()
        return x

    def allgather(self, row: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        rows = self.together(row)
        assert [len(r) for r in rows] == list(counts)
        self.time += self.costs.latency * self.rounds()
        return np.concatenate(rows)


class TimedField:
    """A field whose evaluations take the time of a rank."""

    def __init__(self, field: Any, comm: VirtualComm, stages: int) -> None:
        self.field, self.comm, self.stages = field, comm, stages

    def __getattr__(self, name: str) -> Any:
        return getattr(self.field, name)

    def spend(self, cost: float, batch: int) -> None:
        fixed = self.comm.costs.fixed
        self.comm.time += cost / self.stages * (fixed + (1 - fixed) * batch / BATCH)

    def add(self, source: Any, target: Any, *more: Any) -> None:
        self.spend(self.comm.costs.fine, target.view.shape[-1])
        self.field.add(source, target, *more)

    linearize = add

    def pull(self, source: Any, target_bar: Tensor, *more: Any) -> None:
        self.spend(self.comm.costs.pull, target_bar.shape[-1])
        self.field.pull(source, target_bar, *more)

    def pull_grad(self, source: Any, target_bar: Tensor, *more: Any) -> None:
        self.spend(self.comm.costs.pull + self.comm.costs.gradient, target_bar.shape[-1])
        self.field.pull_grad(source, target_bar, *more)

    def batch(self, parts: range, y: Tensor) -> Any:
        self.spend(self.comm.costs.fine * (1 + (len(parts) - 1) * self.comm.costs.batched), BATCH)
        return self.field.batch(parts, y)

    def batch_pull(self, parts: range, bar: Tensor, kept: Any) -> Tensor:
        self.spend(self.comm.costs.pull * (1 + (len(parts) - 1) * self.comm.costs.batched), BATCH)
        return self.field.batch_pull(parts, bar, kept)


class TimedCoarseSteps(CoarseSteps):
    """Coarse steps with their overhead."""

    def spend(self) -> None:
        comm = next(iter(self.fields.values())).comm  # type: ignore[attr-defined]
        comm.time += comm.costs.overhead

    def step(self, k: int, x: Tensor) -> Tensor:
        self.spend()
        return super().step(k, x)

    def linearize(self, k: int, x: Tensor) -> None:
        self.spend()
        super().linearize(k, x)

    def pull(self, k: int, z: Tensor) -> Tensor:
        self.spend()
        return super().pull(k, z)
