"""MGRIT: the states of all layers at once, by multigrid reduction in time with the full approximation scheme.

Solves u_{i+1} = Φ_i(u_i), u_0 given, with two or more levels. One cycle, with F_k the m exact steps from C-point k and
G_k the coarse propagator over the same interval:

    F-sweep          F_k(c_k) for all intervals k at once
    coarse problem   u_{k+1} = G_k(u_k) − G_k(c_k) + F_k(c_k),  by a chain, or by the same cycle one level coarser
    correction       c ← u

The coarse problem takes its terms where they are: G_k(u_k) − G_k(c_k) is computed by the owner of step k and sent on;
F_k(c_k), which a sweep sends to the owner of point k + 1, is added there. So all messages go forward, one state per
boundary and sweep. G_k(c_k) is what the last coarse solve evaluated anyway, and no sweep is done twice.

Knows propagators, levels and tensors; no networks, no losses. The adjoint is the same code on the reversed index.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from lpnet.coarse_grid import CoarseGrid, CoarseStep, Parts
from lpnet.hierarchy import Level, Segment
from lpnet.messages import Channel, Posted
from lpnet.options import MGRIT
from lpnet.phases import phased
from lpnet.residuals import Info, here, norms, ratios


class FinePropagator(Protocol):
    """Exact propagation over local steps of level 0."""

    def sweep(self, last: bool) -> None:
        """Begin a sweep; `last`: it may be the final one."""

    def run(self, i0: int, i1: int, u: Tensor) -> Tensor:
        """u_{i1} from u_{i0} = u."""

    def run_all(self, parts: Sequence[tuple[int, int]], us: Sequence[Tensor]) -> Iterable[Tensor]:
        """The same for each of some parts (i0, i1) in turn, from right to left."""
        return (self.run(i0, i1, u) for (i0, i1), u in zip(parts, us, strict=True))


class Solver:
    """One solve of one direction on at least two levels.

    Args:
        options: what to do.
        levels: this rank's view of the levels.
        fine: exact propagation on level 0.
        coarse: a coarse step for each of the levels 1, 2, ….
        comm: for the messages.
        parts: the coarse steps of the coarsest level, for parts of the batch; None: it is solved for the whole batch.
    """

    def __init__(
        self,
        options: MGRIT,
        levels: Sequence[Level],
        fine: FinePropagator,
        coarse: Sequence[CoarseStep],
        comm: Channel,
        parts: Parts | None = None,
    ) -> None:
        self.options, self.levels, self.fine, self.comm = options, levels, fine, comm
        self.grids = [CoarseGrid(level, step) for level, step in zip(levels[1:-1], coarse, strict=False)]
        self.grids.append(CoarseGrid(levels[-1], coarse[-1], parts))
        self.info = Info("mgrit", levels=len(levels))
        self.c: list[Tensor] = []
        self.end: Tensor | None = None
        self._arrived: list[list[Tensor | None]] = [[] for _ in levels]
        self._last = False  # what is evaluated on the coarsest level now is not asked for again

    def solve(
        self, x0: Tensor, guess: list[Tensor] | None, total: Callable[[np.ndarray], np.ndarray]
    ) -> Tensor | None:
        """Propagate x0 through all layers.

        Args:
            x0: initial state, used by the owner of the first step (a template for the others).
            guess: C-point values of this rank to start from, or what `tau` returned (``initial="tau"``); None: one
                coarse solve without either.
            total: collective sum of rows (k, 2) over all C-points, in their order; `here` where this rank has them all.

        Returns:
            F_last(c_last), one cycle ahead of the C-points, on the rank that owns the last layer; else None.
        """
        self.x0 = x0
        once = len(self.levels) == 2 and self.options.initial != "tau"  # one chain a cycle
        self._last = once and not self.options.cycles
        self.c = self._start(guess)
        squares: list[Tensor] = []
        for cycle in range(self.options.cycles + 1):
            last = cycle == self.options.cycles
            self._last = once and last
            if cycle:
                self.c = self._cycle(0, self.c, self.options.cycle_shape == "F", last or self._early)
                self.info.cycles = cycle
            else:
                self.fine.sweep(last or self._early)
                self._sweep(0, self.c)
            squares.append(self._residual())
            if self._early:
                self.info.residuals += ratios(squares, total)
                squares = []
                if self.info.residuals[-1] <= (self.options.tol or 0.0):
                    break
        if squares:
            found = partial(ratios, squares, total)
            self.info.residuals = found if total is here else found()
        self.info.evaluations += sum(grid.evaluations for grid in self.grids)
        return self.end

    @property
    def _early(self) -> bool:
        return self.options.tol is not None

    def tau(self) -> list[Tensor]:
        """τ_k = F_{k−1}(c_{k−1}) − G_{k−1}(c_{k−1}) (0 for k = 0) at this rank's C-points, level by level; collective.

        After a solve; F is a sweep of the level below. A next solve for slightly other weights or states starts from
        u_{k+1} = G_k(u_k) + τ_{k+1} on each level: what a coarse grid misses is taken from the last sweep, all else is
        new. For the same problem this start is one cycle.
        Source: Brandt, Livne, Multigrid Techniques (1984), section 15 (frozen τ).
        """
        for level, grid in zip(self.levels[1:], self.grids, strict=True):
            if level.lo < level.hi and level.next is not None:
                self.comm.send(grid.value[-1], level.next)
        found: list[Tensor] = []
        for level, grid, arrived in zip(self.levels[1:], self.grids, self._arrived, strict=False):
            if level.lo < level.hi:
                before = self.x0 if level.previous is None else self.comm.recv(self.x0, level.previous)
                G = [before, *grid.value[:-1]]
                found += [torch.zeros_like(g) if F is None else F - g for F, g in zip(arrived, G, strict=True)]
        return found

    def _start(self, guess: list[Tensor] | None) -> list[Tensor]:
        if guess is not None and self.options.initial != "tau":
            if self.levels[0].coarse_lo == 0 and guess:
                guess = [self.x0, *guess[1:]]
            return list(guess)
        if guess is not None:
            self._continue(guess)
        else:
            self._coarse_start(1)
        return self.grids[0].u

    def _continue(self, tau: list[Tensor]) -> None:
        """Solve u_{k+1} = G_k(u_k) + τ_{k+1} on the coarsest level, and sweep the others so, from the coarsest up."""
        for grid in self.grids:
            grid.clear()
            n = grid.level.hi - grid.level.lo
            grid.rhs, tau = list(tau[:n]), tau[n:]
        self.grids[-1].substitute(self.x0, self.comm, self._last)
        for depth in range(len(self.grids) - 1, 0, -1):
            self._sweep(depth, self.grids[depth].u)

    def _coarse_start(self, depth: int) -> None:
        """Solve a level without right-hand side, from nothing: nested iteration from the coarsest level up."""
        grid = self.grids[depth - 1]
        grid.clear()
        if depth + 1 == len(self.levels):
            grid.substitute(self.x0, self.comm, self._last)
            return
        self._coarse_start(depth + 1)
        c = self.grids[depth].u
        self._sweep(depth, c)
        if self.options.initial != "nested":
            self._cycle(depth, c, False, False)

    @phased("cycle", level=True)
    def _cycle(self, depth: int, c: list[Tensor], f_shape: bool, last: bool) -> list[Tensor]:
        """One cycle on this level, which has been swept from c; returns the new c, swept."""
        if self.options.relaxation == "FCF":
            c = [old if new is None else new for old, new in zip(c, self._arrived[depth], strict=True)]
            self._resweep(depth, c, False)
        self._coarse(depth + 1, c, f_shape)
        c = self.grids[depth].u
        self._resweep(depth, c, last)
        return c

    def _resweep(self, depth: int, c: list[Tensor], last: bool) -> None:
        if depth == 0:
            self.fine.sweep(last)
        self._sweep(depth, c)

    def _coarse(self, depth: int, c: list[Tensor], f_shape: bool) -> None:
        """The coarse problem on this level, at the C-points c of the finer level."""
        grid = self.grids[depth - 1]
        grid.set_problem(c, self._arrived[depth - 1])
        if depth + 1 == len(self.levels):
            c.clear()  # the memory of each state is free as soon as the chain has passed it
            grid.substitute(self.x0, self.comm, self._last)
            return
        level = self.levels[depth]
        own = [s.i0 for s in level.segments[level.continues :]]
        c = [grid.u[i - level.lo] for i in own]
        self._sweep(depth, c)
        c = self._cycle(depth, c, f_shape, False)
        if f_shape:
            self._cycle(depth, c, False, False)

    @phased("sweep", level=True)
    def _sweep(self, depth: int, c: Sequence[Tensor]) -> None:
        """F-relaxation on a level from the C-points c; right-most interval first, so that its end is sent early."""
        level = self.levels[depth]
        self._arrived[depth] = [None] * (level.coarse_hi - level.coarse_lo)
        coming: Posted | None = None
        if level.previous is not None and level.lo < level.hi:
            coming = self.comm.post(self.x0, level.previous)
        own = level.segments[level.continues :]
        for segment, end in zip(reversed(own), self._run_all(depth, own[::-1], c[::-1]), strict=True):
            self._deliver(depth, segment, end)
        if coming is None:
            return
        u = coming.wait()
        if depth > 0:
            u = self.grids[depth - 1].plus_rhs(level.lo, u)
        if level.continues:
            (end,) = self._run_all(depth, level.segments[:1], (u,))
            self._deliver(depth, level.segments[0], end)
        else:
            self._arrived[depth][0] = u

    def _run_all(self, depth: int, segments: Sequence[Segment], us: Sequence[Tensor]) -> Iterable[Tensor | None]:
        """The ends of segments that start with us (without the right-hand sides of the points where they end)."""
        if depth:
            return self._visit(depth, segments, us)
        self.info.count(sum(segment.i1 - segment.i0 for segment in segments))
        return self.fine.run_all([(segment.i0, segment.i1) for segment in segments], us)

    def _visit(self, depth: int, segments: Sequence[Segment], us: Sequence[Tensor]) -> list[Tensor | None]:
        """The same on a coarse level: the first steps of all segments at once, then the second ones, and so on."""
        grid, now = self.grids[depth - 1], list[Any](us)
        for p in range(max((segment.i1 - segment.i0 for segment in segments), default=0)):
            live = [q for q, segment in enumerate(segments) if segment.i0 + p < segment.i1]
            steps = [segments[q].i0 + p for q in live]
            at = [grid.plus_rhs(i, now[q]) if p else now[q] for i, q in zip(steps, live, strict=True)]
            for q, end in zip(live, grid.visit_all(steps, at), strict=True):
                now[q] = end
        return now

    def _deliver(self, depth: int, segment: Segment, v: Tensor | None) -> None:
        level = self.levels[depth]
        if segment.i1 == level.steps:
            if depth == 0:
                self.end = v
            return
        if v is None:
            raise AssertionError("only the last step of a level has no result")
        if segment.i1 == level.hi and level.next is not None:
            self.comm.send(v, level.next)
        else:
            arrived = v if depth == 0 else self.grids[depth - 1].plus_rhs(segment.i1, v)
            self._arrived[depth][segment.interval + 1 - level.coarse_lo] = arrived

    @phased("residual")
    def _residual(self) -> Tensor:
        """Rows (|F_{k−1}(c_{k−1}) − c_k|², |c_k|²) of this rank's C-points, (points, 2), in float64 on their device."""
        pairs = [(c, F) for c, F in zip(self.c, self._arrived[0], strict=True) if F is not None]
        rows = self.x0.new_zeros(len(self.c), 2, dtype=torch.float64)
        if pairs:
            found = norms([c for c, _ in pairs], [F for _, F in pairs])
            rows[len(self.c) - len(pairs) :] = found  # the first point of all has nothing before it
        return rows.square_()
