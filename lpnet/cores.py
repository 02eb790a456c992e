"""How many cores a rank really has, and so how many threads.

Three limits hold: the cores that the process may run on, divided by the ranks that share them; the processor time that
its control group may take (``cpu.max``, or ``cpu.cfs_quota_us`` of version 1), divided by the ranks of the node; and
what SLURM gives to a task.
"""

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path

MOUNT = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")


def affinity() -> frozenset[int]:
    """The cores that this process may run on; where the system does not tell them, all."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def quota(mount: Path = MOUNT, groups: Path = GROUPS) -> float | None:
    """Cores whose time the control group of this process may take, with all groups above it; None: no limit.

    Args:
        mount: where the control groups are mounted.
        groups: the file that says of which this process is.
    """
    least = limit("cpu", _v2, _v1, mount, groups)
    return None if math.isinf(least) else least


def limit(
    controller: str,
    v2: Callable[[Path], float],
    v1: Callable[[Path], float],
    mount: Path = MOUNT,
    groups: Path = GROUPS,
) -> float:
    """The least that the control groups of this process allow; infinity: no limit.

    Args:
        controller: of what.
        v2, v1: the limit in the folder of a group, by the version of control groups; infinity: none.
        mount, groups: as for `quota`.
    """
    if not groups.exists():
        return math.inf
    found: list[float] = []
    for line in groups.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found += [v2(folder) for root in (mount, mount / "unified") for folder in _upwards(root, path)]
        elif controller in controllers.split(","):
            roots = (mount / controller, mount / controllers)
            found += [v1(folder) for root in roots for folder in _upwards(root, path)]
    return min(found, default=math.inf)


def _upwards(root: Path, path: str) -> list[Path]:
    """The folder of a group and those above it, up to the mount (which is that of the group within a container)."""
    parts = [part for part in path.split("/") if part not in ("", "..")]
    return [root.joinpath(*parts[:n]) for n in range(len(parts), -1, -1)]


def _v2(folder: Path) -> float:
    most, _, period = text_of(folder / "cpu.max").partition(" ")
    return _ratio(most, period)


def _v1(folder: Path) -> float:
    return _ratio(text_of(folder / "cpu.cfs_quota_us"), text_of(folder / "cpu.cfs_period_us"))


def text_of(file: Path) -> str:
    """What a file of a control group says; empty where there is none."""
    return file.read_text(encoding="utf-8").strip() if file.is_file() else ""


def _ratio(most: str, period: str) -> float:
    """Quota over period; no limit where it is "max", negative, or not there."""
    if most.isdigit() and period.isdigit() and int(period) and int(most):
        return int(most) / int(period)
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
