"""Memory that there is, at most: what surely does not fit is refused before the work begins.

What fits here may still not fit in the course of a run: a forecast of the whole is `lpnet.dryrun`.
"""

import math
import os
from pathlib import Path

import torch

from lpnet.cores import GROUPS, MOUNT, limit, text_of
from lpnet.errors import InputError

GIB = 2.0**30


def most(device: torch.device | str = "cpu", mount: Path = MOUNT, groups: Path = GROUPS) -> float:
    """Bytes of memory that this process can ever have: of the machine, within its control groups, or of a GPU."""
    where = torch.device(device)
    if where.type == "cuda":
        return float(torch.cuda.get_device_properties(where).total_memory)
    machine = float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    return min(machine, limit("memory", _v2, _v1, mount, groups))


def require(key: str, given: object, needed: float, what: str, device: torch.device | str = "cpu") -> None:
    """Refuse what needs more bytes than that.

    Args:
        key: of the option, or of several.
        given: its value.
        needed: bytes, at least.
        what: needs them.
        device: where they are needed.

    Raises:
        InputError: there is not so much.
    """
    there = most(device)
    if needed > there:
        text = f"{what} of at least {needed / GIB:.4g} GiB"
        raise InputError(f"{key}: {given} given, {text} where at most {there / GIB:.4g} GiB of memory are allowed")


def _v2(folder: Path) -> float:
    return _bytes(text_of(folder / "memory.max"))


def _v1(folder: Path) -> float:
    return _bytes(text_of(folder / "memory.limit_in_bytes"))


def _bytes(text: str) -> float:
    """No limit where it is "max", or not there."""
    return float(text) if text.isdigit() and int(text) else math.inf
