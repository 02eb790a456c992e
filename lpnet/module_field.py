"""A term of any user module: f_j(y) = module(y) with the weights of layer j, differentiated by autograd.

The slow, general twin of `DenseField`. The tape holds f_j(y) itself, so states are rebuilt by subtraction as well; the
pull evaluates the layer again at the rebuilt state. States keep the user's layout (memory, batch, *features).

A module with random parts (dropout) is seeded by (call, layer) at each evaluation: the same mask in every sweep and in
the adjoint, another one at the next call of the trunk, which draws its number from torch's generator.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lpnet.blocks import Blocks
from lpnet.errors import InputError
from lpnet.fields import Slot

Evaluate = Callable[[dict[str, Tensor], str, Tensor], Tensor]
"""(weights of one layer, term, y) -> f(y)."""


class ModuleField:
    """One term of n stacked layers of a user module.

    Args:
        theta: stacked weights, name -> (n, ...).
        evaluate: calls the module with given weights.
        term: "f", "kick" or "drift".
        seeds: a seed for each layer, or None for modules without random parts.
    """

    needs_source = True
    stream = 0

    def __init__(
        self, theta: dict[str, Tensor], evaluate: Evaluate, term: str, seeds: list[int] | None = None
    ) -> None:
        self.theta, self.term, self.seeds = theta, term, seeds
        self.is_random = seeds is not None
        self._call = evaluate
        self._grads: list[Tensor] = []
        self._touched: set[int] = set()

    @staticmethod
    def pack(x: Tensor) -> Tensor:
        """States stay as they are."""
        return x

    unpack = pack

    @staticmethod
    def batch_dim(x: Tensor) -> int:
        """Dimension of the batch in a state (memory, batch, *features), from the end."""
        return 1 - x.ndim

    @staticmethod
    def slots(count: int, x: Tensor) -> list[Slot]:
        """Uninitialised slots for states like x."""
        return [Slot(s, s, s, s, s) for s in x.new_empty(count, *x.shape[1:])]

    def tape(self, n: int, state: Tensor, holder: object = None) -> list[Any]:
        return [None] * n

    def _weights(self, j: int) -> dict[str, Tensor]:
        return {name: stack[j] for name, stack in self.theta.items()}

    def _evaluate(self, j: int, theta: dict[str, Tensor], y: Tensor) -> Tensor:
        y = y.clone()  # the module may work in place, or return y itself
        if self.seeds is None:
            k = self._call(theta, self.term, y)
        else:
            devices = [y.device] if y.is_cuda else []
            with torch.random.fork_rng(devices):
                torch.manual_seed((self.seeds[j] + self.stream) % 2**63)
                k = self._call(theta, self.term, y)
        if k.shape != y.shape:
            raise InputError(
                f"dynamics: {self.term}, a map of shape {tuple(y.shape)} to {tuple(k.shape)} given, "
                "the same shape is needed"
            )
        return k

    def add(self, source: Slot, target: Slot, w: float, tape: list[Any], j: int, at: int) -> None:
        with torch.no_grad():
            k = self._evaluate(j, self._weights(j), source.view)
        tape[at] = k
        target.view.add_(k, alpha=w)

    def plus(self, y: Tensor, begin: Tensor, out: Tensor, w: float, tape: list[Any], j: int, at: int) -> None:
        with torch.no_grad():
            k = self._evaluate(j, self._weights(j), y)
        tape[at] = k
        torch.add(begin, k, alpha=w, out=out)

    def plus_linear(self, y: Tensor, begin: Tensor, out: Tensor, w: float, tape: list[Any], j: int, at: int) -> None:
        """As `plus`, but the tape keeps the graph, so that repeated pulls need no evaluation."""
        y = y.detach().clone().requires_grad_()
        with torch.enable_grad():
            k = self._evaluate(j, self._weights(j), y)
        tape[at] = (y, k)
        torch.add(begin, k.detach(), alpha=w, out=out)

    def remove(self, source: Slot, target: Slot, w: float, tape: list[Any], j: int, at: int) -> None:
        kept = tape[at]
        target.view.sub_(kept[1].detach() if isinstance(kept, tuple) else kept, alpha=w)

    def pull(
        self, source: Slot, target_bar: Tensor, source_bar: Tensor, w: float, tape: list[Any], j: int, at: int
    ) -> None:
        kept = tape[at]
        if isinstance(kept, tuple):
            y, k = kept
        else:
            y = source.view.detach().clone().requires_grad_()
            with torch.enable_grad():
                k = self._evaluate(j, self._weights(j), y)
        if not k.requires_grad:  # the term does not depend on the state
            return
        (bar,) = torch.autograd.grad(k, [y], target_bar, retain_graph=True, materialize_grads=True, allow_unused=True)
        source_bar.add_(bar, alpha=w)

    def pull_grad(
        self, source: Slot, target_bar: Tensor, source_bar: Tensor, w: float, tape: list[Any], j: int, at: int
    ) -> None:
        y = source.view.detach().clone().requires_grad_()
        theta = {name: value.detach().requires_grad_() for name, value in self._weights(j).items()}
        with torch.enable_grad():
            k = self._evaluate(j, theta, y)
        bars = torch.autograd.grad(
            k, [y, *theta.values()], target_bar, materialize_grads=True, allow_unused=True
        )
        source_bar.add_(bars[0], alpha=w)
        for grad, bar in zip(self._grads, bars[1:], strict=True):
            grad[j].mul_(float(j in self._touched)).add_(bar, alpha=w)
        self._touched.add(j)

    def tangent(
        self,
        source: Slot,
        dot: Tensor,
        target_dot: Tensor,
        w: float,
        kept: Any,
        j: int,
        delta: dict[str, Tensor] | None,
    ) -> None:
        target_dot.add_(self._tangent(j, source.view, dot, delta), alpha=w)

    def _tangent(self, j: int, y: Tensor, dot: Tensor, delta: dict[str, Tensor] | None) -> Tensor:
        theta = self._weights(j)
        if delta is None:
            return torch.func.jvp(lambda y: self._evaluate(j, theta, y), (y,), (dot,))[1]
        theta_dot = {name: stack[j] for name, stack in delta.items()}
        return torch.func.jvp(partial(self._evaluate, j), (theta, y), (theta_dot, dot))[1]

    @property
    def size(self) -> int:
        """Entries of the weights of a layer."""
        return sum(math.prod(stack.shape[1:]) for stack in self.theta.values())  # also where there are no layers

    def blocks(self, at: Blocks) -> None:
        """Nothing, since layers of a module go one by one."""

    def reset_grads(self) -> None:
        """Forget the weight gradients; the next pull of a layer overwrites what is there."""
        if not self._grads:
            self._grads = [torch.zeros_like(stack) for stack in self.theta.values()]
        self._touched = set()

    def grads(self) -> list[Tensor]:
        """Gradients of the stacked weights, in the order of `theta`."""
        return self._grads

    def batch(self, parts: range, y: Tensor) -> tuple[Tensor, Any]:
        """f of several parts: y (s or 1, batch, *features) to (s, batch, *features), and the graph."""
        ys = y.detach().expand(len(parts), *y.shape[1:]).clone().requires_grad_()
        with torch.enable_grad():
            k = torch.stack([self._evaluate(j, self._weights(j), ys[i]) for i, j in enumerate(parts)])
        return k.detach(), (ys, k)

    def batch_pull(self, parts: range, bar: Tensor, kept: Any) -> Tensor:
        """Jᵀ bar of several parts."""
        ys, k = kept
        if not k.requires_grad:
            return torch.zeros_like(ys)
        return torch.autograd.grad(k, [ys], bar, retain_graph=True, materialize_grads=True, allow_unused=True)[0]

    def batch_tangent(
        self, parts: range, y: Tensor, dot: Tensor, kept: Any, delta: dict[str, Tensor] | None
    ) -> Tensor:
        """J dot + (∂f/∂θ) δθ of several parts."""
        ys, dots = (t.expand(len(parts), *t.shape[1:]) for t in (y, dot))
        return torch.stack([self._tangent(j, ys[i], dots[i], delta) for i, j in enumerate(parts)])
