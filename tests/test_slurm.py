"""The batch files for SLURM, run by bash with a launcher that only says what it was asked for.

What they do under a real SLURM: scripts/test_slurm.sh.
"""

import mmap
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2"}
AGAIN = JOB | {"SLURM_RESTART_COUNT": "1"}
# Ranks that write their next checkpoint and stop, as after a signal.
STOPS = 'mkdir -p runs/slurm-7/checkpoints; : >"runs/slurm-7/checkpoints/step-$(date +%s%N).h5"; exit 75'


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
    done = batch(tmp_path, "scaling", variables, arguments)
    assert (done.returncode, done.stderr) == (0, "")
    ranks = expected.split("--ranks ")[1].split()[0]
    assert asked(tmp_path) == [f"srun --ntasks={ranks} --kill-on-bad-exit=0 --cpu-bind=cores slurm/rank.sh {expected}"]


def test_scaling_refuses_more_ranks_than_tasks(tmp_path: Path) -> None:
    done = batch(tmp_path, "scaling", {"SLURM_ARRAY_TASK_ID": "3", "SLURM_NTASKS": "4"}, [])
    assert done.returncode == 2
    assert done.stderr.startswith("scaling.sbatch: array: 3 given, which is 8 ranks of 4 tasks")


@pytest.mark.parametrize("name", ["train", "gpu", "scaling"])
def test_submitted_from_elsewhere(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", str(ROOT / "slurm" / f"{name}.sbatch")],
        env=os.environ | {"SLURM_SUBMIT_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{name}.sbatch: no slurm/job.sh in {tmp_path}: submit from the root of the repository\n"


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("train", ["peaks"], "peaks --run.dir runs/slurm-7"),
        ("train", ["--run.dir", "mine"], "--run.dir mine"),
        ("train", ["--run.dir=mine"], "--run.dir=mine"),
        ("train", ["--resume", "mine"], "--resume mine"),
        ("gpu", ["peaks"], "peaks --run.device cuda --run.dir runs/slurm-7"),
        ("gpu", ["--run.device", "cuda:1"], "--run.device cuda:1 --run.dir runs/slurm-7"),
        ("gpu", ["--resume", "mine"], "--resume mine"),
    ],
)
def test_training_names_its_run_folder(name: str, arguments: list[str], expected: str, tmp_path: Path) -> None:
    assert batch(tmp_path, name, JOB, arguments).returncode == 0
    assert trained(tmp_path) == [expected]


@pytest.mark.parametrize(
    ("version", "bound"),
    [
        ("HYDRA build details", " -bind-to hwthread:2"),
        ("mpirun (Open MPI) 5.0.8", " --map-by slot:PE=2 --bind-to core:overload-allowed"),
        ("another one", ""),
    ],
)
@pytest.mark.parametrize("shared", [False, True])
def test_mpirun_binds_ranks_where_the_node_is_theirs(version: str, bound: str, shared: bool, tmp_path: Path) -> None:
    cores = len(os.sched_getaffinity(0))
    mine = {"SLURM_CPUS_PER_TASK": "2", "SLURM_CPUS_ON_NODE": str(cores - 1 if shared else cores)}
    mpirun = f'if [[ $1 == --version ]]; then echo "{version}"; else echo "$OMP_NUM_THREADS $@" >>asked; fi'
    prepare(tmp_path, "", "", {".venv/bin/mpirun": mpirun})
    given = environment(tmp_path, JOB | mine | {"LPNET_LAUNCHER": "mpirun"})
    assert subprocess.run(command("train", []), env=given, timeout=30).returncode == 0
    words = asked(tmp_path)[-1].split(" bash -c ")[0]
    assert words.startswith("2 ")
    assert words.endswith(f" -n 2{'' if shared else bound}")


@pytest.mark.parametrize("code", [0, 2, 5, 137])
def test_other_codes_end_the_job(code: int, tmp_path: Path) -> None:
    assert batch(tmp_path, "train", JOB, ["peaks"], f"exit {code}").returncode == code
    assert not requeued(tmp_path)


