"""A thread beside each rank, which ends a job that makes no progress, and says where it stands.

Every rank tells rank 0 from time to time how old its last beat is. Rank 0 knows of each one, by its own clock,

    idle_r = now − (when it last heard of rank r − how old the beat of r was then),

which grows for ranks that wait and for ranks that are silent alike, and stays small as long as a rank computes. If the
smallest idle_r is the stall time, nobody computes: rank 0 asks all ranks where they are, says so, and ends the job. If
rank 0 is silent, another rank does it. The threads do not use MPI, but for the end.

Clocks count the time in which the thread is awake: a job that was suspended and goes on has not stalled.
"""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module

from lpnet.errors import warn
from lpnet.launch import FAILED, STALLED
from lpnet.orphan import THREADS
from lpnet.phases import leave, observe
from lpnet.slab import Comm
from lpnet.watchdog.beat import Beat, stacks
from lpnet.watchdog.links import Links, Message, connected

LOST = 3.0
"""Seconds within which the launcher is expected to end a job of which a rank has died."""

ANSWER = 3.0
"""Seconds within which ranks are expected to say where they are."""

ABORT = 5.0
"""Seconds that MPI has to end the job; then each rank ends by itself."""

_OFTEN, _SELDOM = 0.05, 10.0


@contextmanager
def watching(comm: Comm, name: str, stall: float | None) -> Iterator[None]:
    """Inside, the job ends if no rank makes progress for some seconds, or if a rank is gone; collective.

    Args:
        comm: the ranks; what they do inside tells its phases to this communicator.
        name: of the command, for messages.
        stall: the seconds; None: nothing is watched.
    """
    links = None
    if stall is not None:
        import_module("torch._dynamo")  # as the first optimizer does, in seconds or minutes without any progress
        links = connected(comm)
    if stall is None or links is None:
        if stall is not None and comm.rank == 0:
            warn("run.stall: not all ranks can connect to rank 0 by TCP, nobody will notice that the run stalls")
        yield
        return
    dog = Watchdog(comm, name, stall, links)
    observe(comm, dog.beat)
    dog.start()
    try:
        yield
    finally:
        dog.stop()
        leave(comm, dog.beat)


class Watchdog(threading.Thread):
    """Of one rank; see `watching`."""

    def __init__(self, comm: Comm, name: str, stall: float, links: Links) -> None:
        super().__init__(name=f"{THREADS}-watchdog", daemon=True)
        self.beat = Beat()
        self._comm, self._command, self._stall, self._links = comm, name, stall, links
        self._every = min(max(stall / 30, _OFTEN), _SELDOM)
        # Others leave it to rank 0 while that can be, and then to one of them.
        self._limit = stall + (2 * ANSWER + 0.25 * min(comm.rank, 20) if comm.rank else 0.0)
        self._stopped = False
        self._clock, self._seen, self._told = 0.0, -1, 0.0
        self._fresh = dict.fromkeys(range(comm.size) if comm.rank == 0 else (0, comm.rank), 0.0)
        self._last: dict[int, Message] = {}
        self._stacks: dict[int, str] = {}
        self._lost: dict[int, float] = {}

    def stop(self) -> None:
        """Take leave of the other ranks, wait for the thread to end, and close its connections."""
        self._stopped = True
        self._links.wake()
        self.join()
        self._links.close()

    def run(self) -> None:
        last = time.monotonic()
        while not self._stopped:
            heard = self._links.poll(_OFTEN if self._lost else self._every)
            now = time.monotonic()
            self._clock, last = self._clock + min(now - last, 3 * self._every), now
            for rank, message in heard:
                self._hear(rank, message)
            self._look(now)
        for link in self._links.peers.values():
            link.put({"bye": True})

    def _hear(self, rank: int, message: Message) -> None:
        if message.get("bye"):
            self._fresh.pop(rank, None)
            self._stopped = self._stopped or rank == 0
            return
        self._last[rank] = message
        self._fresh[rank] = self._clock - (message["age"] if rank else 0.0)  # it is rank 0 that judges, if it can
        if "stacks" in message:
            self._stacks[rank] = message["stacks"]
        elif message.get("ask"):
            self._links.peers[0].put(self._own() | {"stacks": stacks()})

    def _own(self) -> Message:
        return {"age": self._clock - self._fresh[self._comm.rank], "doing": self.beat.doing()}

    def _idle(self) -> float:
        return min(self._clock - fresh for fresh in self._fresh.values())

    def _look(self, now: float) -> None:
        if self.beat.count != self._seen:
            self._seen, self._fresh[self._comm.rank] = self.beat.count, self._clock
        if self._clock - self._told >= self._every:
            self._told = self._clock
            for link in self._links.peers.values():
                link.put(self._own())
        for rank, link in self._links.peers.items():
            if link.ended and rank in self._fresh and now - self._lost.setdefault(rank, now) > LOST:
                self._end(f"error: rank {rank} has ended without a word, and so do all others", FAILED)
        if self._idle() >= self._limit and not self._stopped:
            self._ask()
            if self._idle() >= self._limit:  # nobody has moved meanwhile
                self._end("\n".join(self._said()), STALLED)

    def _ask(self) -> None:
        """Of all ranks, where they are."""
        own, until = self._comm.rank, time.monotonic() + ANSWER
        self._last[own], self._stacks = self._own(), {own: stacks()}
        asked = {r for r, link in self._links.peers.items() if r in self._fresh and not link.ended and own == 0}
        for rank in asked:
            self._links.peers[rank].put(self._own() | {"ask": True})
        while asked - self._stacks.keys() and time.monotonic() < until:
            for rank, message in self._links.poll(0.1):
                self._hear(rank, message)

    def _said(self) -> list[str]:
        """What is known of where the ranks are; of those in the same place once."""
        size, limit = self._comm.size, f"for {self._stall:g} s (run.stall)"
        if size == 1:
            lines = [f"error: no progress {limit}; this is where it stands"]
        elif self._comm.rank == 0:
            lines = [f"error: no rank has made progress {limit}; this is where they stand"]
        else:
            lines = [f"error: rank {self._comm.rank} has made no progress {limit}, and rank 0 does not answer"]
        places: dict[str, list[int]] = {}
        for rank in sorted(self._fresh):
            places.setdefault(self._place(rank), []).append(rank)
        for place, ranks in places.items():
            which = f"[rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))} of {size}] " if size > 1 else ""
            lines.append(f"{which}{place}")
        return lines

    def _place(self, rank: int) -> str:
        doing = self._last.get(rank, {}).get("doing", "nothing")
        if rank in self._stacks:
            return f"{doing}\n{self._stacks[rank].rstrip()}"
        return f"no answer for {self._clock - self._fresh[rank]:.0f} s; what it said last: {doing}"

    def _end(self, text: str, code: int) -> None:
        """Say it in one piece, and end all ranks, whatever the main thread is waiting for."""
        timer = threading.Timer(ABORT, os._exit, (code,))  # writing may block as well
        timer.daemon = True
        timer.start()
        sys.stderr.write(f"{self._command}: {text}\n")
        sys.stderr.flush()
        self._comm.abort(code)
        self._stopped = True  # where MPI lets this thread go on
