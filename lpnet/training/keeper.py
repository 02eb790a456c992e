"""Checkpoints of a run: when they are due, what is in them, and that a run which is asked to stop leaves one.

All ranks agree once a step, at its end: whether a rank was signalled, whether rank 0 finds a checkpoint due, or could
not write the record of the step.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

from lpnet.checkpoint.content import Content
from lpnet.checkpoint.store import Checkpoints
from lpnet.checkpoint.stored import Stored
from lpnet.errors import OutputError, Stopped
from lpnet.launch import share
from lpnet.phases import phase
from lpnet.training.state import State

SHARE = 0.01
"""Most of the time that writing checkpoints takes, where nothing else is said."""

_NOTHING, _DUE, _SIGNAL, _FAILED = range(4)


@dataclass(frozen=True)
class Around:
    """What surrounds a training, for its checkpoints.

    Args:
        content: what they hold beside the state of the training; collective.
        restored: called on all ranks when a training that goes on has taken up its checkpoint.
        signal: the signal that asked this rank to stop; 0: none did.
        failure: why this rank could not write what it should; empty: it could.
    """

    content: Callable[[], Content]
    restored: Callable[[], None] = lambda: None
    signal: Callable[[], int] = lambda: 0
    failure: Callable[[], str] = lambda: ""


class Keeper:
    """Writes the checkpoints of a run.

    Args:
        store: where to.
        around: what else is in them, and what else may stop the run.
        every: steps between two; None: as many as take at most `SHARE` of the time.
        warm: with what the next solves start from.
        stored: the checkpoint that the run goes on from; None: it begins.
    """

    def __init__(
        self, store: Checkpoints, around: Around, every: int | None, warm: bool, stored: Stored | None = None
    ) -> None:
        self.comm, self.store, self.around, self.every, self.warm = store.comm, store, around, every, warm
        self._stored = stored
        self._seconds: list[float] = []  # of the last ones
        self._last = time.perf_counter()

    def begin(self, state: State) -> None:
        """A level begins: the first one with a checkpoint, or where the run was left; collective."""
        if self._stored is not None:
            start = time.perf_counter()
            state.restore(self._stored)
            self._stored.close()
            self._stored = None
            self._took(start)  # to read one takes about as long as to write one
            self.around.restored()
        elif not state.course.done:
            self._save(state)

    def after(self, state: State) -> None:
        """A step is done, and its record written; collective.

        Raises:
            Stopped: a signal asked for it, and a checkpoint was written.
            OutputError: a checkpoint, or something else, could not be written.
        """
        found = self.comm.agree(self._wanted(state.course.done))
        if found == _FAILED:
            raise OutputError(share(self.comm, self.around.failure()))
        if found or state.course.over:
            self._save(state)
        if found == _SIGNAL:
            raise Stopped(f"step {state.course.done}: stopped by a signal")

    def _wanted(self, step: int) -> int:
        """What this rank wants."""
        if self.around.failure():
            return _FAILED
        if self.around.signal():
            return _SIGNAL
        due = self._is_time() if self.every is None else step % self.every == 0
        return _DUE if due else _NOTHING

    def _is_time(self) -> bool:
        """By the clock of rank 0: since the last one, 1/`SHARE` times as long as it took, or most of the last ones."""
        if self.comm.rank or not self._seconds:
            return False
        typical = max(self._seconds[-1], sum(self._seconds) / len(self._seconds))
        return time.perf_counter() - self._last >= typical / SHARE

    def _save(self, state: State) -> None:
        start = time.perf_counter()
        with phase(self.comm, "checkpoint"):
            self.store.save(state.course.done, state.content(self.warm) | self.around.content())
        self._took(start)

    def _took(self, start: float) -> None:
        self._last = time.perf_counter()
        self._seconds = [*self._seconds[-9:], self._last - start]
