"""The layer under examination: a copy in double precision, states to try it on, its terms as functions."""

import copy
import math
from collections.abc import Callable
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor, nn

from lpnet.dynamics import Dynamics, described
from lpnet.errors import InputError
from lpnet.stack import Call, generator, start, terms_of

Weights = dict[str, Tensor]


class Subject:
    """A module of one layer, on states drawn from a seed.

    Args:
        module: the layer; a copy in float64 and evaluation mode is examined. Built-in dynamics whose weights are all
            zero get those that a trunk would start from.
        features: shape of one example; None: its `width`, or the inputs of its first linear layer.
        batch: number of examples.
        seed: of the states and directions.

    Raises:
        InputError: not a module, or nothing tells the shape of an example.
    """

    def __init__(self, module: Any, features: int | tuple[int, ...] | None, batch: int, seed: int) -> None:
        if not isinstance(module, nn.Module):
            raise InputError(f"dynamics: {type(module).__name__} given, a torch.nn.Module of one layer allowed")
        self.name, self.original = type(module).__name__, module
        self.module = copy.deepcopy(module).to(torch.float64).eval()
        self.terms = terms_of(module)
        self._source = generator(seed, 1)
        _start(self.module, seed)
        self.features = _features(module, features)
        self.y = self.normal(batch, *self.features)
        self._call = Call(self.module)

    def normal(self, *shape: int) -> Tensor:
        """The next normal numbers."""
        return torch.randn(shape, generator=self._source, dtype=torch.float64)

    @property
    def size(self) -> int:
        """Numbers in one example."""
        return math.prod(self.features)

    @cached_property
    def theta(self) -> Weights:
        """The weights."""
        return {name: p.detach().clone() for name, p in self.module.named_parameters()}

    def f(self, term: str, y: Tensor, theta: Weights | None = None) -> Tensor:
        """A term at y, with the module's own weights or others."""
        return self._call.at(self.theta if theta is None else theta, term, y)

    def functions(self) -> dict[str, Callable[[Tensor, Weights], Tensor]]:
        """term -> (y, theta) -> f(y)."""
        return {term: partial(self.f, term) for term in self.terms}

    def flow(self, x: Tensor) -> Tensor:
        """dx/dt of the whole state of one example: (y), (y, z) or (y, v), (slots, *features) to the same."""
        if self.terms == ("f",):
            return self.f("f", x[:1])
        y, z = x[:1], x[1:]
        drift = self.f("drift", z) if "drift" in self.terms else z
        return torch.cat([drift, self.f("kick", y)])


def _start(module: nn.Module, seed: int) -> None:
    given = any(bool(p.any()) for p in module.parameters())
    if not isinstance(module, Dynamics) or (given and described(module)):
        return
    with torch.no_grad():
        for name, value in start(module, seed).items():
            module.get_parameter(name).copy_(value)


def _features(module: nn.Module, given: Any) -> tuple[int, ...]:
    first = next((part.in_features for part in module.modules() if isinstance(part, nn.Linear)), None)
    found = next((value for value in (given, getattr(module, "width", None), first) if value is not None), None)
    shape = (found,) if isinstance(found, int) else found
    if not isinstance(shape, tuple | list | torch.Size) or not all(isinstance(n, int) and n > 0 for n in shape):
        raise InputError(f"features: {given!r} given, the shape of one example (a number or a tuple) allowed")
    return tuple(shape)
