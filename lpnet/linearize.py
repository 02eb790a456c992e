"""A trunk linearised at one input: products with its Jacobian and the transpose, as many as one likes.

    δx_{j+1} = (∂Φ_j/∂x) δx_j + (∂Φ_j/∂θ) δθ_j        J (δy_0, δθ) = δy_N:  one forward solve of this linear problem
    z_j = (∂Φ_j/∂x)ᵀ z_{j+1},  g_j = (∂Φ_j/∂θ)ᵀ z_{j+1}      Jᵀ δy_N = (z_0, g):  one adjoint solve

Both are linearised at the states of one forward solve. A product by MGRIT is a solve like any other, with the coarse
propagators linearised (affine, so that the full approximation scheme takes it as it is); it starts from nothing but its
argument and does a fixed number of cycles, so that J is the same linear map every time. With a `tol`, which would make
the cycles depend on the argument, it goes on until nothing but rounding is left, or the cycles that are allowed are
done: the same map to rounding. What the forward solve needed says nothing of products: their residuals are larger where
weights are smooth and their changes are not, and solves that start from earlier ones need no cycle at all.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lpnet import chain
from lpnet.ambient import without_autocast
from lpnet.coarse_grid import one_by_one
from lpnet.coarse_steps import CoarseSteps
from lpnet.control import Schedule, exact_of, exactly
from lpnet.errors import InputError
from lpnet.mgrit import FinePropagator, Solver
from lpnet.options import MGRIT, SolverOptions
from lpnet.step import Step, Trunk
from lpnet.tangent import Deltas, TangentLayers
from lpnet.tape import Tape

Weights = dict[str, Tensor]

_ROUNDING = 4  # times the precision of the numbers: a residual that further cycles change by rounding alone


class _Fine(FinePropagator):
    def __init__(self, layers: TangentLayers, tape: Tape) -> None:
        self.layers, self.tape = layers, tape

    def sweep(self, last: bool) -> None:
        pass

    def run(self, i0: int, i1: int, u: Tensor) -> Tensor:
        return self.layers.run(i0, i1, u, self.tape)


class _Level:
    """The coarse steps of one level, linearised, with a change of their weights.

    Args:
        steps: those of this rank; None where it has none.
        restricted: weights of its coarse steps from those of the layers; collective.
        directions: changes of weights as fields hold them, from weights and their changes.
        theta: weights of the local layers.
    """

    def __init__(
        self,
        steps: CoarseSteps | None,
        restricted: Callable[[Weights], Weights],
        directions: Callable[[Weights, Weights], Deltas],
        theta: Weights,
    ) -> None:
        self.steps, self._restricted, self._directions = steps, restricted, directions
        self._theta = restricted(theta)
        self._deltas: Deltas = None

    def change(self, delta: Weights | None) -> None:
        """The change of the local layers' weights; collective."""
        mean = None if delta is None else self._restricted(delta)
        self._deltas = None if mean is None or self.steps is None else self._directions(self._theta, mean)

    def step(self, k: int, dot: Tensor) -> Tensor:
        """The change of G_k."""
        assert self.steps is not None
        return self.steps.tangent(k, dot, self._deltas)


