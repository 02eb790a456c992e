"""Terms of a stack of layers, evaluated in place and pulled back by hand.

A *term* is a map f_j(y) of one layer j, for instance f = σ(Ky + b), or the kick of a Hamiltonian layer. Steps are
sequences of stages ``target += w f_j(source)`` on slots (the memory of the state, and scratch). A field knows
how to do a stage, to undo it from the tape, and to pull a cotangent back through it:

    add      target += w f_j(source), with what the pull needs written to the tape
    remove   target −= w f_j(source), from the tape alone
    pull     source_bar += w (∂f_j/∂y)ᵀ target_bar,   grad_j += w (∂f_j/∂θ)ᵀ target_bar
    tangent  target_dot += w (∂f_j/∂y source_dot + ∂f_j/∂θ δθ_j)

so one tensor per stage and layer is kept: states are rebuilt backwards from the tape, by subtraction.

`DenseField` is f = C σ(A (y, 1)) with the bias as the last column of A. It stores examples in columns (features
first): the bias then costs nothing, since a row of ones is part of each slot, and no product needs a transposed copy.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from lpnet.activations import Activation


class Slot(NamedTuple):
    """One slot of a state: `view` is the value, `full` the same memory with the row of ones (if the field has one).

    `turned` is the transpose of `full`, made once since even a view costs more than a small product's launch.
    """

    full: Tensor
    view: Tensor
    turned: Tensor


class Field(Protocol):
    """What steppers and propagators need of one term of n stacked layers (or n parts of coarse steps)."""

    needs_source: bool
    """The plain pull (without weight gradients) looks at the source."""
    stream: int
    """Part of the batch that is being propagated; random layers draw other numbers for each."""

    def pack(self, x: Tensor) -> Tensor: ...
    def unpack(self, x: Tensor) -> Tensor: ...
    def batch_dim(self, x: Tensor) -> int: ...
    def slots(self, count: int, x: Tensor) -> list[Slot]: ...
    def tape(self, n: int, state: Tensor) -> list[Any]: ...
    def add(self, j: int, source: Slot, target: Slot, w: float, tape: list[Any], at: int) -> None: ...
    def linearize(self, j: int, source: Slot, target: Slot, w: float, tape: list[Any], at: int) -> None: ...
    def remove(self, j: int, source: Slot, target: Slot, w: float, tape: list[Any], at: int) -> None: ...
    def pull(self, j: int, source: Slot, target_bar: Tensor, source_bar: Tensor, w: float, kept: Any) -> None: ...
    def pull_grad(
        self, j: int, source: Slot, target_bar: Tensor, source_bar: Tensor, w: float, kept: Any
    ) -> None: ...
    def tangent(self, j: int, source: Slot, dot: Tensor, target_dot: Tensor, w: float, kept: Any, delta: Any) -> None:
        """`delta`: change of the stacked weights as the field holds them (`Stack.directions`); None for none."""

    def batch(self, parts: range, y: Tensor) -> tuple[Tensor, Any]: ...
    def batch_pull(self, parts: range, bar: Tensor, kept: Any) -> Tensor: ...
    def batch_tangent(self, parts: range, y: Tensor, dot: Tensor, kept: Any, delta: Any) -> Tensor: ...
    def reset_grads(self) -> None: ...
    def grads(self) -> list[Tensor]: ...


class DenseWeights(NamedTuple):
    """A, C and the sign of f = ± C σ(A (y, 1)), stacked."""

    A: Tensor
    C: Tensor | None = None
    sign: float = 1.0


class DenseField:
    """f_j(y) = ± C_j σ(A_j (y, 1)) for n stacked layers; without C the output is ± σ itself.

    Args:
        weights: A and C; A is (n, hidden, width + 1) with the bias in the last column, C (n, width, hidden) or None.
        activation: σ.

    States are (memory, width, batch); see `DenseField.pack`.
    """

    needs_source = False
    stream = 0

    def __init__(self, weights: DenseWeights, activation: Activation) -> None:
        A, C, self.sign = weights
        self.A_stack, self.C_stack, self.activation = A, C, activation
        self.A = A.unbind()
        self.At = A[:, :, :-1].transpose(1, 2).unbind()
        self.C = None if C is None else C.unbind()
        self._grad: list[Tensor] = []
        self._G: Sequence[Tensor] = ()
        self._GC: Sequence[Tensor] = ()
        self._touched: list[bool] = []
        self._scratch: tuple[Tensor, Tensor] | None = None

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
        return [Slot(f, f[:width], f.t()) for f in full]

    def tape(self, n: int, state: Tensor) -> list[Tensor]:
        """Uninitialised memory for n layers: one tensor (hidden, batch) each."""
        return list(state.new_empty(n, self.A_stack.shape[1], state.shape[-1]).unbind()) if n else []

    def add(self, j: int, source: Slot, target: Slot, w: float, tape: list[Tensor], at: int) -> None:
        u = tape[at]
        torch.mm(self.A[j], source.full, out=u)
        a = self.activation.apply(u)
        if self.C is None:
            target.view.add_(a, alpha=self.sign * w)
        else:
            target.view.addmm_(self.C[j], a, alpha=self.sign * w)

    linearize = add

    def remove(self, j: int, source: Slot, target: Slot, w: float, tape: list[Tensor], at: int) -> None:
        a = self.activation.value(tape[at])
        if self.C is None:
            target.view.sub_(a, alpha=self.sign * w)
        else:
            target.view.addmm_(self.C[j], a, alpha=-self.sign * w)

    def _pair(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        """Two scratch tensors like this one."""
        if self._scratch is None or self._scratch[0].shape != kept.shape:
            self._scratch = (torch.empty_like(kept), torch.empty_like(kept))
        return self._scratch

    def _cotangent(self, j: int, bar: Tensor, kept: Tensor) -> Tensor:
        """Of the argument u: σ'(u) Cᵀ bar, in scratch memory."""
        d, e = self._pair(kept)
        if self.C is not None:
            bar = torch.mm(self.C[j].t(), bar, out=e)
        return self.activation.pull(bar, kept, d)

    def pull(self, j: int, source: Slot, target_bar: Tensor, source_bar: Tensor, w: float, kept: Tensor) -> None:
        source_bar.addmm_(self.At[j], self._cotangent(j, target_bar, kept), alpha=self.sign * w)

    def pull_grad(
        self, j: int, source: Slot, target_bar: Tensor, source_bar: Tensor, w: float, kept: Tensor
    ) -> None:
        keep, w = int(self._touched[j]), self.sign * w
        self._touched[j] = True
        if self.C is not None:
            self._GC[j].addmm_(target_bar, self.activation.value(kept).t(), beta=keep, alpha=w)
        d = self._cotangent(j, target_bar, kept)
        self._G[j].addmm_(d, source.turned, beta=keep, alpha=w)
        source_bar.addmm_(self.At[j], d, alpha=w)

    def tangent(
        self,
        j: int,
        source: Slot,
        dot: Tensor,
        target_dot: Tensor,
        w: float,
        kept: Tensor,
        delta: DenseWeights | None,
    ) -> None:
        w, (a_dot, u_dot) = self.sign * w, self._pair(kept)
        torch.mm(self.At[j].t(), dot, out=u_dot)
        if delta is not None:
            u_dot.addmm_(delta.A[j], source.full)
        self.activation.pull(u_dot, kept, a_dot)
        if self.C is None:
            target_dot.add_(a_dot, alpha=w)
            return
        target_dot.addmm_(self.C[j], a_dot, alpha=w)
        if delta is not None and delta.C is not None:
            target_dot.addmm_(delta.C[j], self.activation.value(kept), alpha=w)

    def reset_grads(self) -> None:
        """Forget the weight gradients; the next pull of a layer overwrites what is there."""
        if not self._grad:
            stacks = (self.A_stack,) if self.C_stack is None else (self.A_stack, self.C_stack)
            self._grad = [torch.zeros_like(s) for s in stacks]
            self._G = self._grad[0].unbind()
            self._GC = self._grad[-1].unbind()
        self._touched = [False] * len(self.A)

    def grads(self) -> list[Tensor]:
        """Gradients of (A, C) or (A,), stacked."""
        return self._grad

    def batch(self, parts: range, y: Tensor) -> tuple[Tensor, Tensor]:
        """f of several parts at once: y (s, width, batch) or (1, width, batch) to (s, width, batch), and the tape."""
        A = self.A_stack[parts.start : parts.stop]
        u = torch.baddbmm(A[:, :, -1:], A[:, :, :-1], y.expand(len(parts), -1, -1))
        a = self.activation.apply(u)
        if self.C_stack is not None:
            a = torch.bmm(self.C_stack[parts.start : parts.stop], a)
        return self.sign * a, u

    def batch_pull(self, parts: range, bar: Tensor, kept: Tensor) -> Tensor:
        """Jᵀ bar of several parts at once."""
        if self.C_stack is not None:
            bar = torch.bmm(self.C_stack[parts.start : parts.stop].transpose(1, 2), bar)
        d = self.activation.pull(bar, kept, torch.empty_like(kept))
        return self.sign * torch.bmm(self.A_stack[parts.start : parts.stop, :, :-1].transpose(1, 2), d)

    def batch_tangent(
        self, parts: range, y: Tensor, dot: Tensor, kept: Tensor, delta: DenseWeights | None
    ) -> Tensor:
        """J dot + (∂f/∂θ) δθ of several parts at once, at y, both (s or 1, width, batch)."""
        at = slice(parts.start, parts.stop)
        count = len(parts)
        u_dot = torch.bmm(self.A_stack[at, :, :-1], dot.expand(count, -1, -1))
        if delta is not None:
            A = delta.A[at]
            u_dot += torch.baddbmm(A[:, :, -1:], A[:, :, :-1], y.expand(count, -1, -1))
        a_dot = self.activation.pull(u_dot, kept, torch.empty_like(kept))
        if self.C_stack is not None:
            a_dot = torch.bmm(self.C_stack[at], a_dot)
            if delta is not None and delta.C is not None:
                a_dot += torch.bmm(delta.C[at], self.activation.value(kept))
        return self.sign * a_dot
