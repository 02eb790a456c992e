"""The checkpoints of a run: a folder of files, the newest of which are kept.

    step-00000120.h5            written at step 120
    step-00000140.h5.damaged    one that a run has gone back behind; nobody reads or removes it
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from lpnet import folders
from lpnet.checkpoint.content import Content
from lpnet.checkpoint.file import Stored, Written, write
from lpnet.checkpoint.stored import Unread, opened
from lpnet.errors import InputError, OutputError
from lpnet.launch import share, together
from lpnet.slab import Comm

FOLDER = "checkpoints"
"""Of a run folder."""

DAMAGED = ".damaged"
"""What the name of a checkpoint ends in that a run could not go on from, and has gone back behind."""

_NAME = re.compile(r"step-(\d{8,})\.h5")

T = TypeVar("T")


def steps(folder: Path) -> list[int]:
    """The steps whose checkpoints, whole or damaged, are in a folder, in order.

    Raises:
        OSError: it cannot be read.
    """
    names = (_NAME.fullmatch(path.name) for path in folder.iterdir() if path.is_file())
    return sorted(int(name[1]) for name in names if name is not None)


class Checkpoints:
    """The checkpoints in a folder, of which all ranks see the same; nobody else may write there.

    Args:
        comm: the ranks.
        folder: holds them and nothing else, `FOLDER` of a run folder; made when it is needed.
        keep: how many are kept.
        begun: the step whose checkpoint the run goes on from; those of later steps are damaged, and get another name
            when the next one is saved.
    """

    def __init__(self, comm: Comm, folder: Path, keep: int, begun: int | None = None) -> None:
        self.comm, self.folder, self.keep, self._last = comm, Path(folder), keep, begun

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self.folder / f"step-{step:08d}.h5"

    def save(self, step: int, content: Content) -> Written:
        """Write the checkpoint of a step; collective. As `file.write`.

        Then those go that are too many. Those of later steps, which a run was begun anew before, are set aside.
        """
        with together(self.comm), self._changed():
            if self.comm.rank == 0:
                self._clear()
        written = write(self.path(step), self.comm, content)
        with together(self.comm), self._changed():
            if self.comm.rank == 0:
                self._set_aside(step)
                for old in steps(self.folder)[: -self.keep]:
                    self.path(old).unlink()
        self._last = step
        return written

    def _clear(self) -> None:
        """Make the folder, without what is there of a run that was killed, or of one that went too far."""
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            folders.flush(self.folder.parent)
        for part in self.folder.glob(f"*{folders.PART}"):
            if not part.is_dir():
                part.unlink()
        if self._last is not None:
            self._set_aside(self._last)

    def _set_aside(self, last: int) -> None:
        """Give those of later steps than this one a name that is none of a checkpoint."""
        for step in steps(self.folder):
            if step > last:
                path = self.path(step)
                path.replace(path.with_name(path.name + DAMAGED))

    def newest(self, warn: Callable[[str], None]) -> Stored:
        """The newest checkpoint that is whole; collective. See `newest_as`."""
        return self.newest_as(warn, lambda stored: stored)

    def newest_as(self, warn: Callable[[str], None], take: Callable[[Stored], T]) -> T:
        """What this rank makes of the newest checkpoint that is whole; collective.

        Args:
            warn: is told of each that is not, on all ranks.
            take: makes it, without communication; an `InputError` says that the file is of no use on any rank.

        Raises:
            InputError: there is none, or one that may be good cannot be read now: no other takes its place.
        """
        for step in reversed(self._everywhere()):
            tried: list[T] = []
            why = ""
            with together(self.comm):
                try:
                    tried.append(self._tried(step, take))
                except Unread as error:
                    way = "it may be good: mend that, or move it away to go on from the one before"
                    raise InputError(f"{error}; {way}") from None
                except InputError as error:
                    why = str(error)
            why = _first(self.comm, why)
            if not why:
                return tried[0]
            warn(f"{why}; the one before is tried")
        raise InputError(f"checkpoint: {str(self.folder)!r} given, a folder with a whole checkpoint allowed")

    def _tried(self, step: int, take: Callable[[Stored], T]) -> T:
        stored = opened(self.path(step), self.comm)
        try:
            return take(stored)
        except BaseException:
            stored.close()
            raise

    def _everywhere(self) -> list[int]:
        """The steps that there are, as rank 0 sees them, on all ranks; collective."""
        found = ""
        with together(self.comm):
            if self.comm.rank == 0:
                try:
                    found = json.dumps(steps(self.folder))
                except OSError as error:
                    raise InputError(
                        f"checkpoint: {str(self.folder)!r} given ({folders.reason(error)}), "
                        "a folder of checkpoints allowed"
                    ) from error
        everywhere: list[int] = json.loads(share(self.comm, found))
        return everywhere

    @contextmanager
    def _changed(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(
                f"checkpoint: {str(self.folder)!r} cannot be changed ({folders.reason(error)})"
            ) from error


def _first(comm: Comm, text: str) -> str:
    """The text of the first rank that has one, on all ranks; collective."""
    teller = comm.size - comm.agree(comm.size - comm.rank if text else 0)
    return share(comm, text, teller) if teller < comm.size else ""