@pytest.mark.parametrize(
    ("variables", "job"), [(JOB, "7"), (JOB | {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "2"}, "6_2")]
)
@pytest.mark.parametrize("state", ["RUNNING None", "COMPLETING TimeLimit"])
def test_a_stopped_run_is_requeued_and_resumed(variables: dict[str, str], job: str, state: str, tmp_path: Path) -> None:
    done = batch(tmp_path, "train", variables, ["peaks"], STOPS, state)
    assert done.returncode == 75
    assert requeued(tmp_path) == [f"requeue {job}"]
    assert f"job {job}: requeued, goes on with runs/slurm-7 at step-" in done.stderr
    assert batch(tmp_path, "train", variables | AGAIN, ["peaks"]).returncode == 0
    assert trained(tmp_path)[1:] == ["--resume runs/slurm-7"]


@pytest.mark.parametrize("name", ["~/mine", f"~{Path.home().owner()}/mine", "~nosuchuser/mine", "my ~/mine"])
@pytest.mark.parametrize("option", ["--run.dir", "--resume"])
def test_a_tilde_is_what_lpnet_takes_it_for(name: str, option: str, tmp_path: Path) -> None:
    prepare(tmp_path, "", "")
    home = {"HOME": str(tmp_path / "home")}
    expected = Path(os.path.expanduser(name.replace("~/mine", f"{home['HOME']}/mine") if name[1] == "/" else name))
    words = f'source slurm/job.sh; arguments=(peaks "{option}={name}"); choose_folder; echo "$folder"'
    given = environment(tmp_path, JOB | home)
    done = subprocess.run(["bash", "-c", words], env=given, cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == (f"{expected}\n", "")


def test_a_run_in_the_home_folder_is_requeued_and_resumed(tmp_path: Path) -> None:
    home = JOB | {"HOME": str(tmp_path / "home")}
    stops = STOPS.replace("runs/slurm-7", "home/mine")
    done = batch(tmp_path, "train", home, ["peaks", "--run.dir=~/mine"], stops, "RUNNING None")
    assert done.returncode == 75
    assert requeued(tmp_path) == ["requeue 7"]
    assert batch(tmp_path, "train", AGAIN | home, ["peaks", "--run.dir=~/mine"]).returncode == 0
    assert trained(tmp_path)[1:] == [f"--resume {tmp_path / 'home' / 'mine'}"]


@pytest.mark.parametrize(
    ("variables", "does", "state", "said"),
    [
        (JOB, STOPS, "COMPLETING None", "ended from outside (COMPLETING), not requeued\njob 7: to go on: sbatch"),
        (JOB, "exit 75", "RUNNING None", "stopped with no step beyond the first, not requeued"),
        (JOB | {"LPNET_REQUEUE": "0"}, STOPS, "RUNNING None", ""),
    ],
    ids=["cancelled", "no progress", "not wanted"],
)
def test_what_is_not_requeued(variables: dict[str, str], does: str, state: str, said: str, tmp_path: Path) -> None:
    done = batch(tmp_path, "train", variables, [], does, state)
    assert done.returncode == 75
    assert said in done.stderr
    assert not requeued(tmp_path)


def test_a_restart_before_the_first_checkpoint_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "runs" / "slurm-7").mkdir(parents=True)
    (tmp_path / "runs" / "slurm-7" / "config.yaml").touch()
    assert batch(tmp_path, "train", AGAIN, ["peaks"]).returncode == 0
    assert trained(tmp_path) == ["peaks --run.dir runs/slurm-7"]
    assert (tmp_path / "runs" / "slurm-7-void-1" / "config.yaml").exists()


def test_shared_memory_of_killed_ranks_is_removed(tmp_path: Path) -> None:
    stale, fresh, other, held = (
        tmp_path / f"{name}_0" for name in ("mpich_shm_1a", "mpich_shm_2b", "x", "mpich_shm_3c")
    )
    for path in (stale, fresh, other, held):
        path.write_bytes(bytes(8))
        os.utime(path, (0, 0) if path is not fresh else None)
    with held.open("r+b") as file, mmap.mmap(file.fileno(), 8):
        subprocess.run(["bash", str(ROOT / "slurm" / "clean.sh"), str(tmp_path)], check=True, timeout=30)
    assert {file.name for file in tmp_path.iterdir()} == {fresh.name, other.name, held.name}


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_the_ranks_are_told_of_signals(number: signal.Signals, tmp_path: Path) -> None:
    waits = f"trap '{STOPS}' USR1; : >ready; for i in {{1..200}}; do sleep 0.05; done; exit 1"
    prepare(tmp_path, waits, "RUNNING None")
    job = subprocess.Popen(command("train", ["peaks"]), env=environment(tmp_path, JOB), stderr=subprocess.DEVNULL)
    until = time.monotonic() + 20
    while not (tmp_path / "ready").exists():
        assert time.monotonic() < until
        time.sleep(0.02)
    job.send_signal(number)
    assert job.wait(timeout=20) == 75
    assert requeued(tmp_path) == ["requeue 7"]


