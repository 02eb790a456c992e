"""The folder of a run: who makes it, and who holds it.

One run at a time works in a folder: rank 0 holds a lock on the file `.lock` in it, which the system gives up when its
process ends, however it does. The file says which process that is, and is gone after an orderly end.
"""

import errno
import fcntl
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from lpnet.checkpoint.store import FOLDER, steps
from lpnet.config import Config
from lpnet.errors import InputError, warn
from lpnet.folders import PART, reason
from lpnet.launch import share, together
from lpnet.slab import Comm

METRICS, SUMMARY, CONFIG, MODEL = "metrics.jsonl", "summary.json", "config.yaml", "model.h5"
TRACE, LOCK = "trace.json", ".lock"

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what file systems without locks answer


def new_folder(comm: Comm, config: Config) -> AbstractContextManager[Path]:
    """Make the run folder on rank 0; inside, it is held, and this is its name on all ranks. Collective.

    Raises:
        InputError: the folder cannot be made or written to, is not empty, or in use.
    """
    return _held(comm, "run.dir", lambda: _new(config), lambda folder: _require_unused(folder, config.run.dir))


def old_folder(comm: Comm, name: str) -> AbstractContextManager[Path]:
    """The folder of a run that is to go on; inside, it is held. Collective.

    Raises:
        InputError: there is none, it cannot be written to, or is in use.
    """
    return _held(comm, "--resume", lambda: _old(name))


@contextmanager
def _held(
    comm: Comm, key: str, find: Callable[[], Path], require: Callable[[Path], None] = lambda folder: None
) -> Iterator[Path]:
    """The folder that rank 0 finds, on all ranks; `require` looks into it when nobody else can change it any more."""
    folder, lock = Path(), None
    try:
        with together(comm):
            if comm.rank == 0:
                folder = find()
                lock = Lock(folder, key)
                require(folder)
        yield Path(share(comm, str(folder)))
    finally:
        if lock is not None:
            lock.release()


def _old(name: str) -> Path:
    folder = Path(os.path.expanduser(name))
    allowed = "the folder of a run that can be written to"
    try:
        there = folder.is_dir()
    except OSError as error:
        raise InputError(f"--resume: {name!r} given ({reason(error)}), {allowed} allowed") from None
    if not there or not os.access(folder, os.W_OK | os.X_OK):
        why = "not writable" if there else "no such folder"
        raise InputError(f"--resume: {name!r} given ({why}), {allowed} allowed")
    return folder


def _new(config: Config) -> Path:
    name = config.run.dir
    if name is None:
        return _fresh(config.preset)
    folder = Path(os.path.expanduser(name))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise _unwritable(name, reason(error)) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(name, "not writable")
    return folder


def _require_unused(folder: Path, given: str | None) -> None:
    """Require that nothing is lost where a run begins in this folder, whose name was given (None: none was)."""
    name = str(folder) if given is None else given
    try:
        found = {path.name for path in folder.iterdir()} - {LOCK}
        unused = not found or _is_unbegun(folder, found)
    except OSError as error:
        raise _unwritable(name, reason(error)) from None
    if not unused:
        allowed = f"a new or an empty folder allowed, or --resume {name} to go on with a run"
        raise InputError(f"run.dir: {name!r} given, which is not empty; {allowed}")


def _is_unbegun(folder: Path, found: set[str]) -> bool:
    """Whether this is all of a run that ended before its first checkpoint, so that nothing is lost with it."""
    made = (METRICS, CONFIG, FOLDER)
    if not found <= {*made, *(f"{name}{PART}" for name in made)} or not {METRICS, f"{METRICS}{PART}"} & found:
        return False
    lines = METRICS in found and (folder / METRICS).stat().st_size > 0
    return not lines and not has_checkpoints(folder)


def has_checkpoints(folder: Path) -> bool:
    """Whether there are any in a run folder, whole or damaged."""
    return (folder / FOLDER).is_dir() and bool(steps(folder / FOLDER))


def _unwritable(name: str, why: str) -> InputError:
    return InputError(f"run.dir: {name!r} given ({why}), a folder that can be written to allowed")


def _fresh(preset: str) -> Path:
    """runs/PRESET-TIME, with a number behind it if another run began in the same second."""
    name = f"runs/{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 1000):
        folder = Path(name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(
                f"run.dir: nothing given, and {str(folder)!r} cannot be made ({error.strerror}); give a folder"
            ) from None
        return folder
    raise InputError(f"run.dir: nothing given, and {name} to {name}-999 exist; give a folder")


class Lock:
    """The lock on a folder.

    Args:
        folder: of a run.
        key: how errors name the folder.

    Raises:
        InputError: another process holds it, or the file cannot be made.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.path = folder / LOCK
        try:
            self._handle = self._taken(key)
            self._sign()
        except OSError as error:
            allowed = "a folder that can be written to allowed"
            raise InputError(f"{key}: {str(folder)!r} given ({reason(error)}), {allowed}") from None

    def _sign(self) -> None:
        """Say who holds it."""
        try:
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps({"host": platform.node(), "pid": os.getpid()}).encode(), 0)
        except OSError:  # a disk that is full has room for an empty file
            self.release()
            raise

    def _taken(self, key: str) -> int:
        while True:
            handle, held = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644), False
            try:
                held = self._is_free(handle, key) and self._is_mine(handle)
            finally:
                if not held:  # or the file is one that its holder has just removed
                    os.close(handle)
            if held:
                return handle

    def _is_free(self, handle: int, key: str) -> bool:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(self._in_use(key)) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            folder = str(self.path.parent)
            warn(f"{key}: {folder!r} is on a file system without locks; nothing keeps another run out of it")
        return True

    def _is_mine(self, handle: int) -> bool:
        """Whether the file that is locked is still the one of this name."""
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.path))
        except FileNotFoundError:
            return False

    def _in_use(self, key: str) -> str:
        by = "another process"
        try:
            said = json.loads(self.path.read_text(encoding="utf-8"))
            by = f"process {said['pid']} on {said['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            by += " (which did not say its name)"
        return f"{key}: {str(self.path.parent)!r} given, in use by {by}; a folder that no run is using allowed"

    def release(self) -> None:
        """Give it up; the file is gone."""
        with suppress(OSError):  # a disk that fails now has failed in what the run was about, too
            self.path.unlink(missing_ok=True)
        os.close(self._handle)