class Linearization:
    """y_N = F(y_0, θ) of a trunk at one input and its present weights (it keeps a copy); all methods are collective.

    It starts from what the trunk remembers, as a training step would, and leaves nothing for the next step.

    Args:
        trunk: whose solvers are used: those of its training steps, the exact chain within `lpnet.exact`.
        y: y_0, (batch, *features), the same on every rank.

    Attributes:
        output: y_N, (batch, *features), on every rank.
        schedule: solvers of the products; the forward solve is by the same, but for `tol`, which is rounding here.
        info, product: what the forward solve and the last product did.

    Raises:
        InputError: the trunk has the continuous adjoint, which is no transpose of J.
    """

    @without_autocast
    def __init__(self, trunk: Trunk, y: Tensor) -> None:
        if trunk._engine.how.continuous:
            raise InputError("gradient: 'continuous' given, 'discrete' allowed where products with J and Jᵀ are needed")
        self.trunk, self._step = trunk, Step(trunk, y, copied=True)
        given = schedule_of(trunk)
        out, self._solution = self._step.forward(given.forward, True)
        self.output = self._step.unpacked(out).clone()  # as that of a call
        self.info = self.product = self._solution.info
        given = exactly(given) if self.info.diverged else given  # one linear map, of products that all end somewhere
        ahead, back = (_to_rounding(s, self.output.dtype) for s in (given.forward, given.adjoint))
        self.schedule = replace(given, forward=ahead, adjoint=back)
        self._solution.again = True
        self._engine, self._prepared = trunk._engine, self._step.prepared
        self._layers = TangentLayers(self._prepared.layers)
        self._levels: list[_Level] | None = None

    @without_autocast
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
        theta = self.trunk.theta
        delta = None if dtheta is None else self.trunk.grid.expand(dict(zip(theta, dtheta, strict=True)))
        dot = self._step._packed(torch.zeros_like(self.output) if dy is None else dy)
        before = self._prepared.layers.again
        end = self._solve(dot, delta)
        self.product.count(self._prepared.layers.again - before)
        self.trunk.info.layer_evaluations += self.product.layers
        out = end[0] if end is not None else torch.empty_like(dot[0])
        return self._step.unpacked(self._engine.comm.bcast_(out.contiguous(), self._engine.ahead.last))

    @without_autocast
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
        adjoint = trunk._engine.adjoint(self._prepared, self._solution, step._packed(bar), self.schedule.adjoint)
        out, self.product, _ = adjoint
        step.pulled(self.product)
        return step.unpacked(out), trunk._gradients(self._prepared)

    def _check(self, y: Tensor | None, dtheta: Sequence[Tensor] | None) -> None:
        if y is not None and y.shape != self.output.shape:
            raise InputError(f"y: shape {tuple(y.shape)} given, {tuple(self.output.shape)} allowed")
        shapes = [tuple(p.shape) for p in self.trunk.theta.values()]
        if dtheta is not None and [tuple(t.shape) for t in dtheta] != shapes:
            raise InputError(f"dtheta: shapes {[tuple(t.shape) for t in dtheta]} given, {shapes} allowed")

    # ---- the linearised forward solve ----------------------------------------------------------------------------

    def _solve(self, dot: Tensor, delta: Weights | None) -> Tensor | None:
        options, engine = self.schedule.forward, self._engine
        self._layers.deltas = None if delta is None else self.trunk._stack.directions(self._prepared.theta, delta)
        bounds = engine.ahead.levels(options) if isinstance(options, MGRIT) else []
        if len(bounds) < 2:
            return self._chain(dot)
        assert isinstance(options, MGRIT)
        return self._mgrit(dot, delta, options, bounds)

    def _chain(self, dot: Tensor) -> Tensor | None:
        """The exact layers, in the parts of the batch in which the states were propagated."""
        exact, slab, tapes = self._prepared.layers, self._engine.slab, self._solution.tapes
        xs, dots = (exact.split(t, len(tapes)) for t in (self._solution.x, dot))

        def enter(q: int, part: Tensor) -> Tensor:
            return self._layers.lift(xs[q], part)

        def through(q: int, u: Tensor) -> Tensor:
            return self._layers.run(slab.lo, slab.hi, u, tapes[q])

        end, self.product = chain.propagate(self._engine.ahead, exact, dots, enter, through)
        return end

    def _mgrit(
        self, dot: Tensor, delta: Weights | None, options: MGRIT, bounds: list[tuple[int, ...]]
    ) -> Tensor | None:
        engine, ahead, comm = self._engine, self._engine.ahead, self._engine.comm
        self._prepared.layers.micro_batch(0)
        levels = ahead.view(bounds)
        dot = self._layers.lift(self._solution.x, dot) if comm.rank == ahead.first else dot
        guess = None
        if options.initial == "constant":
            guess = [comm.bcast_(dot, ahead.first)] * (levels[0].coarse_hi - levels[0].coarse_lo)
        if self._levels is None:
            self._levels = [self._linearize(options, bound) for bound in bounds[1:]]
        for level in self._levels:
            level.change(delta)
        fine = _Fine(self._layers, self._solution.tapes[0])
        solver = Solver(options, levels, fine, [one_by_one(level.step) for level in self._levels], comm)
        end = solver.solve(dot, guess, engine.total(ahead, bounds))
        self.product = solver.info
        return end

    def _linearize(self, options: MGRIT, bound: tuple[int, ...]) -> _Level:
        """Coarse steps of a level at the states of the last forward sweep."""
        engine, ahead = self._engine, self._engine.ahead
        spans, restriction = ahead.spans(bound), engine.restriction(ahead, bound, options)
        steps = engine.coarse(self._prepared, ahead, bound, options)
        own = [k for k in restriction.mine if k + 1 < len(spans)]  # nobody needs the last one's end
        if steps is not None:
            states = [self._prepared.layers.state(spans[k][0], self._solution.tapes[0]) for k in own]
            steps.linearize_all(own, states)

        return _Level(steps, restriction, self.trunk._stack.directions, self._prepared.theta)


def _to_rounding(options: SolverOptions, dtype: torch.dtype) -> SolverOptions:
    """With a `tol` at which the number of cycles, which depends on the argument, changes rounding alone."""
    if not isinstance(options, MGRIT) or options.tol is None:
        return options
    return replace(options, tol=_ROUNDING * torch.finfo(dtype).eps)


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
