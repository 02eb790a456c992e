"""What concerns replicated and sharded parameters together: inner products, clipping, synchronising, exact evaluation.

    ⟨a, b⟩ = Σ_replicated a·b + Σ_{j<N} a_j·b_j        with the terms of a trunk in the order of its layers
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lpnet.errors import InputError
from lpnet.module import LayerParallel
from lpnet.slab import Comm, Slab, world
from lpnet.sums import flat, layer_products

NOT_ELEMENTWISE = ("LBFGS", "Adafactor", "Muon")
"""Optimizers of torch that are not."""


def slab_of(parameter: Tensor) -> Slab | None:
    """The slab of a sharded parameter, None for a replicated one."""
    return getattr(parameter, "lpnet_slab", None)


def comm_of(parameter: Tensor) -> Comm | None:
    """The ranks that share a trunk's parameter, sharded or not; None for parameters beside the trunks."""
    return getattr(parameter, "lpnet_comm", None)


def trunks(net: nn.Module) -> list[LayerParallel]:
    """All layer-parallel parts of a network."""
    return [m for m in net.modules() if isinstance(m, LayerParallel)]


@contextmanager
def exact(net: nn.Module) -> Iterator[nn.Module]:
    """Inside, every `LayerParallel` of `net` propagates by the exact serial chain, forward and adjoint."""
    found = trunks(net)
    before = [trunk.exact for trunk in found]
    for trunk in found:
        trunk.exact = True
    try:
        yield net
    finally:
        for trunk, was in zip(found, before, strict=True):
            trunk.exact = was


def grad_norm(parameters: Iterable[Tensor] | Tensor) -> Tensor:
    """Euclidean norm of all gradients together, float64, the same on every rank; collective.

    Sums are taken per layer and in layer order, so that the result does not depend on the number of ranks.
    """
    listed = _listed(parameters)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in listed]
    return dots(listed, [(grads, grads)])[0].sqrt()


@torch.no_grad()
def dots(parameters: Sequence[Tensor], pairs: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]]) -> Tensor:
    """Inner products ⟨a, b⟩ of several pairs of vectors, the same on every rank; collective, once for each slab.

    Sums are taken in float64, per layer and in layer order: the same bits for every number of ranks.

    Args:
        parameters: say which parts of a vector are sharded, and over which slab.
        pairs: of vectors; a vector has one tensor for each parameter, of its shape.

    Returns:
        (pairs,), float64, on the host.
    """
    total = torch.zeros(len(pairs), dtype=torch.float64)
    for slab, members in _by_slab(parameters) if pairs else []:
        rows = torch.stack([_products([(a[i], b[i]) for a, b in pairs], slab is None) for i in members], dim=2)
        total = total + (rows[0] if slab is None else slab.sums(rows)).sum(dim=1)
    return total


def _products(pairs: list[tuple[Tensor, Tensor]], replicated: bool) -> Tensor:
    """a_j·b_j of every layer j: pairs of (n, ...) -> (n, pairs), on the host; a replicated tensor is one layer."""
    rows = {id(t): t.reshape(1, -1) if replicated else flat(t) for pair in pairs for t in pair}
    return layer_products([(rows[id(a)], rows[id(b)]) for a, b in pairs])


def _listed(parameters: Iterable[Tensor] | Tensor) -> list[Tensor]:
    if isinstance(parameters, nn.Module):
        raise InputError(f"parameters: a {type(parameters).__name__} given, its .parameters() needed")
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _by_slab(parameters: Sequence[Tensor]) -> list[tuple[Slab | None, list[int]]]:
    """The slabs, in order of appearance, each with the places of its parameters."""
    groups: dict[int, tuple[Slab | None, list[int]]] = {}
    for i, p in enumerate(parameters):
        slab = slab_of(p)
        groups.setdefault(id(slab), (slab, []))[1].append(i)
    return list(groups.values())


def clip_grad_norm_(parameters: Iterable[Tensor] | Tensor, max_norm: float) -> Tensor:
    """Scale all gradients so that their norm is at most `max_norm`; returns the norm before. Collective.

    Unlike `torch.nn.utils.clip_grad_norm_`, it takes the norm over all ranks' layers.
    """
    if not max_norm > 0:
        raise InputError(f"max_norm: {max_norm!r} given, a positive number allowed")
    listed = _listed(parameters)
    norm = grad_norm(listed)
    scale = float(max_norm / (norm + 1e-6))
    if scale < 1:
        for p in listed:
            if p.grad is not None:
                p.grad.mul_(scale)
    return norm


def synchronize(net: nn.Module, root: int = 0) -> bool:
    """Make the replicated parameters and buffers those of rank `root`; returns whether they differed. Collective."""
    found = trunks(net)
    comm: Comm = found[0].comm if found else world()
    replicated = [t for t in (*net.parameters(), *net.buffers()) if slab_of(t) is None]
    sums = np.array([[t.detach().double().sum().item() for t in replicated]])
    everyone = comm.allgather(sums, [1] * comm.size)
    differed = any(not np.array_equal(row, everyone[0], equal_nan=True) for row in everyone)
    for t in replicated:
        comm.bcast_(t.data, root)
    return differed


def refuse(optimizer: torch.optim.Optimizer) -> None:
    """Raise `InputError` for an optimizer of torch that is not elementwise and has slabs of layers to update."""
    kinds = [kind for kind in type(optimizer).__mro__ if kind.__module__.startswith("torch.")]
    if not any(kind.__name__ in NOT_ELEMENTWISE for kind in kinds):
        return
    if any(slab_of(p) is not None for group in optimizer.param_groups for p in group["params"]):
        raise InputError(
            f"optimizer: {type(optimizer).__name__} given, which is not elementwise and would be silently wrong on "
            "slabs of layers; lpnet.optim.LBFGS, SGD, Adam, AdamW, RMSprop and other elementwise optimizers allowed"
        )


def require_own(optimizer: torch.optim.Optimizer, net: nn.Module) -> None:
    """Raise `InputError` where an optimizer has parameters that are none of the network's."""
    known = set(net.parameters())
    if not all(p in known for group in optimizer.param_groups for p in group["params"]):
        kind = type(optimizer).__name__
        raise InputError(f"optimizer: a {kind} of other parameters given, those of the network allowed")


def _before_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    refuse(optimizer)


register_optimizer_step_pre_hook(_before_step)
