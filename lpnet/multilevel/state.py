"""What an optimizer knows of a network, taken over to the prolongated one.

A gradient belongs to a layer of length h: where the layers become shorter by a factor r = N/N', so do their gradients,

    ∂loss/∂θ'_i ≈ r (∂loss/∂θ)(t'_i)

A mean of gradients (Adam's m, the momentum of SGD) is therefore interpolated in time and multiplied by r, a mean of
their squares (Adam's v) by r². Parameters beside the layers keep their state as it is.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from lpnet.errors import InputError
from lpnet.multilevel.prolong import interpolated
from lpnet.sharded import refuse, slab_of

# Degree in the gradient of what torch's elementwise optimizers keep for each weight.
_DEGREES = {
    "exp_avg": 1, "exp_avg_sq": 2, "max_exp_avg_sq": 2, "exp_inf": 1,  # Adam and its kin
    "momentum_buffer": 1,  # SGD
    "square_avg": 2, "grad_avg": 1, "acc_delta": 0,  # RMSprop, Adadelta
    "sum": 2,  # Adagrad
    "prev": 1, "step_size": 0,  # Rprop
    "ax": 0,  # ASGD
}  # fmt: skip
# The momentum of RMSprop is one of steps.
_EXCEPTIONS = {(torch.optim.RMSprop, "momentum_buffer"): 0}


def prolongate_state(optimizer: torch.optim.Optimizer, old: nn.Module, new: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of a prolongated network, with what the old one has learnt; collective.

    Elementwise optimizers (Adam, SGD with momentum, …) keep their state, interpolated in time, and their numbers of
    steps. Those whose memory is one of directions (L-BFGS, nonlinear CG) begin anew, with the same options. Of those
    that are made from a network and keep nothing (Gauss–Newton), make a new one.

    Args:
        optimizer: of parameters of `old`; is not changed.
        old: the network before,
        new: and after `prolongate_net`.

    Raises:
        InputError: the optimizer has other parameters or keeps something that is not known here, or the control grid
            has changed.
    """
    refuse(optimizer)
    pairs: dict[Tensor, Tensor] = dict(zip(old.parameters(), new.parameters(), strict=True))
    if any(p not in pairs for group in optimizer.param_groups for p in group["params"]):
        raise InputError(f"optimizer: a {type(optimizer).__name__} of other parameters given, those of old needed")
    if "net" in inspect.signature(type(optimizer)).parameters:
        kind = type(optimizer).__name__
        raise InputError(f"optimizer: {kind} given, which keeps nothing of its network; a new {kind}(new, ...) allowed")
    if type(optimizer).__module__.startswith("lpnet."):
        return _anew(optimizer, pairs)
    groups = [{**group, "params": [pairs[p] for p in group["params"]]} for group in optimizer.param_groups]
    made = type(optimizer)(groups, **_options(optimizer))
    for coarse, fine in pairs.items():
        for key, value in sorted(optimizer.state.get(coarse, {}).items()):
            made.state[fine][key] = _prolongated(optimizer, key, value, (coarse, fine))
    return made


def _anew(optimizer: torch.optim.Optimizer, pairs: dict[Tensor, Tensor]) -> torch.optim.Optimizer:
    """The same options without memory; the learning rate is that of now."""
    (group,) = optimizer.param_groups
    made = type(optimizer)([pairs[p] for p in group["params"]], **_options(optimizer))
    made.param_groups[0].update({key: group[key] for key in ("lr", "initial_lr") if key in group})
    return made


def _options(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the constructor was given, as the optimizer keeps it: in its defaults, or as an attribute."""
    found = {}
    for name, parameter in list(inspect.signature(type(optimizer)).parameters.items())[1:]:
        default = getattr(optimizer, name, parameter.default)
        found[name] = optimizer.defaults.get(name, default)
    return found


def _prolongated(optimizer: torch.optim.Optimizer, key: str, value: Any, pair: tuple[Tensor, Tensor]) -> Any:
    """What is kept of one parameter under one name."""
    coarse, fine = pair
    if not isinstance(value, Tensor):
        return value
    old, new = slab_of(coarse), slab_of(fine)
    if not value.ndim or (old is new is None and coarse.shape == fine.shape):
        return value.clone()
    if old is None or new is None:
        raise InputError("new: a network with another control grid given, the same grid or a new optimizer allowed")
    degree = next((d for (kind, name), d in _EXCEPTIONS.items() if name == key and isinstance(optimizer, kind)), None)
    degree = _DEGREES.get(key) if degree is None else degree
    if degree is None or value.shape != coarse.shape:
        raise InputError(
            f"optimizer: {type(optimizer).__name__} given, which keeps {key!r} of each weight; "
            "Adam, SGD, RMSprop and other elementwise optimizers of torch allowed, or a new optimizer on each level"
        )
    return interpolated(value, old, new) * (old.layers / new.layers) ** degree
