"""One coarse level of MGRIT on one rank: its values u_i and G_i(u_i), and the problem that it is to solve.

    u_{i+1} = G_i(u_i) − base_i + rhs_{i+1}

A value of G is evaluated once for each u, which is told by its identity. The coarsest level is solved by forward
substitution through the ranks; where that goes over several ranks it may go in Q parts of the batch, one behind the
other: then the last of P ranks is done after Q + P − 1 times the work of a rank on a part, and not P times that on the
whole.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from lpnet.hierarchy import Level
from lpnet.messages import Channel
from lpnet.phases import phase

CoarseStep = Callable[[Sequence[int], Sequence[Tensor]], Sequence[Tensor]]
"""Some k and as many u, to G_k(u) of each, on one level."""


def one_by_one(step: Callable[[int, Tensor], Tensor]) -> CoarseStep:
    """The same from (k, u) -> G_k(u)."""
    return lambda ks, us: [step(k, u) for k, u in zip(ks, us, strict=True)]


class Parts(Protocol):
    """The coarse steps of a level for parts of the batch."""

    def split(self, u: Tensor) -> list[Tensor]: ...
    def join(self, us: list[Tensor]) -> Tensor: ...
    def step(self, q: int, k: int, u: Tensor) -> Tensor:
        """G_k(u) for part q."""


_GONE = torch.empty(0)


class CoarseGrid:
    """Values on one coarse level: u and G(u) at this rank's steps, and the right-hand side."""

    def __init__(self, level: Level, step: CoarseStep, parts: Parts | None = None) -> None:
        self.level, self.parts = level, parts
        self.step = step if parts is None else one_by_one(partial(_whole, parts))
        n = level.hi - level.lo
        self.u: list[Tensor] = [_GONE] * n
        self.at: list[Tensor | None] = [None] * n
        self.value: list[Tensor] = [_GONE] * n
        self.base: list[Tensor] | None = None
        self.rhs: list[Tensor | None] = [None] * n
        self.evaluations = 0

    def visit(self, i: int, u: Tensor) -> Tensor | None:
        """Set u_i = u; returns G_i(u_i) − base_i, or None at the last step of the level, whose result nobody needs."""
        return self.visit_all((i,), (u,))[0]

    def visit_all(self, steps: Sequence[int], us: Sequence[Tensor]) -> list[Tensor | None]:
        """The same for several steps at once."""
        for i, u in zip(steps, us, strict=True):
            self.u[i - self.level.lo] = u
        self._evaluate(steps, us)
        return [self._change(i - self.level.lo) if i + 1 < self.level.steps else None for i in steps]

    def _change(self, j: int) -> Tensor:
        return self.value[j] if self.base is None else self.value[j] - self.base[j]

    def leave(self, i: int, value: bool) -> None:
        """Step i is not visited again with this right-hand side, and with `value` not with any other one."""
        j = i - self.level.lo
        if self.base is not None:
            self.base[j] = _GONE
        if value:
            self.at[j], self.value[j] = None, _GONE

    def _evaluate(self, steps: Sequence[int], us: Sequence[Tensor]) -> None:
        """G_i(u) of these steps, but for the last one of the level, where it is not known yet."""
        lo, last = self.level.lo, self.level.steps - 1
        new = [(i, u) for i, u in zip(steps, us, strict=True) if i < last and self.at[i - lo] is not u]
        if new:
            ks, at = zip(*new, strict=True)
            for k, u, value in zip(ks, at, self.step(ks, at), strict=True):
                self.at[k - lo], self.value[k - lo] = u, value
            self.evaluations += len(new)

    def plus_rhs(self, i: int, v: Tensor) -> Tensor:
        """u_i from what arrived for it."""
        rhs = self.rhs[i - self.level.lo]
        return v if rhs is None else v + rhs

    def set_problem(self, u: Sequence[Tensor], arrived: list[Tensor | None]) -> None:
        """u_{k+1} = G_k(u_k) − G_k(c_k) + arrived_{k+1} with c = u, which is also the initial guess."""
        self._evaluate(range(self.level.lo, self.level.hi), u)
        self.u, self.base, self.rhs = list(u), list(self.value), list(arrived)

    def clear(self) -> None:
        """The problem u_{k+1} = G_k(u_k)."""
        self.base, self.rhs = None, [None] * (self.level.hi - self.level.lo)

    def substitute(self, x0: Tensor, comm: Channel, last: bool) -> None:
        """Solve the level by forward substitution, rank after rank.

        Args:
            x0: u_0, on other ranks a template.
            comm: for the messages.
            last: values of G are not asked for again.
        """
        if self.level.lo == self.level.hi:
            return
        with phase(comm, "chain"):
            if self.parts is not None:
                _Pipeline(self, self.parts).substitute(x0, comm, last)
            else:
                self._substitute(x0, comm, last)

    def _substitute(self, x0: Tensor, comm: Channel, last: bool) -> None:
        before, after = self.level.previous, self.level.next
        u = x0 if before is None else self.plus_rhs(self.level.lo, comm.recv(x0, before))
        v: Tensor | None = None
        for i in range(self.level.lo, self.level.hi):
            v = self.visit(i, u)
            self.leave(i, last)
            if v is not None and i + 1 < self.level.hi:
                u = self.plus_rhs(i + 1, v)
        if after is not None and v is not None:
            comm.send(v, after)


def _whole(parts: Parts, k: int, u: Tensor) -> Tensor:
    """G_k(u) for all parts, with the same bits as for each of them."""
    return parts.join([parts.step(q, k, part) for q, part in enumerate(parts.split(u))])


class _Pipeline:
    """Forward substitution in parts of the batch."""

    def __init__(self, grid: CoarseGrid, parts: Parts) -> None:
        self.grid, self.parts = grid, parts
        base: Sequence[Tensor | None] = grid.base or [None] * len(grid.rhs)
        self.base, self.rhs = ([None if t is None else parts.split(t) for t in ts] for ts in (base, grid.rhs))
        self.u: list[list[Tensor]] = [[] for _ in grid.u]
        self.value: list[list[Tensor]] = [[] for _ in grid.u]

    def substitute(self, x0: Tensor, comm: Channel, last: bool) -> None:
        grid, level = self.grid, self.grid.level
        begins = self.parts.split(x0)
        coming = [] if level.previous is None else [comm.post(part, level.previous) for part in begins]
        for q, begin in enumerate(begins):
            v = self._through(q, self._plus_rhs(q, 0, coming[q].wait()) if coming else begin)
            if level.next is not None and v is not None:
                comm.send(v, level.next)
        for j, (u, value) in enumerate(zip(self.u, self.value, strict=True)):
            grid.u[j] = self.parts.join(u) if j or coming else x0
            grid.leave(level.lo + j, last)
            grid.evaluations += bool(value)
            if value and not last:
                grid.at[j], grid.value[j] = grid.u[j], self.parts.join(value)

    def _through(self, q: int, u: Tensor) -> Tensor | None:
        """Part q through all local steps."""
        level, v = self.grid.level, None
        for j in range(level.hi - level.lo):
            self.u[j].append(u)
            if level.lo + j + 1 == level.steps:
                return None
            value = self.parts.step(q, level.lo + j, u)
            self.value[j].append(value)
            base = self.base[j]
            v = value if base is None else value - base[q]
            if level.lo + j + 1 < level.hi:
                u = self._plus_rhs(q, j + 1, v)
        return v

    def _plus_rhs(self, q: int, j: int, v: Tensor) -> Tensor:
        rhs = self.rhs[j]
        return v if rhs is None else v + rhs[q]
