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

_tanh_backward = torch.ops.aten.tanh_backward.grad_input
_threshold_backward = torch.ops.aten.threshold_backward.grad_input
_gelu_backward = torch.ops.aten.gelu_backward.grad_input


class Activation(NamedTuple):
    """An activation in three forms.

    Attributes:
        plain: a = σ(u), differentiable by autograd.
        apply: (scale·u, out) writes the tape to out, which may be u, and returns a, which may be out; u is overwritten.
        value: a from the tape.
        pull: (cotangent, tape, out) writes out = σ'(u) * cotangent.
        slope: the largest σ'.
        scale: a power of two, by which `apply` wants its argument to be multiplied.
    """

    plain: Callable[[Tensor], Tensor]
    apply: Callable[[Tensor, Tensor], Tensor]
    value: Callable[[Tensor], Tensor]
    pull: Callable[[Tensor, Tensor, Tensor], Tensor]
    slope: float = 1.0
    scale: float = 1.0


def smooth_relu(u: Tensor) -> Tensor:
    """ReLU, with the quadratic u²/(4η) + u/2 + η/4 for |u| < η."""
    quadratic = (u.clamp(-ETA, ETA) + ETA).square() / (4 * ETA)
    return quadratic + torch.relu(u - ETA)


def _smooth_relu_apply(u: Tensor, out: Tensor) -> Tensor:
    linear = torch.relu(u - ETA)
    return torch.add(u.clamp_(-ETA, ETA).add_(ETA).square_().div_(4 * ETA), linear, out=out)


def _smooth_relu_pull(bar: Tensor, a: Tensor, out: Tensor) -> Tensor:
    # On the quadratic part a = (u + η)²/(4η), so that σ' = (u + η)/(2η) = √(a/η); beyond it a > η and σ' = 1.
    return torch.mul(bar, (a / ETA).sqrt_().clamp_(max=1.0), out=out)


def _same(a: Tensor) -> Tensor:
    return a


_MINUS_ONE = torch.tensor(-1.0)


def _tanh_by_sigmoid(u: Tensor, out: Tensor) -> Tensor:
    """tanh(u) = 2/(1 + exp(−2u)) − 1 from 2u."""
    return torch.add(_MINUS_ONE, u.sigmoid_(), alpha=2, out=out)


def _tanh_pull(bar: Tensor, a: Tensor, out: Tensor) -> Tensor:
    return _tanh_backward(bar, a, grad_input=out)


ACTIVATIONS: dict[str, Activation] = {
    "tanh": Activation(torch.tanh, lambda u, out: torch.tanh(u, out=out), _same, _tanh_pull),
    "relu": Activation(
        torch.relu,
        lambda u, out: torch.clamp_min(u, 0, out=out),
        _same,
        lambda bar, a, out: _threshold_backward(bar, a, 0, grad_input=out),
    ),
    "smooth_relu": Activation(smooth_relu, _smooth_relu_apply, _same, _smooth_relu_pull),
    "gelu": Activation(
        torch.nn.functional.gelu,
        lambda u, out: torch.nn.functional.gelu(out.copy_(u)),
        torch.nn.functional.gelu,
        lambda bar, u, out: _gelu_backward(bar, u, grad_input=out),
        slope=1.1289042,  # Φ(u) + u φ(u) at u = √2
    ),
}

_ON_CPU = {"tanh": ACTIVATIONS["tanh"]._replace(apply=_tanh_by_sigmoid, scale=2.0)}
"""Where another form is faster there: torch's tanh takes four times as long as its sigmoid.

The absolute error of this form is that of the addition, 2e-7 in float32 and 2e-16 in float64, where that of torch's
tanh is relative as well; for |u| far below 1 the relative error is thus larger.
"""


def kernels(name: str, device: torch.device) -> Activation:
    """The activation of this name in the form that is fastest on a device."""
    return _ON_CPU.get(name, ACTIVATIONS[name]) if device.type == "cpu" else ACTIVATIONS[name]
