"""Forward and adjoint solves of the whole trunk on one rank's slab, by MGRIT or by the exact chain.

Forward: the input is lifted to x_0 on the rank of layer 0, propagated, and x_N is broadcast. Adjoint: the cotangent of
x_N, known everywhere, is propagated backwards from the rank of layer N − 1, and that of the input is broadcast.
Broadcasts carry (batch, *features) once each; everything else stays on its slab.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpnet import chain
from lpnet.coarse_steps import CoarseSteps
from lpnet.coarsen import Recipes, Restriction, Span, Weights, kind_of
from lpnet.direction import Direction
from lpnet.fields import Field
from lpnet.fine import AdjointFine, ForwardFine
from lpnet.how import STORED, How
from lpnet.mgrit import Solver
from lpnet.options import MGRIT, SolverOptions
from lpnet.parted import Parted
from lpnet.phases import phase, phased, tell
from lpnet.propagator import Layers
from lpnet.residuals import Info, here
from lpnet.slab import Comm, Slab
from lpnet.steppers import Stepper
from lpnet.tape import Tape, round_trip

MakeFields = Callable[[Weights, Sequence[int]], dict[str, Field]]
"""(stacked weights, layer to which each of them belongs) -> fields."""


@dataclass
class Solution:
    """What a forward solve leaves for the adjoint: one tape for each micro-batch, and the state before the lift.

    With `again`, adjoints leave all there is for further ones.
    """

    tapes: list[Tape]
    x: Tensor
    info: Info
    again: bool = False
    linear: bool = False  # the coarse steps of the adjoint are linearised


@dataclass
class Prepared:
    """One version of the weights: the layers ready to run, and coarse steps as they are asked for."""

    theta: Weights
    layers: Layers
    fields: MakeFields
    coarse: dict[Any, CoarseSteps | None] = field(default_factory=dict)


class Engine:
    """Solves for one trunk: N layers with step h = T/N on a slab."""

    def __init__(self, stepper: Stepper, h: float, slab: Slab, how: How = STORED) -> None:
        self.stepper, self.h, self.slab, self.how = stepper, h, slab, how
        self.comm: Comm = slab.comm
        self.ahead, self.back = Direction(slab, False), Direction(slab, True)
        self._recipes = Recipes(stepper, h)
        self._restrictions: dict[Any, Restriction] = {}

    def check(self, options: MGRIT) -> None:
        """Raise `InputError`, on all ranks alike, where a coarse step of a level and its rows do not fit each other."""
        self.stepper.check(options)
        for direction in (self.ahead, self.back):
            for bound in direction.levels(options)[1:]:
                for span in direction.spans(bound):
                    self._recipes(span, options)

    def prepare(self, theta: Weights, fields: MakeFields) -> Prepared:
        """Layers of these local weights, name -> (n, ...)."""
        lo, hi = self.slab.lo, self.slab.hi
        layers = Layers(self.stepper, fields(theta, range(lo, hi)), self.h, lo, hi - lo, self.how)
        return Prepared(theta, layers, fields)

    # ---- forward -------------------------------------------------------------------------------------------------

    @phased("forward")
    def forward(
        self, prepared: Prepared, x: Tensor, options: SolverOptions, keep: bool, guess: list[Tensor] | None = None
    ) -> tuple[Tensor, Solution, list[Tensor]]:
        """Propagate x = (y_0, 0, …), packed, known on every rank.

        Returns:
            y_N (packed, without memory) on every rank, what the adjoint needs, and what `guess` of the next solve may
            be: C-point values, or τ (``initial="tau"``).
        """
        levels = self.ahead.levels(options) if isinstance(options, MGRIT) else []
        if len(levels) < 2:
            end, solution = self._chain(prepared, x, options.micro_batches, keep)
            carry: list[Tensor] = []
        else:
            assert isinstance(options, MGRIT)
            end, solution, carry = self._mgrit(prepared, x, options, keep, guess, levels)
        y = end[0] if end is not None else torch.empty_like(x[0])
        return self.comm.bcast_(y.contiguous(), self.ahead.last), solution, carry

    def _chain(self, prepared: Prepared, x: Tensor, micro_batches: int, keep: bool) -> tuple[Tensor | None, Solution]:
        layers, slab = prepared.layers, self.slab
        parts = layers.split(x, micro_batches)
        tapes = [layers.tape(part if keep else None) for part in parts]

        def through(q: int, u: Tensor) -> Tensor:
            return layers.run(slab.lo, slab.hi, u, tapes[q])

        end, info = chain.propagate(self.ahead, layers, parts, lambda q, part: layers.lift(part), through)
        return end, Solution(tapes, x, info)

    def _mgrit(
        self,
        prepared: Prepared,
        x: Tensor,
        options: MGRIT,
        keep: bool,
        guess: list[Tensor] | None,
        bounds: list[tuple[int, ...]],
    ) -> tuple[Tensor | None, Solution, list[Tensor]]:
        layers, ahead = prepared.layers, self.ahead
        layers.micro_batch(0)
        levels = ahead.view(bounds)
        with phase(self.comm, "lift"):
            x0 = layers.lift(x) if self.comm.rank == ahead.first else x
        if options.initial == "constant":
            x0 = self.comm.bcast_(x0.contiguous(), ahead.first)
            guess = [x0] * (levels[0].coarse_hi - levels[0].coarse_lo)
        tape = layers.tape(x if keep else None)
        coarse = [self.coarse(prepared, ahead, bound, options) for bound in bounds[1:]]
        steps = [c.step_all if c else _nothing for c in coarse]
        parts = self._parted(layers, ahead, bounds[-1], coarse[-1], options)
        solver = Solver(options, levels, ForwardFine(layers, tape), steps, self.comm, parts)
        end = solver.solve(x0, guess, self.total(ahead, bounds))
        tell(self.comm, "residual, forward", lambda: solver.info.residuals[-1])
        return end, Solution([tape], x, solver.info), _carry(solver)

    @phased("coarse weights")
    def coarse(
        self, prepared: Prepared, direction: Direction, bound: tuple[int, ...], options: MGRIT
    ) -> CoarseSteps | None:
        """Coarse steps of this rank on one level, shared by all solves that need the same; None where it has none."""
        restriction = self.restriction(direction, bound, options)
        if restriction not in prepared.coarse:
            theta, mine = restriction(prepared.theta), restriction.mine
            steps = self._steps(prepared.fields, theta, restriction.own, options, mine[0]) if mine else None
            prepared.coarse[restriction] = steps
        return prepared.coarse[restriction]

    def restriction(self, direction: Direction, bound: tuple[int, ...], options: MGRIT) -> Restriction:
        """Of weights to a level; the same one for both directions where the steps and their ranks are the same."""
        key = direction.adjoint, bound, *kind_of(options)
        if key not in self._restrictions:
            spans = direction.spans(bound)
            made = Restriction(spans, direction.owners(spans), self.slab, partial(self.rows, options))
            self._restrictions[key] = self._restrictions.setdefault((made.key, *kind_of(options)), made)
        return self._restrictions[key]

    def _parted(
        self, layers: Layers, direction: Direction, bound: tuple[int, ...], steps: CoarseSteps | None, options: MGRIT
    ) -> Parted | None:
        """The coarse steps of a level for parts of the batch; None where its chain does not go through other ranks.

        Random layers draw numbers for a state as a whole.
        """
        if steps is None or steps.is_random or options.micro_batches == 1:
            return None
        if len(set(direction.owners(direction.spans(bound)))) == 1:
            return None
        last = len(bound) - 2
        pull = partial(_pull_of, last) if direction.adjoint else CoarseSteps.step
        return Parted(layers, steps.parts(options.micro_batches), pull)

    def _steps(
        self, fields: MakeFields, theta: Weights, spans: list[Span], options: MGRIT, first: int
    ) -> CoarseSteps:
        """The coarse steps over these spans with weights theta; random layers draw as the first layer of each row."""
        made = [self._recipes(span, options) for span in spans]
        layers = [span[0] + j for span, one in zip(spans, made, strict=True) for j in one.first]
        programs, rows = [one.program for one in made], [len(one.rows) for one in made]
        return CoarseSteps(self.stepper.memory, fields(theta, layers), programs, rows, first)

    def rows(self, options: MGRIT, span: Span) -> np.ndarray:
        """Coefficients of the weights of a coarse step over a span of layers; one array for all of a length."""
        return self._recipes(span, options).rows

    def total(
        self, direction: Direction, bounds: list[tuple[int, ...]]
    ) -> Callable[[np.ndarray], np.ndarray]:
        """Sum of rows over all C-points in the order of the direction, the same for every number of ranks."""
        if self.comm.size == 1:
            return here
        counts, order = direction.points(bounds[1])

        def total(rows: np.ndarray) -> np.ndarray:
            return np.asarray(self.comm.allgather(rows, counts)[order].sum(axis=0))

        return total

    # ---- adjoint -------------------------------------------------------------------------------------------------

    @phased("adjoint")
    def adjoint(
        self,
        prepared: Prepared,
        solution: Solution,
        z: Tensor,
        options: SolverOptions,
        gradients: bool = True,
        guess: list[Tensor] | None = None,
    ) -> tuple[Tensor, Info, list[Tensor]]:
        """Pull z = (∂loss/∂y_N, 0, …), packed, known on every rank, back through all layers.

        The gradients of the local weights are left in the fields of `prepared.layers`.

        Returns:
            The cotangent of y_0 (packed, without memory) on every rank, what the solve did, and the next `guess`.
        """
        layers, before = prepared.layers, prepared.layers.again
        if gradients:
            layers.reset_grads()
        levels = self.back.levels(options) if isinstance(options, MGRIT) else []
        carry: list[Tensor] = []
        if len(levels) < 2:
            bar, info = self._chain_back(prepared, solution, z, options.micro_batches, gradients)
        else:
            assert isinstance(options, MGRIT)
            bar, info, carry = self._mgrit_back(prepared, solution, z, options, gradients, guess, levels)
        info.count(layers.again - before)
        out = bar[0] if bar is not None else torch.empty_like(z[0])
        return self.comm.bcast_(out.contiguous(), self.back.last), info, carry

    def _chain_back(
        self, prepared: Prepared, solution: Solution, z: Tensor, micro_batches: int, gradients: bool
    ) -> tuple[Tensor | None, Info]:
        layers = prepared.layers
        xs, zs = layers.split(solution.x, micro_batches), layers.split(z, micro_batches)
        tapes = layers.retape(solution.tapes, len(xs), solution.x)
        return chain.pull(self.back, layers, xs, zs, tapes, gradients)

    def _mgrit_back(
        self,
        prepared: Prepared,
        solution: Solution,
        z: Tensor,
        options: MGRIT,
        gradients: bool,
        guess: list[Tensor] | None,
        bounds: list[tuple[int, ...]],
    ) -> tuple[Tensor | None, Info, list[Tensor]]:
        layers, back = prepared.layers, self.back
        (tape,) = layers.retape(solution.tapes, 1, solution.x)
        layers.micro_batch(0)
        levels = back.view(bounds)
        if options.initial == "constant":
            guess = [z] * (levels[0].coarse_hi - levels[0].coarse_lo)
        coarse = [self.coarse(prepared, back, bound, options) for bound in bounds[1:]]
        parts = self._parted(layers, back, bounds[-1], coarse[-1], options)
        linear = [*coarse[:-1], parts or coarse[-1]]
        for steps, bound in zip(linear, bounds[1:] if not solution.linear else (), strict=False):
            self._linearize(steps, layers, tape, bound, z, solution.again)
        solution.linear = solution.again
        if self.how.store == "all" and not solution.again:
            tape.starts = {}  # of no more use; another adjoint would rebuild them from the ends
        pulls = [partial(_pulls_of, len(b) - 2, c) if c else _nothing for c, b in zip(coarse, bounds[1:], strict=True)]
        fine = AdjointFine(layers, tape, self.slab, gradients)
        solver = Solver(options, levels, fine, pulls, self.comm, parts)
        end = solver.solve(z, guess, self.total(back, bounds))
        tell(self.comm, "residual, adjoint", lambda: solver.info.residuals[-1])
        solver.info.round_trip = round_trip([tape])
        for steps in linear:
            if steps is not None and not solution.again:
                steps.forget()
        bar = layers.pull_lift(solution.x, end, gradients) if end is not None else None
        return bar, solver.info, _carry(solver)

    @phased("linearize")
    def _linearize(
        self,
        steps: CoarseSteps | Parted | None,
        layers: Layers,
        tape: Tape,
        bound: tuple[int, ...],
        like: Tensor,
        tangents: bool,
    ) -> None:
        """Linearise the coarse steps of a level at the states of the last forward sweep, fetched where needed."""
        rank, needed = self.comm.rank, self.back.states(bound)
        coming = {k: self.comm.post(like, source) for k, _, owner, source in needed if owner == rank != source}
        for _, a, owner, source in needed:
            if source == rank != owner:
                self.comm.send(layers.state(a, tape), owner)
        own = [(k, a) for k, a, owner, _ in needed if owner == rank]
        if steps is not None:
            states = [coming[k].wait() if k in coming else layers.state(a, tape) for k, a in own]
            steps.linearize_all([k for k, _ in own], states, tangents)


def _carry(solver: Solver) -> list[Tensor]:
    """What the next solve may start from."""
    return solver.tau() if solver.options.initial == "tau" else solver.c


def _nothing(ks: Sequence[int], us: Sequence[Tensor]) -> list[Tensor]:
    raise AssertionError(f"coarse steps {list(ks)} on a rank that has none")


def _pull_of(last: int, steps: CoarseSteps, k: int, z: Tensor) -> Tensor:
    return steps.pull(last - k, z)


def _pulls_of(last: int, steps: CoarseSteps, ks: Sequence[int], zs: Sequence[Tensor]) -> list[Tensor]:
    return steps.pull_all([last - k for k in ks], zs)
