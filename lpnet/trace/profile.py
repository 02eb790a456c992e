"""The trace of some steps of a training run."""

from pathlib import Path

from lpnet.slab import Comm
from lpnet.trace.record import Recording

WARM = 2
"""Steps before the trace: the first ones take memory, and load what they need."""


def first_of(begin: int, steps: int, count: int) -> int:
    """The step before the first of `count` that are traced, of those after `begin` up to `steps`, warm if possible."""
    return max(begin, min(begin + WARM, steps - count))


class Profile:
    """Traces steps first + 1 to first + count of a run.

    Args:
        comm: the ranks of the run.
        path: of the file.
        first: the last step before.
        count: how many; 0: none.
    """

    def __init__(self, comm: Comm, path: Path, first: int, count: int) -> None:
        self._recording = Recording(path, comm)
        self._first, self._last, self._count = first, first + count, count
        self._open = False

    def after(self, step: int) -> None:
        """So many steps are done; collective."""
        if self._count and step == self._first:
            self._recording.begin()
            self._open = True
        if step == self._last:
            self.finish()

    def finish(self) -> None:
        """No more steps will be done; collective."""
        if self._open:
            self._open = False
            self._recording.end()

    def drop(self) -> None:
        """Something went wrong, maybe not on all ranks."""
        if self._open:
            self._open = False
            self._recording.drop()
