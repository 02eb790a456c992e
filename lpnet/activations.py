"""Activations σ with their derivative taken from one stored tensor per layer, the tape.

For tanh, ReLU and smoothed ReLU the tape is the output a = σ(u), from which σ'(u) follows; for GELU, which is not
monotone, it is the argument u.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ETA = 0.1
"""Half width of the quadratic part of the smoothed ReLU."""

_aten = torch.ops.aten


class Activation(NamedTuple):
    """An activation in three forms.

    Attributes:
        plain: a = σ(u), differentiable by autograd.
        apply: overwrites u by the tape and returns a (which may be the same tensor).
        value: a from the tape.
        pull: (cotangent, tape, out) writes out = σ'(u) * cotangent.
        slope: the largest σ'.
    """

    plain: Callable[[Tensor], Tensor]
    apply: Callable[[Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor, Tensor, Tensor], Tensor]
    slope: float = 1.0


def smooth_relu(u: Tensor) -> Tensor:
    """ReLU, with the quadratic u²/(4η) + u/2 + η/4 for |u| < η."""
    quadratic = (u.clamp(-ETA, ETA) + ETA).square() / (4 * ETA)
    return quadratic + torch.relu(u - ETA)


def _smooth_relu_apply(u: Tensor) -> Tensor:
    linear = torch.relu(u - ETA)
    return u.clamp_(-ETA, ETA).add_(ETA).square_().div_(4 * ETA).add_(linear)


def _smooth_relu_pull(bar: Tensor, a: Tensor, out: Tensor) -> Tensor:
    # On the quadratic part a = (u + η)²/(4η), so that σ' = (u + η)/(2η) = √(a/η); beyond it a > η and σ' = 1.
    return torch.mul(bar, (a / ETA).sqrt_().clamp_(max=1.0), out=out)


def _same(a: Tensor) -> Tensor:
    return a


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(
        torch.tanh, torch.tanh_, _same, lambda bar, a, out: _aten.tanh_backward.grad_input(bar, a, grad_input=out)
    ),
    "relu": Activation(
        torch.relu,
        torch.relu_,
        _same,
        lambda bar, a, out: _aten.threshold_backward.grad_input(bar, a, 0, grad_input=out),
    ),
    "smooth_relu": Activation(smooth_relu, _smooth_relu_apply, _same, _smooth_relu_pull),
    "gelu": Activation(
        torch.nn.functional.gelu,
        torch.nn.functional.gelu,
        torch.nn.functional.gelu,
        lambda bar, u, out: _aten.gelu_backward.grad_input(bar, u, grad_input=out),
        slope=1.1289042,  # Φ(u) + u φ(u) at u = √2
    ),
}
