"""Regularisers of the weights: quadratic forms, with gradients and Hessian products across slab boundaries.

    Tikhonov          ½ α h Σ_j |θ_j|²
    time derivative   ½ α ∫|θ'|² dt       (keeps the weights smooth in the layer index)
    quadratic         ½ α Σ_p |p|²        of parameters that every rank holds, such as those of a classifier

Where each layer has weights of its own, the integral is h Σ_{j<N−1} |(θ_{j+1} − θ_j)/h|²; on a control grid it is that
of its basis, exactly (of a piecewise constant one, that of the line through the middles of its cells).

Source: Haber, Ruthotto, Stable architectures for deep neural networks (2017).
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lpnet.controls import Form, Grid
from lpnet.errors import InputError
from lpnet.module import LayerParallel


class Penalty(Protocol):
    """A term of the objective; calling it gives the same scalar on every rank (collective), differentiable."""

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """What it depends on."""

    def __call__(self) -> Tensor: ...

    def hessian(self, v: Sequence[Tensor]) -> list[Tensor]:
        """∇²P v, exactly, for v like `parameters`; collective."""


class _OfTrunk:
    """A weight α and a trunk, and the form Q of ½ α θᵀQθ."""

    def __init__(self, trunk: LayerParallel, weight: float) -> None:
        if not isinstance(trunk, LayerParallel):
            raise InputError(f"trunk: a {type(trunk).__name__} given, an lpnet.LayerParallel (such as net[1]) allowed")
        self.trunk, self.weight = trunk, _checked(weight)

    def form(self, v: Tensor) -> Form:
        """The form vᵀQv, for a tensor like one of the trunk's parameters."""
        raise NotImplementedError

    @property
    def parameters(self) -> tuple[Tensor, ...]:
        """Those of the trunk, in the order of `trunk.theta`."""
        return tuple(self.trunk.theta.values())

    def __call__(self) -> Tensor:
        return _Value.apply(self, *self.parameters)

    def hessian(self, v: Sequence[Tensor]) -> list[Tensor]:
        """α Q v, exactly, for v like `parameters`; collective."""
        return [self.form(t.detach()).product(self.weight) for t in v]


class Tikhonov(_OfTrunk):
    """½ α h Σ_j |θ_j|² over all weights of all layers."""

    def form(self, v: Tensor) -> Form:
        return self.trunk.grid.square(v)


class TimeDerivative(_OfTrunk):
    """½ α ∫|θ'|² dt over all weights; where each layer has its own, ½ (α/h) Σ_j |θ_{j+1} − θ_j|²."""

    def form(self, v: Tensor) -> Form:
        return self.trunk.grid.derivative(v)


class Quadratic:
    """½ α Σ|p|² of parameters that every rank holds.

    Args:
        parameters: one or several.
        weight: α.

    Raises:
        InputError: parameters that are spread over the ranks, or a weight that is no number of at least 0.
    """

    def __init__(self, parameters: Tensor | Iterable[Tensor], weight: float) -> None:
        self.parameters = (parameters,) if isinstance(parameters, Tensor) else tuple(parameters)
        self.weight = _checked(weight)
        if any(getattr(p, "lpnet_slab", None) is not None for p in self.parameters):
            raise InputError("parameters: weights of layers given, only replicated ones allowed (see Tikhonov)")

    def __call__(self) -> Tensor:
        return sum((0.5 * self.weight * p.square().sum() for p in self.parameters), torch.zeros(()))

    def hessian(self, v: Sequence[Tensor]) -> list[Tensor]:
        """α v."""
        return [self.weight * t.detach() for t in v]


def _checked(weight: Any) -> float:
    if not (isinstance(weight, int | float) and math.isfinite(weight) and weight >= 0):
        raise InputError(f"weight: {weight!r} given, a number of at least 0 allowed")
    return float(weight)


class _Value(torch.autograd.Function):
    """½ α Σ θᵀQθ, summed in float64 and in the order of the layers; the gradients α Qθ are made when asked for."""

    @staticmethod
    def forward(ctx: Any, penalty: _OfTrunk, *theta: Tensor) -> Tensor:
        forms = [penalty.form(t.detach()) for t in theta]
        ctx.weight, ctx.forms = penalty.weight, forms
        ctx.save_for_backward(*theta)  # so that a change of them before `backward` is an error
        grid: Grid = penalty.trunk.grid
        total = grid.sums(torch.stack([form.parts() for form in forms], dim=1)).sum()
        return (0.5 * penalty.weight * total).to(theta[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        needed = zip(ctx.forms, ctx.saved_tensors, ctx.needs_input_grad[1:], strict=True)
        return (None, *(form.product(bar * ctx.weight) if needs else None for form, _, needs in needed))
