"""The batch files for SLURM, run by bash with a launcher that only says what it was asked for."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("variables", "arguments", "expected"),
    [
        ({}, [], "-m lpnet.scaling point strong --ranks 1 1"),
        ({"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_MAX": "3"}, [], "-m lpnet.scaling point strong --ranks 4 8"),
        (
            {"SLURM_ARRAY_TASK_ID": "1", "SLURM_ARRAY_TASK_MAX": "2", "SLURM_NTASKS": "4"},
            ["weak", "--layers", "16"],
            "-m lpnet.scaling point weak --ranks 2 4 --layers 16",
        ),
    ],
)
def test_scaling_asks_for_its_ranks(
    variables: dict[str, str], arguments: list[str], expected: str, tmp_path: Path
) -> None:
    done = scaling(tmp_path, variables, arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split("python ", 1)[1].strip() == expected
    ranks = expected.split("--ranks ")[1].split()[0]
    assert done.stdout.startswith(f"srun --ntasks={ranks} --cpu-bind=cores ")


def test_scaling_refuses_more_ranks_than_tasks(tmp_path: Path) -> None:
    done = scaling(tmp_path, {"SLURM_ARRAY_TASK_ID": "3", "SLURM_NTASKS": "4"}, [])
    assert done.returncode == 2
    assert done.stderr.startswith("scaling.sbatch: array: 3 given, which is 8 ranks of 4 tasks")


def scaling(folder: Path, variables: dict[str, str], arguments: list[str]) -> "subprocess.CompletedProcess[str]":
    """slurm/scaling.sbatch where it was submitted, in a folder with the scripts, an empty python and a fake srun."""
    shutil.copytree(ROOT / "scripts", folder / "scripts")
    for name, does in ((".venv/bin/python", ""), ("bin/srun", 'echo srun "$@"\n')):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(f"#!/bin/bash\n{does}", encoding="utf-8")
        (folder / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "LPNET_"))}
    given = {"PATH": f"{folder / 'bin'}:{kept.pop('PATH')}", "LPNET_LAUNCHER": "srun"}
    return subprocess.run(
        ["bash", str(ROOT / "slurm" / "scaling.sbatch"), *arguments],
        env={**kept, **given, **variables, "SLURM_SUBMIT_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=30,
    )
