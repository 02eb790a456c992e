"""What happens to an exception that nobody catches, in a user's own script as in lpnet's commands.

An `InputError` becomes one line with the place in the user's code: from rank 0 alone if all ranks have it. Any other
exception keeps its traceback, headed by the rank, and ends all ranks, which would wait for this one for ever.
Interactive sessions keep Python's own reports. The exit codes are those of `lpnet.launch`.
"""

import sys
import sysconfig
import traceback
from pathlib import Path
from types import TracebackType

from lpnet import outputs, slab
from lpnet.errors import InputError
from lpnet.slab import Comm

GRACE = 3.0
"""Seconds within which the other ranks are expected to find the same fault."""


def end(comm: Comm, message: str, code: int) -> int:
    """The exit code after one message, of rank 0 if all ranks come here, else of those that do, which end the rest."""
    agreed = comm.all_here(GRACE)
    if comm.rank == 0 or not agreed:
        sys.stderr.write(f"{message.rstrip()}\n")
        sys.stderr.flush()
    if not agreed:
        sys.stdout.flush()
        comm.abort(code)
    return code


def install(bad_input: int, failed: int) -> None:
    """Put this in front of Python's report of exceptions that nobody catches.

    Args:
        bad_input: exit code for an `InputError`.
        failed: for all others.
    """
    report = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, InputError) and not hasattr(sys, "ps1"):
            with outputs.lenient():
                code = end(_ranks(), f"lpnet: error: {error}{_place(trace)}", bad_input)
            outputs.settle()
            raise SystemExit(code)
        comm = slab.started()
        with outputs.lenient():
            if comm.size > 1:
                sys.stderr.write(f"lpnet: rank {comm.rank} of {comm.size} failed:\n")
            report(kind, error, trace)
            if comm.size > 1:
                sys.stderr.flush()
                comm.abort(failed)
        outputs.settle()

    sys.excepthook = hook


def _ranks() -> Comm:
    """All ranks; this one alone where MPI cannot be had (which may be what the error says)."""
    try:
        return slab.world()
    except InputError:
        return Comm()


def _place(trace: TracebackType | None) -> str:
    """The line of the user's code that led to the error."""
    others = {Path(__file__).parent, Path(sysconfig.get_path("stdlib"))}
    frames = [frame for frame in traceback.extract_tb(trace) if others.isdisjoint(Path(frame.filename).parents)]
    own = [frame for frame in frames if not ("site-packages" in frame.filename or frame.filename[0] == "<")]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""
