"""The device of a rank and its threads: one GPU per rank of a node, in turn where there are fewer GPUs than ranks."""

import hashlib
import os
import platform

import numpy as np
import torch

from lpnet import cores
from lpnet.errors import InputError, shown, warn
from lpnet.slab import Comm, launcher

_AT_START = torch.get_num_threads()  # without a launcher: one for each physical core that this process may run on


def names() -> tuple[str, ...]:
    """What a device may be called on this machine."""
    count = _count()
    return ("auto", "cpu", *(["cuda"] if count else []), *(f"cuda:{i}" for i in range(count)))


def of_rank(name: torch.device | str | None, local_rank: int, count: int) -> torch.device | None:
    """The device that a name means for a rank.

    Args:
        name: "auto" (a GPU if there is one), "cpu", "cuda" (a GPU for each rank), "cuda:1", …; None: torch's default.
        local_rank: number of the rank on its node.
        count: GPUs that it sees.

    Raises:
        InputError: a GPU where there is none.
    """
    if name is None:
        return None
    if name == "auto":
        name = "cuda" if count else "cpu"
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        raise InputError(f"device: {shown(name)} given, 'cpu' or another device of this machine allowed") from None
    if device.type != "cuda":
        return device
    if not count or (device.index or 0) >= count:
        some = f"'cpu' or 'cuda' to 'cuda:{count - 1}'" if count else "'cpu'"
        raise InputError(f"device: {str(name)!r} given, {some} (on this machine) allowed")
    return torch.device("cuda", local_rank % count if device.index is None else device.index)


def own(name: torch.device | str | None, comm: Comm) -> torch.device | None:
    """The device that a name means for this rank."""
    device = of_rank(name, getattr(comm, "local_rank", 0), _count())
    try:
        holds = torch.empty(0, device=device).device.type != "meta"  # which has no numbers
    except (RuntimeError, AssertionError, NotImplementedError):
        holds = False
    if not holds:
        raise InputError(f"device: {shown(name)} given, 'cpu' or another device of this machine allowed")
    return device


def _count() -> int:
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def sharing(comm: Comm, what: str) -> int:
    """How many ranks of this machine name the same thing; collective."""
    name = f"{platform.node()} {what}".encode()
    row = np.frombuffer(hashlib.sha256(name).digest()[:8], dtype=np.int64)
    return int((comm.allgather(row, [1] * comm.size) == row).sum())


def use(device: torch.device, comm: Comm) -> None:
    """Make a GPU the current one, and warn once where ranks share one; collective."""
    what = f"rank {comm.rank}"
    if device.type == "cuda":
        torch.cuda.set_device(device)
        what = str(torch.cuda.get_device_properties(device).uuid)
    most = comm.agree(sharing(comm, what))
    if most > 1 and comm.rank == 0:
        warn(f"{most} ranks share a GPU, one for each rank is best")


def set_threads(comm: Comm, wanted: int | None = None) -> None:
    """Give torch the threads for which this rank has cores, or so many; collective."""
    mine = cores.affinity()
    same, node = sharing(comm, str(sorted(mine))), sharing(comm, "")
    found = cores.threads(len(mine), same, cores.quota(), node, os.environ)
    if found is not None and launcher() is None:
        found = min(found, _AT_START)
    if wanted is not None or found is not None:
        torch.set_num_threads(wanted or found or 1)
