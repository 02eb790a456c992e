"""Regularisers of the weights of a trunk, with gradients across slab boundaries.

    Tikhonov          ½ α h Σ_j |θ_j|²
    time derivative   ½ α h Σ_{j<N−1} |(θ_{j+1} − θ_j)/h|²      (keeps the weights smooth in the layer index)

Source: Haber, Ruthotto, Stable architectures for deep neural networks (2017).
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lpnet.errors import InputError
from lpnet.module import LayerParallel
from lpnet.slab import Slab, layer_squares


class _Regularizer:
    """A weight α and a trunk; calling it gives the same scalar on every rank (collective), differentiable."""

    def __init__(self, trunk: LayerParallel, weight: float) -> None:
        if not (isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0):
            raise InputError(f"weight: {weight!r} given, a number of at least 0 allowed")
        self.trunk, self.weight = trunk, float(weight)


class Tikhonov(_Regularizer):
    """½ α h Σ_j |θ_j|² over all weights of all layers."""

    def __call__(self) -> Tensor:
        trunk = self.trunk
        return _Square.apply(trunk._slab, self.weight * trunk.h, *trunk.theta.values())


class TimeDerivative(_Regularizer):
    """½ (α/h) Σ_j |θ_{j+1} − θ_j|² over all weights."""

    def __call__(self) -> Tensor:
        trunk = self.trunk
        return _Difference.apply(trunk._slab, self.weight / trunk.h, *trunk.theta.values())


def _half_sum(slab: Slab, rows: list[Tensor], like: Tensor) -> Tensor:
    """½ Σ |row|² over layers and weights, in layer order."""
    squares = [layer_squares(r) for r in rows]
    return (0.5 * slab.sums(torch.stack(squares, dim=1)).sum()).to(like)


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slab: Slab, scale: float, *theta: Tensor) -> Tensor:
        ctx.scale = scale
        ctx.save_for_backward(*theta)
        return scale * _half_sum(slab, list(theta), theta[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(bar * ctx.scale * t for t in ctx.saved_tensors))


class _Difference(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slab: Slab, scale: float, *theta: Tensor) -> Tensor:
        pairs = [_differences(slab, t.detach()) for t in theta]
        ctx.scale = scale
        ctx.save_for_backward(*(g for _, g in pairs))
        return scale * _half_sum(slab, [d for d, _ in pairs], theta[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        return (None, None, *(bar * ctx.scale * g for g in ctx.saved_tensors))


def _differences(slab: Slab, t: Tensor) -> tuple[Tensor, Tensor]:
    """d_j = θ_{j+1} − θ_j of the local layers (0 for layer N − 1), and d_{j−1} − d_j, the gradient of ½ Σ |d|²."""
    if not len(t):
        return t, t
    comm = slab.comm
    busy = [r for r, n in enumerate(slab.counts) if n]
    place = busy.index(comm.rank)
    before = busy[place - 1] if place else None
    after = busy[place + 1] if place + 1 < len(busy) else None
    if before is not None:
        comm.send(t[0], before)
    if after is not None:
        comm.send(t[-1], after)
    following = comm.recv(t[0], after) if after is not None else t[-1]
    preceding = comm.recv(t[0], before) if before is not None else t[0]
    d = torch.cat([t[1:], following[None]]) - t
    earlier = torch.cat([(t[0] - preceding)[None], d[:-1]])
    return d, earlier - d
