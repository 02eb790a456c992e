"""The fast path: f_j(y) = ± C_j σ(M_j y + b_j) of stacked layers, in place and pulled back by hand.

States are stored with examples in columns, (width, batch), so that no product needs a transposed copy. The argument of
σ is found in one of two ways:

    packed    u = (M, b) (y, 1), with the bias as the last column of a copy of the weights: the fewest operations
    direct    u = M y + b, from the weights themselves, where a copy of them would be much memory beside the states

Which one depends on the shape alone, so that the same numbers result on any number of ranks.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from lpnet.activations import kernels
from lpnet.blocks import Blocks, Stacked
from lpnet.dense_blocks import DenseBlocks
from lpnet.fields import DenseWeights, Slot
from lpnet.pool import Pool

SMALL = 256
"""Entries of M up to which the weights are packed whatever the batch."""
COLUMNS = 16
"""Examples per feature from which the weights are packed: these are 1/16 of the states then."""

T = TypeVar("T")


def is_packed(hidden: int, width: int, batch: int | None) -> bool:
    """Whether the weights are copied, with the bias as a column; batch None: that of the examples is not known."""
    return batch is None or batch >= COLUMNS * width or hidden * width <= SMALL


class Packed:
    """Memory for A = scale (M, b) and C of n layers, and for their gradients, with the views that layers use."""

    def __init__(self, like: DenseWeights) -> None:
        n, hidden, width = like.M.shape
        self.stack = like.M.new_empty(n, hidden, width + 1)
        self.A, self.M = self.stack.unbind(), self.stack[:, :, :width].unbind()
        self.Mt = self.stack[:, :, :width].transpose(1, 2).unbind()
        self.b = self.stack[:, :, width:].unbind()
        self.grads = torch.empty_like(self.stack)
        self.G = self.grads.unbind()

    def load(self, weights: DenseWeights, scale: float) -> None:
        """Copy the weights."""
        torch.mul(weights.M, scale, out=self.stack[:, :, :-1])
        torch.mul(weights.b, scale, out=self.stack[:, :, -1])


class DenseField:
    """f_j(y) = ± C_j σ(M_j y + b_j) for n stacked layers; without C the output is ± σ itself.

    Args:
        weights: M, b and C.
        activation: name of σ.
        pool: lends memory.
        batch: examples that will be propagated at once.
    """

    needs_source = False
    stream = 0
    is_random = False

    def __init__(
        self, weights: DenseWeights, activation: str, pool: Pool | None = None, batch: int | None = None
    ) -> None:
        self.weights, self.sign = weights, weights.sign
        self.activation = kernels(activation, weights.M.device)
        self._apply, self._value, self._slope = self.activation[1:4]
        self.pool = Pool() if pool is None else pool
        n, self.hidden, width = weights.M.shape
        scale = self.activation.scale
        self.packed: Packed | None = None
        self.A: tuple[Tensor, ...] | None = None  # (M, b) where they are packed
        if is_packed(self.hidden, width, batch):
            key = ("weights", n, self.hidden, width, weights.M.dtype, weights.M.device)
            self.packed = self.pool.take(key, lambda: Packed(weights), self)
            self.packed.load(weights, scale)
            self.A = self.packed.A
            self.M, self.Mt, self.b, self.held = self.packed.M, self.packed.Mt, self.packed.b, scale
        else:
            self.M, self.Mt = self._views("M", weights.M, lambda M: (M.unbind(), M.mT.unbind()))
            self.b = self._views("b", weights.b, lambda b: b[:, :, None].unbind())
            self.held = 1.0  # the scale that M and b have already
        self.wanted = scale / self.held
        self.C: tuple[Tensor, ...] | None = None
        if weights.C is not None:
            self.C, self.Ct = self._views("C", weights.C, lambda C: (C.unbind(), C.mT.unbind()))
        self._made: list[Tensor] = []  # gradients of M, b and C
        self._each: list[Sequence[Tensor]] = []  # the same layer by layer
        self._biases: Stacked | None = None  # memory for those of b
        self._touched = [0] * n  # 1 where the gradient of a layer has begun
        self._pair: tuple[Tensor, Tensor] = (weights.M.new_empty(0),) * 2
        self._shape = self._pair[0].shape  # of scratch, which is compared for every layer

    def _views(self, name: str, stack: Tensor, make: Callable[[Tensor], T]) -> T:
        """Of the weights of the layers; those of parameters are there already."""
        return self.pool.lasting((name, stack.shape, stack.stride()), stack, make)

    # ---- layout --------------------------------------------------------------------------------------------------

    @staticmethod
    def pack(x: Tensor) -> Tensor:
        """(memory, batch, width) to this field's (memory, width, batch)."""
        return x.transpose(1, 2).contiguous()

    @staticmethod
    def unpack(x: Tensor) -> Tensor:
        """The inverse of `pack`."""
        return x.transpose(1, 2).contiguous()

    @staticmethod
    def batch_dim(x: Tensor) -> int:
        """Dimension of the batch, from the end."""
        return -1

    @staticmethod
    def slots(count: int, x: Tensor) -> list[Slot]:
        """Uninitialised slots for states like x, each with its row of ones."""
        width, batch = x.shape[1:]
        full = x.new_ones(count, width + 1, batch)
        return [Slot(f[:width], f, f.t(), f[:width].t(), f[width]) for f in full]

    def tape(self, n: int, state: Tensor, holder: object = None) -> list[Tensor]:
        """Uninitialised memory for n layers: one tensor (hidden, batch) each."""
        def make() -> Stacked:
            return Stacked(state.new_empty(n, self.hidden, state.shape[-1]))

        if holder is None:
            return make()
        return self.pool.take(("tape", n, self.hidden, state.shape[-1], state.dtype, state.device), make, holder)

    def _scratch(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Two scratch tensors like this one."""
        if kept.shape != self._shape:
            self._pair, self._shape = (torch.empty_like(kept), torch.empty_like(kept)), kept.shape
        return self._pair

    # ---- one layer -----------------------------------------------------------------------------------------------

    # What is done for every layer is written out: each call of a function more is felt beside small products.

    def plus(self, y: Tensor, begin: Tensor, out: Tensor, w: float, tape: list[Tensor], j: int, at: int) -> None:
        u = tape[at]
        torch.addmm(self.b[j], self.M[j], y, beta=self.wanted, alpha=self.wanted, out=u)
        a = self._apply(u, u)
        if self.C is None:
            torch.add(begin, a, alpha=self.sign * w, out=out)
        else:
            torch.addmm(begin, self.C[j], a, alpha=self.sign * w, out=out)

    plus_linear = plus

    def add(self, source: Slot, target: Slot, w: float, tape: list[Tensor], j: int, at: int) -> None:
        u = tape[at]
        if self.A is None:
            torch.addmm(self.b[j], self.M[j], source.view, beta=self.wanted, alpha=self.wanted, out=u)
        else:
            torch.mm(self.A[j], source.full, out=u)
        a = self._apply(u, u)
        if self.C is None:
            target.view.add_(a, alpha=self.sign * w)
        else:
            target.view.addmm_(self.C[j], a, alpha=self.sign * w)

    def remove(self, source: Slot, target: Slot, w: float, tape: list[Tensor], j: int, at: int) -> None:
        a = self._value(tape[at])
        if self.C is None:
            target.view.sub_(a, alpha=self.sign * w)
        else:
            target.view.addmm_(self.C[j], a, alpha=-self.sign * w)

    def pull(
        self, source: Slot, target_bar: Tensor, source_bar: Tensor, w: float, tape: list[Tensor], j: int, at: int
    ) -> None:
        kept, bar = tape[at], target_bar
        d, e = self._pair if kept.shape == self._shape else self._scratch(kept)
        if self.C is not None:
            bar = torch.mm(self.Ct[j], bar, out=e)
        source_bar.addmm_(self.Mt[j], self._slope(bar, kept, d), alpha=self.sign * w / self.held)

    def pull_grad(
        self, source: Slot, target_bar: Tensor, source_bar: Tensor, w: float, tape: list[Tensor], j: int, at: int
    ) -> None:
        kept, bar, keep, w = tape[at], target_bar, self._touched[j], self.sign * w
        d, e = self._pair if kept.shape == self._shape else self._scratch(kept)
        self._touched[j] = 1
        if self.C is not None:
            self._each[-1][j].addmm_(bar, self._value(kept).t(), beta=keep, alpha=w)
            bar = torch.mm(self.Ct[j], bar, out=e)
        self._slope(bar, kept, d)
        if self.packed is not None:
            self.packed.G[j].addmm_(d, source.turned, beta=keep, alpha=w)
        else:
            self._each[0][j].addmm_(d, source.columns, beta=keep, alpha=w)
            self._each[1][j].addmv_(d, source.ones, beta=keep, alpha=w)
        source_bar.addmm_(self.Mt[j], d, alpha=w / self.held)

    def tangent(
        self,
        source: Slot,
        dot: Tensor,
        target_dot: Tensor,
        w: float,
        kept: Tensor,
        j: int,
        delta: DenseWeights | None,
    ) -> None:
        w, (a_dot, u_dot) = self.sign * w, self._scratch(kept)
        torch.addmm(u_dot, self.Mt[j].t(), dot, beta=0, alpha=1 / self.held, out=u_dot)
        if delta is not None:
            u_dot.addmm_(delta.M[j], source.view).add_(delta.b[j][:, None])
        self.activation.pull(u_dot, kept, a_dot)
        if self.C is None:
            target_dot.add_(a_dot, alpha=w)
            return
        target_dot.addmm_(self.C[j], a_dot, alpha=w)
        if delta is not None and delta.C is not None:
            target_dot.addmm_(delta.C[j], self.activation.value(kept), alpha=w)

    # ---- gradients -----------------------------------------------------------------------------------------------

    def reset_grads(self) -> None:
        """Forget the weight gradients; the next pull of a layer overwrites what is there."""
        if self._made and not any(self._touched):
            return
        self._made, self._each = [], []  # first, so that their memory is free again
        for k in range(len(self.weights.tensors)):
            made, each = self._memory(k)
            self._made.append(made)
            self._each.append(each)
        self._touched = [0] * len(self.M)

    def _memory(self, k: int) -> tuple[Tensor, Sequence[Tensor]]:
        """For the gradients of M, b or C (k = 0, 1 or 2), whole and layer by layer where that is used."""
        like = self.weights.tensors[k]
        if self.packed is not None and k < 2:
            return (self.packed.grads[:, :, :-1], self.packed.grads[:, :, -1])[k], ()
        if k != 1:
            return self.pool.stacked(like.shape, like)
        if self._biases is None:
            key = ("bias gradients", *like.shape, like.dtype, like.device)
            self._biases = self.pool.take(key, lambda: Stacked(like.new_empty(like.shape)), self)
        return self._biases.whole, self._biases

    def grads(self) -> list[Tensor]:
        """Gradients of (M, b, C) or (M, b), stacked, once after each `reset_grads`; nobody else holds them."""
        found, self._made, self._each = self._made, [], []
        for k in (0, 1) if self.packed is not None else (1,):  # in memory that is lent to this field
            found[k] = self.pool.empty(found[k].shape, found[k]).copy_(found[k])
        if not all(self._touched):
            for grad in found:
                grad[[not touched for touched in self._touched]] = 0.0
        return found

    # ---- equal blocks of layers ----------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Entries of the weights of a layer."""
        return sum(stack[0].numel() for stack in self.weights.tensors) if len(self.M) else 0

    def blocks(self, at: Blocks) -> DenseBlocks:
        """The p-th layers of all blocks at once, as one field."""
        return DenseBlocks(self, at)

    def collect(self, at: Blocks, found: list[Tensor]) -> None:
        """Add the gradients of M, b and C of blocks, (length, number, ...) each."""
        rows = at.rows()
        known = any(self._touched[j] for j in rows)
        for stack, grad in zip(self._made, found, strict=True):
            if known:
                stack[[j for j in rows if not self._touched[j]]] = 0.0
                at.together(stack).add_(grad)
            else:
                at.together(stack).copy_(grad)
        for j in rows:
            self._touched[j] = 1

    # ---- several layers at once ----------------------------------------------------------------------------------

    def batch(self, parts: range, y: Tensor) -> tuple[Tensor, Tensor]:
        """f of several parts at once: y (s, width, batch) or (1, width, batch) to (s, width, batch), and the tape."""
        at, scale = slice(parts.start, parts.stop), self.activation.scale
        M, b, C = self.weights.M[at], self.weights.b[at, :, None], self.weights.C
        u = torch.baddbmm(b, M, y.expand(len(parts), -1, -1), beta=scale, alpha=scale)
        a = self.activation.apply(u, u)
        return self.sign * (a if C is None else torch.bmm(C[at], a)), u

    def batch_pull(self, parts: range, bar: Tensor, kept: Tensor) -> Tensor:
        """Jᵀ bar of several parts at once."""
        at = slice(parts.start, parts.stop)
        if self.weights.C is not None:
            bar = torch.bmm(self.weights.C[at].transpose(1, 2), bar)
        d = self.activation.pull(bar, kept, torch.empty_like(kept))
        return self.sign * torch.bmm(self.weights.M[at].transpose(1, 2), d)

    def batch_tangent(
        self, parts: range, y: Tensor, dot: Tensor, kept: Tensor, delta: DenseWeights | None
    ) -> Tensor:
        """J dot + (∂f/∂θ) δθ of several parts at once, at y, both (s or 1, width, batch)."""
        at = slice(parts.start, parts.stop)
        count = len(parts)
        u_dot = torch.bmm(self.weights.M[at], dot.expand(count, -1, -1))
        if delta is not None:
            u_dot += torch.baddbmm(delta.b[at, :, None], delta.M[at], y.expand(count, -1, -1))
        a_dot = self.activation.pull(u_dot, kept, torch.empty_like(kept))
        if self.weights.C is not None:
            a_dot = torch.bmm(self.weights.C[at], a_dot)
            if delta is not None and delta.C is not None:
                a_dot += torch.bmm(delta.C[at], self.activation.value(kept))
        return self.sign * a_dot
