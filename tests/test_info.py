"""`python -m lpnet.info`: facts that agree with the process, on any number of ranks, with and without MPI."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from lpnet import info, slab
from lpnet.errors import InputError
from lpnet.version import __version__

FACTS = {
    "lpnet", "python", "torch", "numpy", "h5py", "mpi4py", "mpi", "mpi_error", "launcher", "ranks", "hosts", "cores",
    "threads", "devices", "dtype", "warnings",
}  # fmt: skip


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lpnet.info", *arguments]
    env = {**os.environ, **environment}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def no_mpi4py(tmp_path: Path) -> str:
    """A folder that hides mpi4py when it is first on the path."""
    (tmp_path / "mpi4py.py").write_text("raise ImportError('no MPI here')\n")
    return str(tmp_path)


def test_version_is_one_line() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"lpnet {__version__}\n", "")


def test_json_tells_the_truth() -> None:
    done = run("--json", OMP_NUM_THREADS="1")
    facts = json.loads(done.stdout)
    assert set(facts) == FACTS
    assert facts["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["numpy"] == np.__version__
    assert facts["python"] == platform.python_version()
    assert (facts["ranks"], facts["launcher"], facts["threads"]) == (1, None, 1)
    assert facts["hosts"] == {platform.node(): 1}
    assert facts["warnings"] == []
    assert facts["mpi"]["cuda_aware"] in (True, False)


def test_text_names_every_fact() -> None:
    done = run()
    assert done.returncode == 0
    names = [line[:15].strip() for line in done.stdout.splitlines()]
    for name in ("lpnet", "torch", "MPI", "CUDA-aware MPI", "launcher", "ranks", "hosts", "cores", "devices"):
        assert names.count(name) == 1, name


@pytest.mark.parametrize("launched", [False, True])
def test_works_without_mpi(no_mpi4py: str, launched: bool) -> None:
    environment = {"PMI_RANK": "0"} if launched else {}
    done = run(PYTHONPATH=no_mpi4py, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("MPI ")]
    assert "none" in line
    assert "no MPI here" in line


@pytest.mark.parametrize("argument", ["--jsn", "--js", "peaks"])
def test_unknown_argument_is_one_line(argument: str) -> None:
    done = run(argument)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert argument in done.stderr


def test_warns_of_a_launcher_of_another_mpi(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slab, "mpi_details", _raise)
    monkeypatch.setenv("PMI_SIZE", "3")
    (warning,) = info.collect()["warnings"]
    assert "started 3 ranks, MPI sees 1" in warning


def _raise() -> None:
    raise InputError("MPI: none")
