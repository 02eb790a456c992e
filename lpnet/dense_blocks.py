"""Equal blocks of dense layers at once: `DenseField` on the p-th layers of K blocks, one batched product for all.

A batched product costs one launch whatever K is, and for small matrices little more than one product. Slots hold K
states, (K, width, batch); the argument of σ is found directly, u = M y + b, so that all results of batched products are
contiguous, without which torch does them one by one. Only the tape is not: σ writes it from scratch memory.
"""

from typing import Protocol

import torch
from torch import Tensor

from lpnet.activations import Activation
from lpnet.blocks import Blocks
from lpnet.fields import DenseWeights, Slot


class Collector(Protocol):
    """The field whose layers these are."""

    weights: DenseWeights
    activation: Activation
    hidden: int

    def collect(self, at: Blocks, found: list[Tensor]) -> None: ...


class DenseBlocks:
    """± C_j σ(M_j y + b_j) for the p-th layers j of all blocks at once.

    Args:
        field: of all layers.
        at: the blocks.
    """

    needs_source = False
    stream = 0

    def __init__(self, field: Collector, at: Blocks) -> None:
        M, b, C, self.sign = field.weights
        self.field, self.at, self.activation = field, at, field.activation
        self.M, self.Mt = at.together(M).unbind(), at.together(M.mT).unbind()
        self.b = at.together(b[:, :, None]).unbind()
        self.C = None if C is None else at.together(C).unbind()
        self.Ct = None if C is None else at.together(C.mT).unbind()
        self._scratch: tuple[Tensor, Tensor] | None = None
        self._grads: list[Tensor] = []
        self._each: list[tuple[Tensor, ...]] = []
        self._touched = [False] * at.length

    @staticmethod
    def slots(count: int, x: Tensor) -> list[Slot]:
        """Uninitialised slots for states like x, (memory, K, width, batch)."""
        return [Slot(s, s, s.mT, s.mT, s) for s in x.new_empty(count, *x.shape[1:])]

    def tape(self, n: int, state: Tensor, holder: object = None) -> list[Tensor]:
        """Uninitialised memory for n layers of each block."""
        return list(state.new_empty(n, self.at.number, self.field.hidden, state.shape[-1]).unbind())

    def _pair(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Two contiguous scratch tensors like this one."""
        if self._scratch is None or self._scratch[0].shape != kept.shape:
            self._scratch = kept.new_empty(kept.shape), kept.new_empty(kept.shape)
        return self._scratch

    def _value(self, kept: Tensor, j: int, y: Tensor) -> Tensor:
        """σ(M y + b), with the tape written to `kept`."""
        u, scale = self._pair(kept)[0], self.activation.scale
        torch.baddbmm(self.b[j], self.M[j], y, beta=scale, alpha=scale, out=u)
        return self.activation.apply(u, kept)

    def plus(self, y: Tensor, begin: Tensor, out: Tensor, w: float, tape: list[Tensor], j: int, at: int) -> None:
        a = self._value(tape[at], j, y)
        if self.C is None:
            torch.add(begin, a, alpha=self.sign * w, out=out)
        else:
            torch.baddbmm(begin, self.C[j], a, alpha=self.sign * w, out=out)

    plus_linear = plus

    def add(self, source: Slot, target: Slot, w: float, tape: list[Tensor], j: int, at: int) -> None:
        self._plus(j, target.view, self._value(tape[at], j, source.view), self.sign * w)

    def remove(self, source: Slot, target: Slot, w: float, tape: list[Tensor], j: int, at: int) -> None:
        self._plus(j, target.view, self.activation.value(tape[at]), -self.sign * w)

    def _plus(self, j: int, target: Tensor, a: Tensor, w: float) -> None:
        if self.C is None:
            target.add_(a, alpha=w)
        else:
            target.baddbmm_(self.C[j], a, alpha=w)

    def _cotangent(self, j: int, bar: Tensor, kept: Tensor) -> Tensor:
        """Of the argument u: σ'(u) Cᵀ bar, in scratch memory."""
        d, e = self._pair(kept)
        if self.Ct is not None:
            bar = torch.bmm(self.Ct[j], bar, out=e)
        return self.activation.pull(bar, kept, d)

    def pull(
        self, source: Slot, target_bar: Tensor, source_bar: Tensor, w: float, tape: list[Tensor], j: int, at: int
    ) -> None:
        source_bar.baddbmm_(self.Mt[j], self._cotangent(j, target_bar, tape[at]), alpha=self.sign * w)

    def pull_grad(
        self, source: Slot, target_bar: Tensor, source_bar: Tensor, w: float, tape: list[Tensor], j: int, at: int
    ) -> None:
        each, keep, w = self._memory(), int(self._touched[j]), self.sign * w
        self._touched[j] = True
        if self.C is not None:
            each[2][j].baddbmm_(target_bar, self.activation.value(tape[at]).mT, beta=keep, alpha=w)
        d = self._cotangent(j, target_bar, tape[at])
        each[0][j].baddbmm_(d, source.turned, beta=keep, alpha=w)
        if keep:
            each[1][j].add_(d.sum(-1), alpha=w)
        else:
            torch.sum(d, -1, out=each[1][j]).mul_(w)
        source_bar.baddbmm_(self.Mt[j], d, alpha=w)

    def _memory(self) -> list[tuple[Tensor, ...]]:
        """Gradients of M, b and C, layer by layer."""
        if not self._each:
            stacks = self.field.weights.tensors
            lead = (self.at.length, self.at.number)
            self._grads = [s.new_empty(*lead, *s.shape[1:]) for s in stacks]
            self._each = [g.unbind() for g in self._grads]
        return self._each

    def collect(self) -> None:
        """Hand the gradients over to the field."""
        if any(self._touched):
            self.field.collect(self.at, self._grads)
            self._touched = [False] * self.at.length
