"""Whether what a method is given belongs together: net, parts, penalties and loss."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from lpnet.errors import InputError
from lpnet.optim import vector
from lpnet.optim.chain import Chain, is_plain, split
from lpnet.regularizers import Penalty


def penalties_of(net: nn.Module, given: Any, products: bool = True) -> tuple[Penalty, ...]:
    """The penalties, if they are some, of parameters of the net, and (`products`) with a Hessian.

    Raises:
        InputError: they are not.
    """
    if not isinstance(given, list | tuple):
        raise InputError(f"penalties: a {type(given).__name__} given, a list of lpnet.regularizers allowed")
    own = {id(p) for p in net.parameters()}
    for penalty in given:
        of = getattr(penalty, "parameters", None)
        right = callable(penalty) and (not products or callable(getattr(penalty, "hessian", None)))
        if not (right and isinstance(of, tuple) and all(isinstance(p, Tensor) for p in of)):
            raise InputError(f"penalties: a {type(penalty).__name__} in the list given, lpnet.regularizers allowed")
        if any(id(p) not in own for p in of):
            raise InputError(f"penalties: a {type(penalty).__name__} of another net given, one of net allowed")
    return tuple(given)


def refuse_random(chain: Chain) -> None:
    """Raise `InputError` for layers beside the trunk that make no function of the net, such as dropout in training."""
    for part in (chain.before, chain.after):
        for m in part.modules():
            random = isinstance(m, _DropoutNd) and m.p > 0
            if m.training and (random or (isinstance(m, _NormBase) and m.track_running_stats)):
                raise InputError(
                    f"net: a {type(m).__name__} in training mode beside the trunk given, only layers without random or "
                    "running numbers (or in evaluation mode, by .eval()) allowed"
                )


@torch.no_grad()
def compare(net: nn.Module, x: Tensor, theta: Sequence[Tensor]) -> None:
    """Raise `InputError` where the output of a net is not that of its parts one after the other; collective.

    Two evaluations, but none for an `nn.Sequential`, which cannot differ. They are equal to rounding, so that half of
    the digits are asked for; what is not finite is not compared.

    Args:
        net: a chain by the names of its parts.
        x: (batch, …).
        theta: parameters of the trunk among others, whose ranks hear of rank 0's numbers.
    """
    if is_plain(net):
        return
    chain = split(net)
    parts, output = chain.after(chain.trunk(chain.before(x))), net(x)
    same = isinstance(output, Tensor) and output.shape == parts.shape and _close(output - parts, parts, theta)
    if not same:
        raise InputError(
            f"net: a {type(net).__name__} given, whose output is not that of its parts one after the other, only "
            "classifier(trunk(opening(x))) or a torch.nn.Sequential allowed"
        )


class Agreed:
    """A loss that is compared with the objective of an optimizer at its first call; collective then.

    Args:
        given: (output, label) -> scalar.
        objective: that of the optimizer.
        theta: its parameters.

    Attributes:
        known: whether they were compared.
    """

    def __init__(self, given: Callable[[Tensor, Tensor], Tensor], objective: Any, theta: Sequence[Tensor]) -> None:
        self.given, self.objective, self.theta, self.known = given, objective, theta, False

    def __call__(self, output: Tensor, label: Tensor) -> Tensor:
        if self.known:
            return self.given(output, label)
        above, value, below = self._own(output, label), self.given(output, label), self._own(output, label)
        if not isinstance(value, Tensor) or value.numel() != 1:
            return value
        numbers = torch.stack([t.detach().double().reshape(()).cpu() for t in (above, value, below)])
        high, given, low = vector.of_rank_0(self.theta, numbers).tolist()
        rounding = torch.finfo(value.dtype).eps ** 0.5 * max(abs(high), abs(low))
        if given > high + rounding or given < low - rounding:
            raise InputError(
                f"loss: one of {given:g} where that of the optimizer is {high:g} given, the same objective or None "
                "allowed"
            )
        self.known = True
        return value

    def _own(self, output: Tensor, label: Tensor) -> Tensor:
        """By the optimizer: smaller with each call where it solves for a classifier and is not done."""
        with torch.no_grad():
            return self.objective(output.detach(), label)


def _close(difference: Tensor, of: Tensor, theta: Sequence[Tensor]) -> bool:
    """Whether a difference is small against what it is one of (half of the digits), or not finite, on rank 0."""
    least = torch.finfo(difference.dtype).eps ** 0.5
    norms = torch.stack([torch.linalg.vector_norm(t.double()).cpu() for t in (difference, of)])
    error, size = vector.of_rank_0(theta, norms).tolist()
    return not error > least * size
