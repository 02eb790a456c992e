"""Training runs as seen from outside: processes that are started, watched and killed, on a disk that can be full."""

import argparse
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path

import lpnet
from lpnet.arguments import Parser
from lpnet.scaling.ranks import mpirun

MARK = "LPNET_JOB"
"""Environment variable by which all processes of a job are known, whoever started them."""


def options(parser: Parser, arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options of a script; those of ``lpnet.train`` (--section.key VALUE) are its `more`.

    Raises:
        InputError: an option is neither, or its value is not allowed.
    """
    args, args.more = parser.parse_known_args(arguments)
    for argument in args.more:
        if argument.startswith("-") and "." not in argument.partition("=")[0]:
            parser.error(f"unrecognized arguments: {argument}")
    return args


def marked(mark: str) -> dict[int, str]:
    """Every process with this mark that is alive: its number, and its command line."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                found[int(path.name)] = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:  # it has ended
            continue
    return {pid: line for pid, line in found.items() if line}  # a zombie has none


class Broken(Exception):
    """Something that leaves no way to go on."""


class Job:
    """Processes of `python ARGUMENTS` on some ranks, one thread each, without mpirun on one; ended by leaving `with`.

    Args:
        ranks: how many.
        arguments: of Python.
    """

    def __init__(self, ranks: int, arguments: Sequence[str]) -> None:
        self.ranks, self.mark, self._said = ranks, uuid.uuid4().hex, [""]
        above = str(Path(lpnet.__file__).parents[1])
        self.process = subprocess.Popen(
            [*(mpirun(ranks) if ranks > 1 else []), sys.executable, *arguments],
            env=os.environ | {"OMP_NUM_THREADS": "1", MARK: self.mark, "PYTHONPATH": above},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *_: object) -> None:
        self.end(0.0)

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._said[:] = [self.process.stdout.read()]

    @property
    def said(self) -> str:
        """What the job wrote on both of its outputs, once it has ended."""
        self._reader.join(1.0)
        return self._said[0]

    @property
    def runs(self) -> bool:
        """Whether the process that was started has not ended."""
        return self.process.poll() is None

    def alive(self) -> dict[int, str]:
        """Every process of the job that is alive: its number, and its command line."""
        return marked(self.mark)

    def workers(self) -> list[int]:
        """Processes that are ranks, in the order of their start."""
        return sorted(pid for pid, line in self.alive().items() if line.startswith(sys.executable))

    def launchers(self) -> list[int]:
        """mpirun, and what it has started to start the ranks."""
        return sorted(set(self.alive()) - set(self.workers()))

    def end(self, seconds: float, meanwhile: Callable[[], None] = lambda: None) -> tuple[int | None, float, int]:
        """Wait until nothing is left, and see to it.

        Args:
            seconds: to wait at most.
            meanwhile: is called every now and then.

        Returns:
            The exit code (None: it did not end), the seconds that it took, and how many processes had to be killed.
        """
        began = time.monotonic()
        while self.runs and time.monotonic() < began + seconds:
            meanwhile()
            time.sleep(0.01)
        code = self.process.poll()
        while self.alive() and time.monotonic() < began + seconds:
            time.sleep(0.05)
        taken, left = time.monotonic() - began, self.alive()
        send(list(left), signal.SIGKILL)
        self.process.wait()
        return code, taken, len(left)


def send(pids: Sequence[int], number: signal.Signals) -> int:
    """Send a signal to processes; how many of them were there to get it."""
    reached = 0
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
        reached += 1
    return reached


class Disk:
    """A folder whose disk can be full: a small file system in memory for root, else files that may not grow.

    Args:
        folder: is made.
        mebibytes: of the file system.
    """

    def __init__(self, folder: Path, mebibytes: int) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        command = ["mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "lpnet-chaos", str(folder)]
        root = os.geteuid() == 0
        self.mounted = root and subprocess.run(command, capture_output=True, check=False).returncode == 0
        self._filler = folder / "filler"

    def fill(self, job: Job) -> None:
        """Leave no room for what this job writes; again and again, for what it removes makes room."""
        if not self.mounted:
            for pid in job.alive():
                try:
                    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
                except ProcessLookupError:
                    continue
            return
        with self._filler.open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(2**20))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise

    def clear(self) -> None:
        """Room again; a limit of files ends with its job."""
        self._filler.unlink(missing_ok=True)

    def leave(self) -> None:
        """Unmount it, with all that it holds."""
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)
            self.mounted = False
