"""A trunk linearised at one input: products with its Jacobian and the transpose, as many as one likes.

    δx_{j+1} = (∂Φ_j/∂x) δx_j + (∂Φ_j/∂θ) δθ_j        J (δy_0, δθ) = δy_N:  one forward solve of this linear problem
    z_j = (∂Φ_j/∂x)ᵀ z_{j+1},  g_j = (∂Φ_j/∂θ)ᵀ z_{j+1}      Jᵀ δy_N = (z_0, g):  one adjoint solve

Both are linearised at the states of one forward solve. A product by MGRIT is a solve like any other, with the coarse
propagators linearised (affine, so that the full approximation scheme takes it as it is); it starts from nothing but its
argument, so that J is the same linear map every time.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lpnet import hierarchy
from lpnet.coarsen import restrict
from lpnet.control import Schedule, exact_of
from lpnet.errors import InputError
from lpnet.mgrit import Info, Solver
from lpnet.options import MGRIT, SolverOptions
from lpnet.propagator import Tape
from lpnet.step import Step, Trunk
from lpnet.tangent import Deltas, TangentLayers, TangentSteps

Weights = dict[str, Tensor]


class _Fine:
    def __init__(self, layers: TangentLayers, tape: Tape) -> None:
        self.layers, self.tape = layers, tape

    def sweep(self, last: bool) -> None:
        pass

    def run(self, i0: int, i1: int, u: Tensor) -> Tensor:
        return self.layers.run(i0, i1, u, self.tape)


class _Level:
    """The linearised coarse steps of one level, and the mean weights that they have."""

    def __init__(self, steps: TangentSteps | None, restricted: Callable[[Weights], Weights], theta: Weights) -> None:
        self.steps, self.restrict, self.theta = steps, restricted, restricted(theta)


class Linearization:
    """y_N = F(y_0, θ) of a trunk at one input and its present weights (it keeps a copy); all methods are collective.

    Args:
        trunk: whose solvers are used: those of its training steps, the exact chain within `lpnet.exact`.
        y: y_0, (batch, *features), the same on every rank.

    Attributes:
        output: y_N, (batch, *features), on every rank.
        info, product: what the forward solve and the last product did.
    """

    def __init__(self, trunk: Trunk, y: Tensor) -> None:
        self.trunk, self._step = trunk, Step(trunk, y, copied=True)
        self._schedule = schedule_of(trunk)
        out, self._solution = self._step.forward(self._schedule.forward, True)
        self.output = self._step.unpacked(out)
        self.info = self.product = self._solution.info
        self._engine, self._prepared = trunk._engine, self._step.prepared
        self._starts = [tape.starts for tape in self._solution.tapes]
        self._levels: list[_Level] | None = None

    def tangent(self, dy: Tensor | None, dtheta: Sequence[Tensor] | None) -> Tensor:
        """J (δy_0, δθ): the change of the output.

        Args:
            dy: δy_0, (batch, *features), the same on every rank; None for 0.
            dtheta: δθ of this rank, in the order and shapes of `trunk.theta`; None for 0.

        Returns:
            δy_N, (batch, *features), on every rank.

        Raises:
            InputError: a shape does not fit.
        """
        self._check(dy, dtheta)
        delta = None if dtheta is None else dict(zip(self.trunk.theta, (t.detach() for t in dtheta), strict=True))
        dot = self._step._packed(torch.zeros_like(self.output) if dy is None else dy)
        self._remember()
        end = self._solve(dot, delta)
        self.trunk.info.layer_evaluations += self.product.layers
        out = end[0] if end is not None else torch.empty_like(dot[0])
        return self._step.unpacked(self._engine.comm.bcast_(out.contiguous(), self._engine.ahead.last))

    def pull(self, bar: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Jᵀ bar.

        Args:
            bar: cotangent of y_N, (batch, *features), the same on every rank.

        Returns:
            The cotangents of y_0, on every rank, and of this rank's weights, in the order of `trunk.theta`.

        Raises:
            InputError: a shape does not fit.
        """
        self._check(bar, None)
        step, trunk = self._step, self.trunk
        self._remember()
        adjoint = trunk._engine.adjoint(self._prepared, self._solution, step._packed(bar), self._schedule.adjoint)
        out, self.product, _ = adjoint
        trunk.info.layer_evaluations += self.product.layers
        grads = trunk._stack.gradients(self._prepared.theta, dict(self._prepared.layers.fields))
        return step.unpacked(out), grads

    def _check(self, y: Tensor | None, dtheta: Sequence[Tensor] | None) -> None:
        if y is not None and y.shape != self.output.shape:
            raise InputError(f"y: shape {tuple(y.shape)} given, {tuple(self.output.shape)} allowed")
        shapes = [tuple(p.shape) for p in self.trunk.theta.values()]
        if dtheta is not None and [tuple(t.shape) for t in dtheta] != shapes:
            raise InputError(f"dtheta: shapes {[tuple(t.shape) for t in dtheta]} given, {shapes} allowed")

    def _remember(self) -> None:
        """An adjoint drops the states at which the segments start."""
        for tape, starts in zip(self._solution.tapes, self._starts, strict=True):
            tape.starts = starts

    # ---- the linearised forward solve ----------------------------------------------------------------------------

    def _deltas(self, theta: Weights, delta: Weights | None) -> Deltas:
        return None if delta is None else self.trunk._stack.directions(theta, delta)

    def _solve(self, dot: Tensor, delta: Weights | None) -> Tensor | None:
        options, engine = self._schedule.forward, self._engine
        layers = TangentLayers(self._prepared.layers, self._deltas(self._prepared.theta, delta))
        bounds = engine.ahead.levels(options) if isinstance(options, MGRIT) else []
        if len(bounds) < 2:
            return self._chain(layers, dot)
        assert isinstance(options, MGRIT)
        return self._mgrit(layers, dot, delta, options, bounds)

    def _chain(self, layers: TangentLayers, dot: Tensor) -> Tensor | None:
        """The exact layers, in the parts of the batch in which the states were propagated."""
        exact, ahead, slab = self._prepared.layers, self._engine.ahead, self._engine.slab
        self.product = info = Info("serial", [0.0])
        ends: list[Tensor] = []
        xs, dots = (exact.split(t, len(self._solution.tapes)) for t in (self._solution.x, dot))
        for q, (x, u, tape) in enumerate(zip(xs, dots, self._solution.tapes, strict=True)):
            exact.micro_batch(q)
            if not exact.n:
                continue
            v = layers.lift(x, u) if ahead.previous is None else self._engine.comm.recv(u, ahead.previous)
            v = layers.run(slab.lo, slab.hi, v, tape)
            info.evaluations += exact.n
            info.layers += exact.n
            if ahead.next is not None:
                self._engine.comm.send(v, ahead.next)
            else:
                ends.append(v)
        return exact.join(ends) if ends else None

    def _mgrit(
        self, layers: TangentLayers, dot: Tensor, delta: Weights | None, options: MGRIT, bounds: list[tuple[int, ...]]
    ) -> Tensor | None:
        engine, ahead, comm = self._engine, self._engine.ahead, self._engine.comm
        self._prepared.layers.micro_batch(0)
        levels = hierarchy.build(bounds, ahead.starts, ahead.order, comm.rank)
        dot = layers.lift(self._solution.x, dot) if comm.rank == ahead.first else dot
        guess = None
        if options.initial == "constant":
            guess = [comm.bcast_(dot, ahead.first)] * (levels[0].coarse_hi - levels[0].coarse_lo)
        steps = [self._coarse(level, delta) for level in self._linearized(options, bounds)]
        fine = _Fine(layers, self._solution.tapes[0])
        solver = Solver(options, levels, fine, steps, comm)
        end = solver.solve(dot, guess, engine._total(ahead, bounds))
        self.product = solver.info
        return end

    def _coarse(self, level: _Level, delta: Weights | None) -> Callable[[int, Tensor], Tensor]:
        """The coarse step of a level for this change of the weights."""
        mean = None if delta is None else level.restrict(delta)
        if level.steps is None:
            return _nothing
        level.steps.deltas = None if mean is None else self._deltas(level.theta, mean)
        return level.steps.step

    def _linearized(self, options: MGRIT, bounds: list[tuple[int, ...]]) -> list[_Level]:
        """Coarse steps linearised at the states of the last forward sweep; made once."""
        if self._levels is None:
            self._levels = [self._linearize(options, bound) for bound in bounds[1:]]
        return self._levels

    def _linearize(self, options: MGRIT, bound: tuple[int, ...]) -> _Level:
        engine, ahead = self._engine, self._engine.ahead
        spans = ahead.spans(bound)
        owners = ahead.owners(spans)
        restricted = partial(_restricted, spans, owners, engine.slab, options)
        coarse = engine._coarse(self._prepared, ahead, bound, options)
        steps = None if coarse is None else TangentSteps(coarse)
        for k, ((a, _), owner) in enumerate(zip(spans[:-1], owners, strict=False)):  # nobody needs the last one's end
            if steps is not None and owner == engine.comm.rank:
                steps.linearize(k, self._prepared.layers.state(a, self._solution.tapes[0]))
        return _Level(steps, restricted, self._prepared.theta)


def _restricted(spans: Any, owners: Any, slab: Any, options: MGRIT, theta: Weights) -> Weights:
    return restrict(theta, spans, owners, slab, options)


def _nothing(k: int, u: Tensor) -> Tensor:
    raise AssertionError(f"coarse step {k} on a rank that has none")


def schedule_of(trunk: Trunk) -> Schedule:
    """The solvers of a training step of the trunk, or of the one that is repeated; exact within `lpnet.exact`."""
    solvers: tuple[SolverOptions, SolverOptions] = (trunk.forward_solver, trunk.adjoint_solver)
    if trunk.exact:
        return Schedule(exact_of(solvers[0]), exact_of(solvers[1]), True)
    if trunk._again is not None:
        return trunk._again.schedule
    if trunk._controller is not None and trunk.training:
        return trunk._controller.schedule()
    return Schedule(*solvers, False)
