"""Folders that results are written to, and files that are there as a whole or not at all."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lpnet.errors import InputError, shown

PART = ".part"
"""What the name of a file ends in that is being written."""


def make(path: Path, key: str) -> None:
    """Make the folder that this option names, and see that it can be written.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        trial = path / ".writable"
        trial.touch()
        trial.unlink()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise unwritable(path, key, error, "folder") from None


def check_file(path: Path, key: str) -> None:
    """See that the file that this option names can be written, before the work is done; nothing there is changed.

    Raises:
        InputError: it cannot, or there is something that is no regular file, such as a device or a pipe.
    """
    try:
        _try(Path(os.path.realpath(path)))
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise unwritable(path, key, error, "file") from None


def _try(path: Path) -> None:
    """Make this file, and the one that would become it (see `replaced`), and remove what was not there."""
    for one in (path, path.with_name(path.name + PART)):
        try:
            one.open("xb").close()
            one.unlink()
        except FileExistsError:
            if one.exists() and not (one.is_file() or one.is_dir()):
                raise ValueError("no regular file") from None
            one.open("ab").close()


def unwritable(path: Path, key: str, error: OSError | ValueError, what: str) -> InputError:
    """The error for a path that this option names."""
    return InputError(f"{key}: {shown(str(path))} given ({reason(error)}), a {what} that can be written allowed")


def settle(part: Path, path: Path) -> None:
    """Give a finished file its name, in place of what had it: also after a crash of the machine one of both is there.

    Raises:
        OSError: the disk refuses.
    """
    flush(part)
    os.replace(part, path)
    flush(path.parent)


@contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Inside, a file is written under this other name; then it takes the place of `path`, or is gone if that failed.

    A symbolic link stays what it is: the file that it names is replaced.

    Raises:
        OSError: the disk refuses.
    """
    path = Path(os.path.realpath(path))
    with gone_on_failure(path.with_name(path.name + PART)) as part:
        yield part
        settle(part, path)


@contextmanager
def gone_on_failure(part: Path) -> Iterator[Path]:
    """Inside, a file is written under this name; it is gone if that failed."""
    try:
        yield part
    except BaseException:
        with suppress(OSError):  # that of a failing disk says less than what is raised
            part.unlink(missing_ok=True)
        raise


def flush(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not path.is_dir():
            raise  # some file systems have nothing to do for a folder, and say so
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all.

    Raises:
        OSError: the disk refuses.
    """
    with replaced(path) as part:
        part.write_text(text, encoding="utf-8")


def reason(error: OSError | ValueError) -> str:
    """Why the system refused, in a few words."""
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)  # what HDF5 says of it is long
    return " ".join(str(error).split())
