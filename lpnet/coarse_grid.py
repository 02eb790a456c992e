"""One coarse level of MGRIT on one rank: its values u_i and G_i(u_i), and the problem that it is to solve.

    u_{i+1} = G_i(u_i) − base_i + rhs_{i+1}

A value of G is evaluated once for each u, which is told by its identity.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lpnet.hierarchy import Level

CoarseStep = Callable[[int, Tensor], Tensor]
"""(k, u) -> G_k(u) on one level."""


_GONE = torch.empty(0)


class CoarseGrid:
    """Values on one coarse level: u and G(u) at this rank's steps, and the right-hand side."""

    def __init__(self, level: Level, step: CoarseStep) -> None:
        self.level, self.step = level, step
        n = level.hi - level.lo
        self.u: list[Tensor] = [_GONE] * n
        self.at: list[Tensor | None] = [None] * n
        self.value: list[Tensor] = [_GONE] * n
        self.base: list[Tensor] | None = None
        self.rhs: list[Tensor | None] = [None] * n
        self.evaluations = 0

    def visit(self, i: int, u: Tensor) -> Tensor | None:
        """Set u_i = u; returns G_i(u_i) − base_i, or None at the last step of the level, whose result nobody needs."""
        j = i - self.level.lo
        self.u[j] = u
        if i + 1 == self.level.steps:
            return None
        self._evaluate(j, u)
        return self.value[j] if self.base is None else self.value[j] - self.base[j]

    def leave(self, i: int, value: bool) -> None:
        """Step i is not visited again with this right-hand side, and with `value` not with any other one."""
        j = i - self.level.lo
        if self.base is not None:
            self.base[j] = _GONE
        if value:
            self.at[j], self.value[j] = None, _GONE

    def _evaluate(self, j: int, u: Tensor) -> None:
        if self.at[j] is not u:
            self.at[j], self.value[j] = u, self.step(self.level.lo + j, u)
            self.evaluations += 1

    def plus_rhs(self, i: int, v: Tensor) -> Tensor:
        """u_i from what arrived for it."""
        rhs = self.rhs[i - self.level.lo]
        return v if rhs is None else v + rhs

    def set_problem(self, u: Sequence[Tensor], arrived: list[Tensor | None]) -> None:
        """u_{k+1} = G_k(u_k) − G_k(c_k) + arrived_{k+1} with c = u, which is also the initial guess."""
        for j, c in enumerate(u):
            if self.level.lo + j + 1 < self.level.steps:
                self._evaluate(j, c)
        self.u, self.base, self.rhs = list(u), list(self.value), list(arrived)

    def clear(self) -> None:
        """The problem u_{k+1} = G_k(u_k)."""
        self.base, self.rhs = None, [None] * (self.level.hi - self.level.lo)
