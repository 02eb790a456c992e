"""How a command ends: the one place that names exit codes and maps outcomes to them, for all ranks alike.

| outcome | exit code | who speaks |
|---|---|---|
| done | 0 | |
| `Answer`: help or the like was asked for | 0 | rank 0, on standard output |
| `InputError`, raised on all ranks | 2 | rank 0, one line |
| `NonFiniteError` | 3 | rank 0, one line |
| `OutputError`, or an answer that standard output does not take | 4 | rank 0, one line |
| stalled (see `lpnet.watchdog`) | 5 | rank 0: where each rank is |
| `Stopped`: a signal came, a checkpoint was written | 75 | rank 0, one line |
| interrupted | 130 | rank 0, one line |
| any other exception, on any rank | 1 | each rank on which it happened: the traceback, with the rank |

The launcher may have ended by itself: then each rank says so and ends with 1 (see `lpnet.orphan`). In a script of a
user, `lpnet.uncaught` ends the process with 2 or 1 in the same cases. A message that standard output or error does not
take is lost, and changes no code (see `lpnet.outputs`).

Where a rank may find fault alone (a file that only its machine cannot read), the work stands in
``with together(comm)``, which raises the error on all ranks. An error that one rank raises anywhere else ends all ranks
by `Comm.abort` within seconds, since the others wait for a message from it.
"""

import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch

from lpnet import folders, orphan, outputs, signals, slab, uncaught
from lpnet.errors import InputError, NonFiniteError, OutputError, Stopped, utf8
from lpnet.slab import Comm

DONE, FAILED, BAD_INPUT, NON_FINITE, UNWRITABLE, STALLED, STOPPED, INTERRUPTED = 0, 1, 2, 3, 4, 5, 75, 130


class Answer(Exception):
    """What the user asked to see, and no more: rank 0 prints it, and all ranks end with exit code 0."""


class _Agreed(InputError):
    """An `InputError` that all ranks have."""


@contextmanager
def together(comm: Comm) -> Iterator[None]:
    """Work in which any rank may raise an `InputError` or an `OutputError`, which is then raised on all ranks.

    Collective at the end. The work itself must not communicate: the ranks that fail would be missed.
    """
    found: InputError | OutputError | None = None
    try:
        yield
    except (InputError, OutputError) as error:
        found = error
    teller = comm.size - comm.agree(comm.size - comm.rank if found else 0)  # the first rank that found fault
    if teller < comm.size:
        unwritable = comm.agree(int(comm.rank == teller and isinstance(found, OutputError)))
        raise (OutputError if unwritable else _Agreed)(share(comm, str(found), teller)) from found


@contextmanager
def written(comm: Comm, path: Path) -> Iterator[None]:
    """Work in which any rank may write: what the system refuses is an `OutputError` on all ranks, as in `together`."""
    with together(comm):
        try:
            yield
        except OSError as error:
            raise OutputError(f"{str(path)!r} cannot be written ({folders.reason(error)})") from error


def share(comm: Comm, text: str, root: int = 0) -> str:
    """The text of one rank, on all ranks; collective. Names of files may be in it, whose bytes need not be UTF-8."""
    raw = np.frombuffer(text.encode(errors="surrogateescape"), dtype=np.uint8)
    length = comm.agree(len(raw) if comm.rank == root else 0)
    row = torch.zeros(length, dtype=torch.uint8)
    if comm.rank == root:
        row = torch.from_numpy(raw.copy())
    return bytes(comm.bcast_(row, root).numpy()).decode(errors="surrogateescape") if length else ""


def command(main: Callable[[], int]) -> NoReturn:
    """Do what a command does, and end the process with its exit code, which nothing changes any more.

    For ``if __name__ == "__main__"`` alone: in a longer lived process signals and streams are its own.
    """
    signals.ends_process()
    code = main()
    outputs.settle()
    sys.exit(code)


def run(name: str, job: Callable[[Comm], None]) -> int:
    """Do a job on all ranks.

    Args:
        name: of the command, for its messages.
        job: what to do; called with all ranks. A signal ends it where it finds it, but within `signals.heeded`.

    Returns:
        The exit code (see the table above).
    """
    orphan.guard(name, FAILED)
    with outputs.lenient(), _warnings_of(name):
        try:
            comm = slab.world()
        except InputError as error:
            return _say(Comm(), f"{name}: error: {error}", BAD_INPUT)
        return _outcome(name, comm, job)


@contextmanager
def _warnings_of(name: str) -> Iterator[None]:
    """Inside, a warning is one line, without the source line that brought it about."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"{name}: warning: {str(message).removeprefix('lpnet: ')}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def _outcome(name: str, comm: Comm, job: Callable[[Comm], None]) -> int:
    """Do the job; the exit code."""
    try:
        job(comm)
    except Answer as answer:
        return _answer(name, comm, utf8(str(answer)).rstrip())
    except _Agreed as error:
        return _say(comm, f"{name}: error: {error}", BAD_INPUT)
    except InputError as error:
        return uncaught.end(comm, f"{name}: error: {error}", BAD_INPUT)
    except NonFiniteError as error:
        return _say(comm, f"{name}: {error}", NON_FINITE)
    except OutputError as error:
        return _say(comm, f"{name}: error: {error}", UNWRITABLE)
    except Stopped as error:
        return _say(comm, f"{name}: {error}", STOPPED)
    except KeyboardInterrupt:
        return uncaught.end(comm, f"{name}: interrupted", INTERRUPTED)
    except Exception:
        where = f"[rank {comm.rank} of {comm.size}] " if comm.size > 1 else ""
        return _end(comm, f"{where}{traceback.format_exc()}", FAILED)
    return DONE


def _answer(name: str, comm: Comm, text: str) -> int:
    """Rank 0 prints it."""
    try:
        if comm.rank == 0:
            outputs.tell(text)
    except OSError as error:
        return _say(comm, f"{name}: error: standard output cannot be written ({folders.reason(error)})", UNWRITABLE)
    return DONE


def _say(comm: Comm, message: str, code: int) -> int:
    """All ranks end in the same way, and rank 0 says why."""
    if comm.rank == 0:
        sys.stderr.write(f"{utf8(message)}\n")
    return code


def _end(comm: Comm, message: str, code: int) -> int:
    """Say it in one piece, and end all ranks."""
    sys.stderr.write(f"{message.rstrip()}\n")
    sys.stderr.flush()
    sys.stdout.flush()
    if comm.size > 1:
        comm.abort(code)
    return code
