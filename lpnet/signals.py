"""Signals that ask a run to stop: they set a flag, at which whoever can stop in good order looks.

SLURM sends SIGUSR1 some time before the limit (``--signal=USR1@120``), SIGTERM when a job is cancelled or preempted. A
terminal that is closed sends SIGHUP, which is left alone where it is ignored (``nohup``).
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)

_came = 0
_ends = False


def ends_process() -> None:
    """Say that this process ends behind what heeds signals: from there on they are ignored."""
    global _ends
    _ends = True


def wanted() -> int:
    """The signal that asked this process to stop while signals were `heeded`; 0: none did."""
    return _came


@contextmanager
def heeded() -> Iterator[None]:
    """Inside, these signals do nothing but set the flag; handlers can be set in the main thread only, else none are.

    Behind it they do what they did before. If the process then ends they are ignored instead: it takes MPI and Python
    seconds, in which launchers pass a signal on once more, which would have its own exit code.
    """
    global _came
    _came = 0
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    alone = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    before = {one: signal.signal(one, _note) for one in STOPPING if not (alone and one is signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            again = signal.SIG_DFL if handler is None else handler  # None: not one of Python's
            signal.signal(one, signal.SIG_IGN if _ends else again)
        _came = 0


def _note(number: int, _: object) -> None:
    """The first one counts: launchers pass a signal on that their ranks had already."""
    global _came
    _came = _came or number
