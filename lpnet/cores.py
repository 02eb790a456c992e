"""How many cores a rank really has, and so how many threads.

Three limits hold: the cores that the process may run on, divided by the ranks that share them; the processor time that
its control group may take (``cpu.max``, or ``cpu.cfs_quota_us`` of version 1), divided by the ranks of the node; and
what SLURM gives to a task.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path

_MOUNT = Path("/sys/fs/cgroup")
_GROUPS = Path("/proc/self/cgroup")


def affinity() -> frozenset[int]:
    """The cores that this process may run on; where the system does not tell them, all."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def quota(mount: Path = _MOUNT, groups: Path = _GROUPS) -> float | None:
    """Cores whose time the control group of this process may take, with all groups above it; None: no limit.

    Args:
        mount: where the control groups are mounted.
        groups: the file that says of which this process is.
    """
    if not groups.exists():
        return None
    found: list[float] = []
    for line in groups.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += [_v2(folder) for root in (mount, mount / "unified") for folder in _upwards(root, path)]
        elif "cpu" in controllers.split(","):
            found += [_v1(folder) for root in (mount / "cpu", mount / controllers) for folder in _upwards(root, path)]
    least = min(found, default=math.inf)
    return None if math.isinf(least) else least


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a group and those above it, up to the mount (which is that of the group within a container)."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _v2(folder: Path) -> float:
    limit, _, period = _read(folder / "cpu.max").partition(" ")
    return _ratio(limit, period)


def _v1(folder: Path) -> float:
    return _ratio(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _read(file: Path) -> str:
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _ratio(limit: str, period: str) -> float:
    """Quota over period; no limit where it is "max", negative, or not there."""
    if limit.isdigit() and period.isdigit() and int(period) and int(limit):
        return int(limit) / int(period)
    return math.inf


def threads(cores: int, sharing: int, share: float | None, node: int, environment: Mapping[str, str]) -> int | None:
    """Threads that a rank should use; None: OMP_NUM_THREADS says it, which torch has read.

    Args:
        cores: that the rank may run on.
        sharing: ranks that may run on the same ones.
        share: cores whose time the control group may take (see `quota`).
        node: ranks on the machine.
        environment: variables of the environment.
    """
    if environment.get("OMP_NUM_THREADS", "").strip():
        return None
    most = cores // max(1, sharing)
    if share is not None:
        most = min(most, int(share / max(1, node)))
    task = environment.get("SLURM_CPUS_PER_TASK", "")
    if task.isdigit() and int(task):
        most = min(most, int(task)) if sharing == 1 else min(cores, int(task))
    return max(1, most)
