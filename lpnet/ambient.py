"""What torch may have put around a call of a trunk: autocast, and the transforms of `torch.func`.

A solve adds states up over all layers and compares those of fine and coarse steps, in the type of the weights; in half
precision the differences that it lives on would be rounding. So autocast is off inside, forward and backward, and an
input that autocast has brought to its type is cast to that of the weights, as torch does where it wants float32.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

from lpnet.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

KINDS = ("cpu", "cuda")
"""Devices of a trunk that have autocast."""

TRANSFORMS = (
    "net: a trunk in a transform of torch.func or in forward-mode differentiation given, which cannot see into its "
    "solves; backward(), or the products of trunk.linearize(y) with its Jacobian and the transpose, allowed"
)


def without_autocast(function: Callable[P, R]) -> Callable[P, R]:
    """The function, in which autocast is off on processors and GPUs."""

    @wraps(function)
    def inside(*given: P.args, **named: P.kwargs) -> R:
        with ExitStack() as stack:
            for kind in KINDS:
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            return function(*given, **named)

    return inside


def uncast(y: Tensor, dtype: torch.dtype) -> Tensor:
    """An input of the type of autocast in this type; any other, and any where autocast is off, as it is."""
    kind = y.device.type if isinstance(y, Tensor) else None
    if kind not in KINDS or not torch.is_autocast_enabled(kind):
        return y
    return y.to(dtype) if y.dtype == torch.get_autocast_dtype(kind) else y


def refuse_transforms() -> None:
    """Raise `InputError` inside a transform of `torch.func`, such as `grad`, `jvp` or `vmap`."""
    if torch._C._are_functorch_transforms_active():  # as torch asks before it applies an autograd.Function
        raise InputError(TRANSFORMS)
