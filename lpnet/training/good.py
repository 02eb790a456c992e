"""What a training goes back to when its numbers stop being finite: weights, and the optimizer with them."""

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from lpnet.training.updates import SCHEDULED


class Good:
    """The last weights whose loss and gradient were finite, and what the optimizer had kept before it changed them.

    Args:
        net: its parameters are kept.
        optimizer: of these.
        whole: with the state of the optimizer; else the weights alone, which is all that a run needs to stop.

    Attributes:
        weights: in the order of the parameters.
        state, param_groups: as an optimizer has them.
        moved: the weights have been updated since.
    """

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer, whole: bool) -> None:
        self._parameters, self._optimizer, self.whole = list(net.parameters()), optimizer, whole
        self.weights = [p.detach().clone() for p in self._parameters]
        self.state: dict[Tensor, dict[str, Any]] = {}
        self.param_groups: list[dict[str, Any]] = [{"params": group["params"]} for group in optimizer.param_groups]
        self.moved = False

    @torch.no_grad()
    def keep(self) -> None:
        """Keep what there is, before an update."""
        for value, p in zip(self.weights, self._parameters, strict=True):
            value.copy_(p)
        if self.whole:
            self.keep_optimizer()
        self.moved = True

    @torch.no_grad()
    def keep_optimizer(self) -> None:
        """Keep what the optimizer has now."""
        self.state = {p: _like(kept, self.state.get(p, {})) for p, kept in self._optimizer.state.items()}
        self.param_groups = [_copied(group) for group in self._optimizer.param_groups]

    def optimizer_is_finite(self) -> bool:
        """Whether all numbers are finite that were kept of the optimizer; of this rank."""
        groups = [{key: value for key, value in group.items() if key != "params"} for group in self.param_groups]
        return _is_finite(list(self.state.values())) and _is_finite(groups)

    def begin_optimizer(self, new: torch.optim.Optimizer) -> None:
        """Keep what this one has, which has done no step, for the same parameters in the same groups."""
        self.state, self.param_groups = {}, [_copied(group) for group in new.param_groups]

    @torch.no_grad()
    def back(self) -> None:
        """Everything is as it was, but for what the schedule has set since."""
        for value, p in zip(self.weights, self._parameters, strict=True):
            p.copy_(value)
        if self.whole and self.moved:
            self._optimizer.state.clear()
            self._optimizer.state.update({p: _like(kept, {}) for p, kept in self.state.items()})
            for group, kept in zip(self._optimizer.param_groups, self.param_groups, strict=True):
                group.update({key: value for key, value in _copied(kept).items() if key not in SCHEDULED})
        self.moved = False


def _like(kept: dict[str, Any], before: dict[str, Any]) -> dict[str, Any]:
    """A copy of the state of one parameter, in the memory of an earlier one where that fits."""
    found = {}
    for key, value in kept.items():
        old = before.get(key)
        if not isinstance(value, Tensor):
            found[key] = copy.deepcopy(value)
        elif isinstance(old, Tensor) and (old.shape, old.dtype, old.device) == (value.shape, value.dtype, value.device):
            found[key] = old.copy_(value)
        else:
            found[key] = value.detach().clone()
    return found


def _is_finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        return all(_is_finite(one) for one in value.values())
    if isinstance(value, list | tuple):
        return all(_is_finite(one) for one in value)
    return not isinstance(value, float) or math.isfinite(value)


def _copied(group: dict[str, Any]) -> dict[str, Any]:
    """A group of parameters with options of its own."""
    return {key: value if key == "params" else copy.deepcopy(value) for key, value in group.items()}
