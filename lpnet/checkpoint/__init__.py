"""Checkpoints of networks, optimizers and schedules, for training loops of one's own; runs on any number of ranks.

    lpnet.checkpoint.save("step-100.h5", net, optimizer, schedule, meta={"step": 100})
    meta = lpnet.checkpoint.load("step-100.h5", net, optimizer, schedule)

The file is HDF5 with check sums (see `lpnet.checkpoint.file`); loading one executes nothing that is in it.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from lpnet.errors import InputError, shown
from lpnet.sharded import trunks
from lpnet.slab import Comm, world

__all__ = ["load", "save"]


def save(
    path: str | Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    schedule: LRScheduler | None = None,
    meta: dict[str, Any] | None = None,
) -> None:
    """Write a checkpoint, at once or not at all; collective. It is on the disk when this returns.

    The generators of torch are in it, so that dropout goes on as it would have.

    Args:
        path: the file, replaced if it exists.
        net: its parameters and buffers, of all layers.
        optimizer: of parameters of `net`; elementwise optimizers of torch, and those of `lpnet.optim`.
        schedule: of torch.
        meta: values of JSON, keys are texts; those of rank 0 are written, and tuples come back as lists.

    Raises:
        OutputError: it cannot be written; what had this name before still has it.
        InputError: something is kept that cannot be written.
    """
    from lpnet.checkpoint import file, generators, states  # bring h5py, which the engine does not need
    from lpnet.launch import together

    comm = _ranks(net)
    with together(comm):
        if comm.rank == 0:
            _require_texts({} if meta is None else meta)
    content = states.of_net(net)
    if optimizer is not None:
        content |= states.of_optimizer(optimizer, net)
    if schedule is not None:
        content |= states.of_schedule(schedule)
    content |= generators.content()
    content.meta["user"] = {} if meta is None else meta
    file.write(path, comm, content)


def load(
    path: str | Path,
    net: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    schedule: LRScheduler | None = None,
) -> dict[str, Any]:
    """Take up a checkpoint, on any number of ranks; collective. Torch's generators go on from where they were.

    Args:
        path: the file, as `save` wrote it.
        net: of the same form.
        optimizer: of the same kind and parameters; None: what the file has is left there.
        schedule: the same.

    Returns:
        The meta data that were given to `save`.

    Raises:
        InputError: the file is missing, damaged, or of another network, optimizer or schedule; nothing was changed.
    """
    from lpnet.checkpoint import file, generators, states
    from lpnet.launch import together

    comm = _ranks(net)
    stored = file.read(path, comm)
    try:
        meta = stored.meta.get("user")
        with together(comm):
            if not isinstance(meta, dict):
                raise stored.unusable("it was not written by lpnet.checkpoint.save")
            puts = [states.for_net(stored, net)]
            if optimizer is not None:
                puts.append(states.for_optimizer(stored, optimizer, net))
            if "generator/cpu" in stored.names():
                puts.append(generators.restoring(stored))
            if schedule is not None:
                puts.append(states.for_schedule(stored, schedule))
        for put in puts:  # only when all ranks have found what they need
            put()
        return meta
    finally:
        stored.close()


def _ranks(net: nn.Module) -> Comm:
    found = trunks(net)
    return found[0].comm if found else world()


def _require_texts(meta: Any, place: str = "meta") -> None:
    """Require a mapping whose keys are texts on all levels: JSON would make texts of others."""
    if place == "meta" and not isinstance(meta, dict):
        raise InputError(f"meta: {shown(meta)} given, a dict of values of JSON allowed")
    if isinstance(meta, dict):
        for key, value in meta.items():
            if not isinstance(key, str):
                raise InputError(f"{place}: the key {shown(key)} given, texts allowed")
            _require_texts(value, f"{place}[{key!r}]")
    elif isinstance(meta, list | tuple):
        for value in meta:
            _require_texts(value, f"{place}[…]")