@pytest.mark.parametrize(("does", "code"), [("exit 1", 1), ("exit 5", 5), ("kill -9 $$", 137)])
def test_a_lost_rank_takes_all_ranks_along(does: str, code: int, tmp_path: Path) -> None:
    done = rank(tmp_path, does)
    assert done.returncode == code
    assert done.stderr.splitlines()[-1] == f"rank 3 ended with code {code}: ending all ranks"
    assert asked(tmp_path) == ["scancel --signal=KILL 7.1"]


@pytest.mark.parametrize("code", [0, 2, 3, 4, 75])
def test_ranks_that_all_end_are_left_alone(code: int, tmp_path: Path) -> None:
    done = rank(tmp_path, f"kill -TERM $PPID; kill -USR1 $PPID; kill -USR1 $$; sleep 0.1; exit {code}")
    assert (done.returncode, done.stderr) == (code, "")
    assert not (tmp_path / "asked").exists()


def test_a_signal_in_the_moment_in_which_a_rank_ends_changes_nothing(tmp_path: Path) -> None:
    for _ in range(40):
        done = rank(tmp_path, "kill -USR1 $PPID; exit 75")
        assert (done.returncode, done.stderr) == (75, "")


def rank(folder: Path, does: str) -> "subprocess.CompletedProcess[str]":
    """A rank under srun that does something."""
    prepare(folder, "", "")
    given = environment(folder, JOB | {"SLURM_STEP_ID": "1", "SLURM_PROCID": "3"})
    words = ["slurm/rank.sh", "bash", "-c", does]
    return subprocess.run(words, env=given, cwd=folder, capture_output=True, text=True, timeout=30)


def batch(
    folder: Path, name: str, variables: dict[str, str], arguments: list[str], does: str = "", state: str = ""
) -> "subprocess.CompletedProcess[str]":
    """A batch file where it was submitted, whose training does something, while SLURM says the job is in a state."""
    prepare(folder, does, state)
    given = environment(folder, variables)
    return subprocess.run(command(name, arguments), env=given, capture_output=True, text=True, timeout=30)


def command(name: str, arguments: list[str]) -> list[str]:
    return ["bash", str(ROOT / "slurm" / f"{name}.sbatch"), *arguments]


def environment(folder: Path, variables: dict[str, str]) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "LPNET_", "OMP_"))}
    given = {"PATH": f"{folder / 'bin'}:{kept.pop('PATH')}", "LPNET_LAUNCHER": "srun"}
    return kept | given | variables | {"SLURM_SUBMIT_DIR": str(folder)}


def prepare(folder: Path, does: str, state: str, more: dict[str, str] | None = None) -> None:
    """A folder with the scripts, an empty python, commands of SLURM that say what they are asked for, and more."""
    shutil.copytree(ROOT / "scripts", folder / "scripts", dirs_exist_ok=True)
    shutil.copytree(ROOT / "slurm", folder / "slurm", dirs_exist_ok=True)
    scontrol = 'if [[ $1 == show ]]; then echo "TaskPlugin = task/affinity"; else echo "scontrol $@" >>asked; fi'
    files = {
        ".venv/bin/python": "",
        "bin/srun": f'echo "srun $@" >>asked\ncase "$*" in *lpnet.train*) {does or ":"};; esac',
        "bin/scontrol": scontrol,
        "bin/scancel": 'echo "scancel $@" >>asked',
        "bin/squeue": f"echo '{state}'",
    }
    for name, text in (files | (more or {})).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (folder / name).chmod(0o755)


def asked(folder: Path) -> list[str]:
    """What SLURM was asked for, without the path of python and the cleaning of the nodes."""
    lines = [line for line in (folder / "asked").read_text(encoding="utf-8").splitlines() if "clean.sh" not in line]
    return [line.replace(f"{folder / '.venv/bin/python'} ", "") for line in lines]


def trained(folder: Path) -> list[str]:
    return [line.split("-m lpnet.train ")[1] for line in asked(folder) if "-m lpnet.train" in line]


def requeued(folder: Path) -> list[str]:
    return [line.removeprefix("scontrol ") for line in asked(folder) if line.startswith("scontrol")]
