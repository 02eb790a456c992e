"""Ranks that do different things wait for each other for ever, or mix trainings: so they compare before any work."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from lpnet.errors import InputError
from lpnet.launch import share, together
from lpnet.slab import Comm
from lpnet.version import __version__

SHOWN = 3
"""Keys that differ, of which both values are shown."""


def require_same_start(comm: Comm, arguments: Sequence[str]) -> None:
    """Require that all ranks have the same versions and arguments; collective, before the arguments are looked into.

    Raises:
        InputError: as `require_same`.
    """
    versions = {
        "lpnet": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }
    require_same(comm, versions | _named(arguments))


def require_same(comm: Comm, found: Mapping[str, Any]) -> None:
    """Require that all ranks have found the same; collective, one small collective where they have.

    Args:
        comm: the ranks.
        found: what may differ, by name; compared as text.

    Raises:
        InputError: on all ranks: names the first rank that differs from rank 0, and in what.
    """
    text = json.dumps({key: repr(value) for key, value in found.items()})
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), dtype=np.uint8)
    table = comm.allgather(digest[None], [1] * comm.size)
    others = np.flatnonzero((table != table[0]).any(axis=1))
    if len(others):
        rank = int(others[0])
        ours, theirs = (json.loads(share(comm, text, root)) for root in (0, rank))
        with together(comm):
            raise InputError(_difference(ours, theirs, rank))


def _named(arguments: Sequence[str]) -> dict[str, str]:
    """The arguments by what they are given for: ``--key value``, ``--key=value``, or their place."""
    found: dict[str, str] = {}
    open_key = ""
    for place, argument in enumerate(arguments):
        key, equals, value = argument.partition("=")
        if not argument.startswith("--"):
            key, value = open_key or f"argument {place + 1}", argument
        found[key] = f"{found.get(key, '')} {value}".strip()
        open_key = key if argument.startswith("--") and not equals else ""
    return found


def _difference(ours: Mapping[str, str], theirs: Mapping[str, str], rank: int) -> str:
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    shown = [
        f"{key}: {ours.get(key, 'nothing')} on rank 0 and {theirs.get(key, 'nothing')} on rank {rank}"
        for key in keys[:SHOWN]
    ]
    more = f" (and {len(keys) - SHOWN} keys more)" if len(keys) > SHOWN else ""
    return f"{'; '.join(shown)} given{more}, the same on all ranks allowed"
