"""Exceptions that a user's own script does not catch: bad input is one line and code 2, all else a traceback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lpnet
from lpnet import slab

SCRIPTS = {
    "dynamics: BatchNorm1d": "trunk(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))",
    "dynamics: a map of shape (2, 3) to (2, 4) given": "trunk(nn.Linear(3, 4))(torch.zeros(2, 3))",
    "coarsening: 1 given": "lpnet.MGRIT(coarsening=1)",
    "input: shape (2, 5) given": "trunk(lpnet.dynamics.Dense(3))(torch.zeros(2, 5))",
    "stepper=lpnet.steppers.Verlet() allowed": "trunk(lpnet.dynamics.Hamiltonian(3))",
    "parameters: a Linear given": "lpnet.grad_norm(nn.Linear(2, 2))",
}

HEAD = """import torch
from torch import nn
import lpnet
from lpnet import slab
def trunk(module):
    return lpnet.LayerParallel(module, 8, 1.0)
"""


def done(folder: Path, ranks: int, code: str) -> subprocess.CompletedProcess[str]:
    """What becomes of a script on so many ranks (0: without mpirun)."""
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if ranks and (mpirun is None or slab.launcher()):
        pytest.skip("needs mpirun, and not to run under it")
    script = folder / "script.py"
    script.write_text(f"{HEAD}{code}\n")
    launch = [str(mpirun), "-n", str(ranks)] if ranks else []
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(lpnet.__file__).parents[1])}
    command = [*launch, sys.executable, str(script)]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("ranks", "said"), [*((0, said) for said in SCRIPTS), (3, "input: shape (2, 5) given"), (3, "coarsening: 1 given")]
)
def test_bad_input_is_one_line_with_its_place(tmp_path: Path, ranks: int, said: str) -> None:
    found = done(tmp_path, ranks, SCRIPTS[said])
    assert found.returncode == 2
    (line,) = found.stderr.splitlines()
    assert line.startswith("lpnet: error: ")
    assert said in line
    assert f"({tmp_path / 'script.py'}, line " in line


def test_the_place_is_none_of_the_standard_library(tmp_path: Path) -> None:
    """What is raised in a context manager comes through `contextlib`."""
    found = done(tmp_path, 0, f"lpnet.checkpoint.load({str(tmp_path / 'none.h5')!r}, nn.Linear(2, 2))")
    assert found.returncode == 2
    assert f"({tmp_path / 'script.py'}, line " in found.stderr


def test_bad_input_of_one_rank_ends_all(tmp_path: Path) -> None:
    found = done(tmp_path, 3, "if slab.world().rank == 1:\n    lpnet.MGRIT(coarsening=1)\nslab.world().barrier()")
    assert found.returncode != 0
    assert found.stderr.count("lpnet: error: coarsening: 1 given") == 1


@pytest.mark.parametrize("ranks", [0, 2])
def test_other_exceptions_keep_their_traceback(tmp_path: Path, ranks: int) -> None:
    one = f"if slab.world().rank == {max(ranks - 1, 0)}:\n    raise KeyError('boom')\nslab.world().barrier()"
    found = done(tmp_path, ranks, one)
    assert found.returncode != 0
    assert found.stderr.count("KeyError: 'boom'") == 1
    assert ("lpnet: rank 1 of 2 failed:" in found.stderr) == (ranks == 2)
