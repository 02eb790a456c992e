"""Terms of a stack of layers, evaluated in place and pulled back by hand.

A *term* is a map f_j(y) of one layer j, for instance f = σ(Ky + b), or the kick of a Hamiltonian layer. Steps are
sequences of stages ``target += w f_j(source)`` on slots (the memory of the state, and scratch). A field knows
how to do a stage, to undo it from the tape, and to pull a cotangent back through it:

    add      target += w f_j(source), with what the pull needs written to the tape (place `at`)
    remove   target −= w f_j(source), from the tape alone
    pull     source_bar += w (∂f_j/∂y)ᵀ target_bar,   grad_j += w (∂f_j/∂θ)ᵀ target_bar
    tangent  target_dot += w (∂f_j/∂y source_dot + ∂f_j/∂θ δθ_j)

so one tensor per stage and layer is kept: states are rebuilt backwards from the tape, by subtraction.

Fields are `lpnet.dense_field.DenseField` and, for any user module, `lpnet.module_field.ModuleField`.
"""

from typing import Any, NamedTuple, Protocol

from torch import Tensor

from lpnet.blocks import Blocks


class Slot(NamedTuple):
    """One slot of a state: `view` is the value, all else the same memory as a field wants to see it.

    Attributes:
        view: the value.
        full: with a row of ones below it.
        turned: transpose of `full`, made once since even a view costs as much as a small product.
        columns: transpose of `view`.
        ones: the row of ones.
    """

    view: Tensor
    full: Tensor
    turned: Tensor
    columns: Tensor
    ones: Tensor


class Field(Protocol):
    """What steppers and propagators need of one term of n stacked layers (or n parts of coarse steps)."""

    needs_source: bool
    """The plain pull (without weight gradients) looks at the source."""
    is_random: bool
    """Evaluations draw random numbers."""
    stream: int
    """Part of the batch that is being propagated; random layers draw other numbers for each."""

    def pack(self, x: Tensor) -> Tensor: ...
    def unpack(self, x: Tensor) -> Tensor: ...
    def batch_dim(self, x: Tensor) -> int: ...
    def slots(self, count: int, x: Tensor) -> list[Slot]: ...
    def tape(self, n: int, state: Tensor, holder: object = None) -> list[Any]:
        """Memory for n layers and states like `state`, which may be lent to the holder for as long as that lives."""

    def add(self, source: Slot, target: Slot, w: float, tape: list[Any], j: int, at: int) -> None: ...
    def plus(self, y: Tensor, begin: Tensor, out: Tensor, w: float, tape: list[Any], j: int, at: int) -> None:
        """As `add`, but out = begin + w f_j(y), on tensors without a slot; begin and out may be the same."""

    def plus_linear(self, y: Tensor, begin: Tensor, out: Tensor, w: float, tape: list[Any], j: int, at: int) -> None:
        """As `plus`, but the tape keeps what repeated pulls need."""

    def remove(self, source: Slot, target: Slot, w: float, tape: list[Any], j: int, at: int) -> None: ...
    def pull(
        self, source: Slot, target_bar: Tensor, source_bar: Tensor, w: float, tape: list[Any], j: int, at: int
    ) -> None: ...
    def pull_grad(
        self, source: Slot, target_bar: Tensor, source_bar: Tensor, w: float, tape: list[Any], j: int, at: int
    ) -> None: ...
    def tangent(
        self, source: Slot, dot: Tensor, target_dot: Tensor, w: float, kept: Any, j: int, delta: Any
    ) -> None:
        """`delta`: change of the stacked weights as the field holds them (`Stack.directions`); None for none."""

    def batch(self, parts: range, y: Tensor) -> tuple[Tensor, Any]: ...
    def batch_pull(self, parts: range, bar: Tensor, kept: Any) -> Tensor: ...
    def batch_tangent(self, parts: range, y: Tensor, dot: Tensor, kept: Any, delta: Any) -> Tensor: ...
    @property
    def size(self) -> int:
        """Entries of the weights of a layer."""
        ...

    def blocks(self, at: Blocks) -> Any:
        """The p-th layers of equal blocks at once, as a field of states (memory, K, ...); None: they go one by one."""

    def reset_grads(self) -> None: ...
    def grads(self) -> list[Tensor]: ...


class DenseWeights(NamedTuple):
    """M, b, C and the sign of f = ± C σ(M y + b), stacked: (n, hidden, width), (n, hidden) and (n, width, hidden).

    Without C (None) the output is ± σ itself.
    """

    M: Tensor
    b: Tensor
    C: Tensor | None = None
    sign: float = 1.0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """M, b and, where there is one, C."""
        return (self.M, self.b) if self.C is None else (self.M, self.b, self.C)
