"""Ranks whose launcher is gone end themselves: nobody else would end them, and they would wait for each other for ever.

Under an MPI launcher a thread looks at who the parent of this process is. When a parent ends, the system makes another
process the parent of its children.
"""

import os
import sys
import threading
import time

from lpnet import slab

EVERY = 0.5
"""Seconds between two looks."""

THREADS = "lpnet-guard"
"""How the names of threads begin that watch over the others."""

_watching = False


def guard(name: str, code: int) -> None:
    """From now on, end this process soon after its launcher has ended, if it has one.

    Args:
        name: of the command, for the message.
        code: the exit code.
    """
    global _watching
    if _watching or slab.launcher() is None:
        return
    _watching = True
    arguments = (os.getppid(), name, code)
    threading.Thread(target=_watch, args=arguments, name=f"{THREADS}-launcher", daemon=True).start()


def _watch(parent: int, name: str, code: int) -> None:
    while os.getppid() == parent:
        time.sleep(EVERY)
    comm = slab.started()
    where = f"[rank {comm.rank} of {comm.size}] " if comm.size > 1 else ""
    try:
        sys.stderr.write(f"{where}{name}: error: the launcher of this process has ended, and so does it\n")
        sys.stderr.flush()
    finally:  # standard error may have been a pipe to the launcher
        os._exit(code)  # not MPI_Abort, which would talk to the launcher
