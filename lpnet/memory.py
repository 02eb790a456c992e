"""What solves leave for later ones: C-points (``initial="warm"``) or defects τ (``initial="tau"``).

    u_{k+1} = G_k(u_k) + τ_{k+1},        τ_{k+1} = F_k(c_k) − G_k(c_k) of an earlier solve

`LastSolve` keeps those of the last solve of the same shape, which serves as long as the batch stays the same. For
mini-batches see `lpnet.recall`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from lpnet.options import MGRIT

FROM_EARLIER = ("warm", "tau")

Key = tuple[MGRIT, torch.Size, torch.dtype, torch.device]
"""Options of a solve with one cycle; shape, type and device of its states."""
Kind = tuple[MGRIT, torch.Size, torch.dtype]
"""Options of a solve with one cycle; shape of the state of one example, and its type."""


@dataclass(frozen=True)
class Solve:
    """A solve as memories see it: which one, of what, from where.

    Attributes:
        which: "forward" or "adjoint".
        options: of the solver.
        x: the state that it starts from, packed: x_0, or z_N.
        batch_dim: dimension of the examples in x, from the end.
    """

    which: str
    options: MGRIT
    x: Tensor
    batch_dim: int

    @property
    def key(self) -> Key:
        """What two solves must share for one to start from the other, however many cycles they do."""
        return self.options.with_cycles(1), self.x.shape, self.x.dtype, self.x.device

    @property
    def kind(self) -> Kind:
        """The same for the solves of examples, in whatever batches and wherever they are; the same on all ranks."""
        shape = list(self.x.shape)
        del shape[self.batch_dim]
        return self.options.with_cycles(1), torch.Size(shape), self.x.dtype


class Memory(Protocol):
    """One tensor like the state for each of this rank's C-points, forward and adjoint."""

    def load(self, solve: Solve) -> list[Tensor] | None:
        """What to start from; None: nothing, so a coarse start."""

    def save(self, solve: Solve, carry: list[Tensor] | None) -> None:
        """What a solve left; None: it failed, forget what there is."""

    def clear(self) -> None:
        """Forget everything."""


class LastSolve:
    """The last solve, if it had the same options (but for the cycles) and shape.

    Attributes:
        kept: which -> the key of the solve, and what it left.
    """

    def __init__(self) -> None:
        self.kept: dict[str, tuple[Key, list[Tensor]]] = {}

    def load(self, solve: Solve) -> list[Tensor] | None:
        key, carry = self.kept.get(solve.which, (None, []))
        return carry if key == solve.key else None

    def save(self, solve: Solve, carry: list[Tensor] | None) -> None:
        self.kept.pop(solve.which, None)
        if carry is not None:
            self.kept[solve.which] = (solve.key, carry)

    def clear(self) -> None:
        self.kept = {}
