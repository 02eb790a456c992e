"""Threads: what a rank may use by affinity, by its control group, and by SLURM."""

from pathlib import Path

import pytest

from lpnet import cores


def groups(folder: Path, line: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A mount of control groups with these files, and the file that says of which a process is."""
    for name, text in files.items():
        file = folder / "mount" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text + "\n")
    (folder / "own").write_text(line + "\n")
    return folder / "mount", folder / "own"


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/a/b", {"a/b/cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/b/cpu.max": "max 100000", "a/cpu.max": "200000 100000"}, 2.0),  # of a group above
        ("0::/a/b", {"cpu.max": "50000 100000"}, 0.5),  # in a container the group is the root of the mount
        ("0::/a", {"a/cpu.max": "max 100000"}, None),
        ("0::/../a", {"a/cpu.max": "300000 100000"}, 3.0),
        ("4:cpu,cpuacct:/x", {"cpu/x/cpu.cfs_quota_us": "400000", "cpu/x/cpu.cfs_period_us": "100000"}, 4.0),
        ("4:cpu:/x", {"cpu/x/cpu.cfs_quota_us": "-1", "cpu/x/cpu.cfs_period_us": "100000"}, None),
        ("7:cpuset:/x", {"cpu/x/cpu.cfs_quota_us": "100000", "cpu/x/cpu.cfs_period_us": "100000"}, None),
        ("0::/", {}, None),
    ],
)
def test_quota_is_the_least_of_the_groups(tmp_path: Path, line: str, files: dict[str, str], expected: float) -> None:
    assert cores.quota(*groups(tmp_path, line, files)) == expected


def test_no_control_groups_no_quota(tmp_path: Path) -> None:
    assert cores.quota(tmp_path, tmp_path / "nothing") is None


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ((8, 1, None, 1), {}, 8),
        ((8, 4, None, 4), {}, 2),  # four ranks on the same eight cores
        ((2, 1, None, 4), {}, 2),  # four ranks, each bound to two cores of its own
        ((3, 4, None, 4), {}, 1),  # more ranks than cores
        ((64, 4, 8.0, 4), {}, 2),  # a container with the time of eight cores
        ((64, 1, 2.5, 1), {}, 2),
        ((64, 1, 0.5, 1), {}, 1),
        ((64, 1, None, 1), {"SLURM_CPUS_PER_TASK": "4"}, 4),
        ((64, 4, None, 4), {"SLURM_CPUS_PER_TASK": "4"}, 4),  # not bound, but of its own
        ((2, 1, None, 1), {"SLURM_CPUS_PER_TASK": "4"}, 2),
        ((8, 1, None, 1), {"SLURM_CPUS_PER_TASK": "what"}, 8),
        ((8, 1, None, 1), {"OMP_NUM_THREADS": "3"}, None),
        ((8, 1, None, 1), {"OMP_NUM_THREADS": ""}, 8),
    ],
)
def test_threads(given: tuple[int, int, float | None, int], environment: dict[str, str], expected: int | None) -> None:
    assert cores.threads(*given, environment) == expected


def test_affinity_is_that_of_the_process() -> None:
    assert len(cores.affinity()) >= 1
