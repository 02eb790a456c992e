"""The checkpoints of a run: a folder of files, the newest of which are kept.

    step-00000120.h5        written at step 120
"""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lpnet import folders
from lpnet.checkpoint.content import Content
from lpnet.checkpoint.file import Stored, Written, read, write
from lpnet.errors import InputError, OutputError
from lpnet.launch import share, together
from lpnet.slab import Comm

FOLDER = "checkpoints"
"""Of a run folder."""

_NAME = re.compile(r"step-(\d{8,})\.h5")


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
        begun: the step whose checkpoint the run goes on from; those of later steps are damaged, or lost with it, and go
            with the next that is saved.
    """

    def __init__(self, comm: Comm, folder: Path, keep: int, begun: int | None = None) -> None:
        self.comm, self.folder, self.keep, self._last = comm, Path(folder), keep, begun

    def path(self, step: int) -> Path:
        """The file of a step."""
        return self.folder / f"step-{step:08d}.h5"

    def save(self, step: int, content: Content) -> Written:
        """Write the checkpoint of a step; collective. As `file.write`.

        Then those go that are too many, and those of later steps, which a run has left that was begun anew before them.
        """
        with together(self.comm), self._changed():
            if self.comm.rank == 0:
                self._clear()
        written = write(self.path(step), self.comm, content)
        with together(self.comm), self._changed():
            if self.comm.rank == 0:
                for old in self._rest(step):
                    old.unlink()
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
        for step in steps(self.folder):
            if self._last is not None and step > self._last:
                self.path(step).unlink()

    def _rest(self, step: int) -> list[Path]:
        """The files to remove after this step."""
        there = steps(self.folder)
        kept = [s for s in there if s <= step][-self.keep :]
        return [self.path(s) for s in there if s not in kept]

    def newest(self, warn: Callable[[str], None]) -> Stored:
        """The newest checkpoint that is whole; collective.

        Args:
            warn: is told of each that is not, on all ranks.

        Raises:
            InputError: there is none.
        """
        for step in reversed(self._everywhere()):
            try:
                return read(self.path(step), self.comm)
            except InputError as error:
                warn(f"{error}; the one before is tried")
        raise InputError(f"checkpoint: {str(self.folder)!r} given, a folder with a whole checkpoint allowed")

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
