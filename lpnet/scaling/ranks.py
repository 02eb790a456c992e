"""Ranks of a study: processes of mpirun, or threads of this process, which work in turn."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lpnet.errors import InputError

PATIENCE = 900.0
"""Seconds of one launch at most."""


def mpirun(ranks: int) -> list[str]:
    """The command that starts so many ranks: that beside Python, else the first on PATH; Open MPI's is told to go on.

    Raises:
        InputError: there is none.
    """
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise InputError(f"ranks: {ranks} given without mpirun, 1 allowed (or --processes-max 1)")
    said = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
    more = ["--oversubscribe"] if "Open MPI" in said or "OpenRTE" in said else []
    if more and os.geteuid() == 0:
        more.append("--allow-run-as-root")
    return [found, *more, "-n", str(ranks)]


def launch(ranks: int, arguments: Sequence[str]) -> None:
    """Run `python -m lpnet.scaling ARGUMENTS` on so many processes, one thread each.

    Raises:
        InputError: it failed; what it said is on standard error.
    """
    command = [*(mpirun(ranks) if ranks > 1 else []), sys.executable, "-m", "lpnet.scaling", *arguments]
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    code = subprocess.run(command, env=environment, check=False, timeout=PATIENCE).returncode
    if code:
        raise InputError(f"ranks: {ranks} given, which ended with exit code {code}; fewer allowed")
