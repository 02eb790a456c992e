"""What lpnet needs to know of one layer's dynamics, an `nn.Module` f(y, θ) without explicit time.

Any user module with ``forward(y) -> dy/dt`` (or ``kick(y)`` and ``drift(z)`` for partitioned dynamics) is one. The
built-in ones also say how they are written as ± C σ(M y + b), which gives them the hand-written fast path.
"""

import math
from itertools import takewhile
from typing import Any, ClassVar, Literal, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from lpnet.activations import ACTIVATIONS
from lpnet.errors import InputError
from lpnet.fields import DenseWeights

Spectrum = Literal["any", "imaginary", "real"]

_TERMS = {"forward", "kick", "drift", "terms", "sigma", "_matrix", "_matrices", "_descent", "__call__", "_call_impl"}
_WEIGHTS = {"K", "K1", "K2", "b"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Dynamics(nn.Module):
    """Base of the built-in dynamics: one layer with weights K, b, … on states (batch, width).

    Args:
        width: number of features of y.
        activation: "tanh", "relu", "smooth_relu" or "gelu".

    Class constants: `terms`, the methods that a stepper calls ("f" is ``forward``); `spectrum`, where the eigenvalues
    of the Jacobian lie for every state and all weights: "imaginary", "real" (not positive), or "any".
    """

    terms: ClassVar[tuple[str, ...]] = ("f",)
    spectrum: ClassVar[Spectrum] = "any"

    def __init__(self, width: int, activation: str = "tanh") -> None:
        super().__init__()
        check_whole("width", width)
        if activation not in ACTIVATIONS:
            raise InputError(f"activation: {activation!r} given, one of {', '.join(ACTIVATIONS)} allowed")
        self.width, self.activation = width, activation

    def sigma(self, u: Tensor) -> Tensor:
        """σ(u)."""
        return ACTIVATIONS[self.activation].plain(u)

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial weights of one layer in float64: matrices of variance 1/columns, biases 0."""
        found = {}
        for name, parameter in self.named_parameters():
            shape = parameter.shape
            normal = torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[-1] if shape else 1)
            found[name] = normal if len(shape) > 1 else torch.zeros(shape, dtype=torch.float64)
        return found

    def dense(self, theta: dict[str, Tensor]) -> dict[str, DenseWeights]:
        """Each term as ± C σ(M y + b), from stacked weights, differentiable."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        return f"width={self.width}, activation={self.activation!r}"


def described(module: nn.Module) -> TypeGuard[Dynamics]:
    """Whether `dense` and the name of the activation say what a module computes: built-in dynamics as they are.

    Not so where a subclass, or the object, has other methods than those that `dense` was written for, or weights that
    are no parameters of their own; nor with hooks or parametrizations. Such a module is one of the user's.
    """
    if not isinstance(module, Dynamics) or type(module).dense is Dynamics.dense:
        return False
    parameters = module._parameters
    changed = {*vars(module), *module._buffers, *module._modules, *(n for n, p in parameters.items() if p is None)}
    for kind in takewhile(_is_undescribed, type(module).__mro__):
        changed.update(vars(kind))
    if changed & (_TERMS | _WEIGHTS) or type(module).sigma is not Dynamics.sigma:
        return False
    tied = len({id(p) for p in parameters.values()}) < len(parameters)
    return not tied and not any(is_parametrized(m) or any(getattr(m, h) for h in _HOOKS) for m in module.modules())


def _is_undescribed(kind: type[Any]) -> bool:
    """Whether a class takes its `dense` from a class before it."""
    return "dense" not in vars(kind) and not kind.__module__.startswith("lpnet.dynamics.")


def check_whole(key: str, given: object) -> None:
    """Require a whole number of at least 1."""
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise InputError(f"{key}: {given!r} given, a whole number of at least 1 allowed")


def check_finite(key: str, given: object) -> None:
    """Require a finite number."""
    if not isinstance(given, int | float) or not math.isfinite(given):
        raise InputError(f"{key}: {given!r} given, a finite number allowed")


def shifted(K: Tensor, gamma: float) -> Tensor:
    """K − γI of square matrices (..., width, width)."""
    return K - gamma * torch.eye(K.shape[-1], dtype=K.dtype, device=K.device) if gamma else K
