"""What concerns replicated and sharded parameters together: norms, clipping, synchronising, exact evaluation."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lpnet.errors import InputError
from lpnet.module import LayerParallel
from lpnet.slab import Comm, Slab, layer_squares, world

_NOT_ELEMENTWISE = ("LBFGS", "Adafactor", "Muon")


def slab_of(parameter: Tensor) -> Slab | None:
    """The slab of a sharded parameter, None for a replicated one."""
    return getattr(parameter, "lpnet_slab", None)


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
    total = torch.zeros((), dtype=torch.float64)
    for slab, group in _by_slab(listed):
        if slab is None:
            squares = [p.grad.detach().double().square().sum().cpu() for p in group if p.grad is not None]
            total = total + sum(squares, torch.zeros((), dtype=torch.float64))
            continue
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in group]
        rows = [layer_squares(g) for g in grads]
        total = total + slab.sums(torch.stack(rows, dim=1)).sum()
    return total.sqrt()


def _listed(parameters: Iterable[Tensor] | Tensor) -> list[Tensor]:
    if isinstance(parameters, nn.Module):
        raise InputError(f"parameters: a {type(parameters).__name__} given, its .parameters() needed")
    return [parameters] if isinstance(parameters, Tensor) else list(parameters)


def _by_slab(parameters: list[Tensor]) -> list[tuple[Slab | None, list[Tensor]]]:
    groups: dict[int, tuple[Slab | None, list[Tensor]]] = {}
    for p in parameters:
        slab = slab_of(p)
        groups.setdefault(id(slab), (slab, []))[1].append(p)
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


def synchronize(net: nn.Module) -> bool:
    """Make the replicated parameters and buffers those of rank 0; returns whether they differed. Collective."""
    found = trunks(net)
    comm: Comm = found[0].comm if found else world()
    replicated = [t for t in (*net.parameters(), *net.buffers()) if slab_of(t) is None]
    sums = np.array([[t.detach().double().sum().item() for t in replicated]])
    everyone = comm.allgather(sums, [1] * comm.size)
    differed = bool((everyone != everyone[:1]).any()) and not bool(np.isnan(everyone).all())
    for t in replicated:
        comm.bcast_(t.data, 0)
    return differed


def _refuse(optimizer: Any, args: Any, kwargs: Any) -> None:
    if not any(kind.__name__ in _NOT_ELEMENTWISE for kind in type(optimizer).__mro__):
        return
    if any(slab_of(p) is not None for group in optimizer.param_groups for p in group["params"]):
        raise InputError(
            f"optimizer: {type(optimizer).__name__} given, which is not elementwise and would be silently wrong on "
            "slabs of layers; SGD, Adam, AdamW, RMSprop and other elementwise optimizers allowed"
        )


register_optimizer_step_pre_hook(_refuse)
