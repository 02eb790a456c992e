"""Jobs under mpirun that tests stop, kill and watch from outside."""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from scripts_folder import script

import lpnet
from lpnet import slab

with script("victims") as victims:
    MARK, marked = victims.MARK, victims.marked


class Job:
    """Processes that mpirun starts.

    Args:
        ranks: how many; 0: one process, without mpirun.
        arguments: of Python.
    """

    def __init__(self, ranks: int, arguments: Sequence[str]) -> None:
        mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        if slab.launcher() or (ranks and mpirun is None):
            pytest.skip("needs mpirun, and not to run under it")
        self.mark, self.ranks = uuid.uuid4().hex, ranks
        env = os.environ | {"OMP_NUM_THREADS": "1", MARK: self.mark, "PYTHONPATH": str(Path(lpnet.__file__).parents[1])}
        head = [str(mpirun), "-n", str(ranks)] if ranks else []
        self.process = subprocess.Popen(
            [*head, sys.executable, *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def all(self) -> dict[int, str]:
        """Every process of the job that is alive: its number, and its command line."""
        found: dict[int, str] = marked(self.mark)
        return found

    def pids(self) -> list[int]:
        """Of the ranks, once all of them are there, in the order of their start."""
        wait_for(lambda: len(self._ranks()) >= max(self.ranks, 1))
        return self._ranks()

    def _ranks(self) -> list[int]:
        return sorted(pid for pid, line in self.all().items() if line.startswith(sys.executable))

    def end(self, seconds: float) -> tuple[int, str]:
        """Exit code and standard error, within so many seconds; no process is left."""
        code = self.process.wait(seconds)
        wait_for(lambda: not self.all(), 5.0)
        assert self.process.stderr is not None
        return code, self.process.stderr.read()

    def kill(self) -> None:
        for pid in self.all():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self.process.communicate()


@contextmanager
def started(ranks: int, *arguments: str) -> Iterator[Job]:
    """A job, of which nothing is left afterwards."""
    job = Job(ranks, arguments)
    try:
        yield job
    finally:
        job.kill()


def wait_for(happened: Callable[[], bool], seconds: float = 60.0) -> None:
    """Until it has happened; a failure if it has not after so many seconds."""
    until = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < until, "it has not happened"
        time.sleep(0.02)
