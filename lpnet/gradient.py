"""The trunk as one differentiable operation: a forward solve, an adjoint solve, and the check of their error.

    x_{j+1} = Φ_j(x_j),        z_j = (∂Φ_j/∂x)ᵀ z_{j+1},    g_j = (∂Φ_j/∂θ)ᵀ z_{j+1}

Under error control (`lpnet.control`) a backward pass may solve again, with more cycles or by the exact chain, from the
same weights, input and cotangent z_N; its result is then the best of these gradients.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from lpnet.control import Controller, Report, Schedule, Signals, reduction
from lpnet.engine import Engine, Prepared, Solution
from lpnet.memory import FROM_EARLIER, Memory, Solve
from lpnet.mgrit import Info
from lpnet.options import MGRIT, Serial, SolverOptions
from lpnet.slab import Slab, layer_squares
from lpnet.stack import Stack
from lpnet.steppers import Stepper


@dataclass
class Infos:
    """What the last forward and the last adjoint solve did, and what control says of them; None before the first."""

    forward: Info | None = None
    adjoint: Info | None = None
    control: Report | None = None


class Trunk(Protocol):
    """What is needed of a `lpnet.LayerParallel`."""

    stepper: Stepper
    forward_solver: SolverOptions
    adjoint_solver: SolverOptions
    memory: Memory
    info: Infos
    exact: bool
    training: bool
    _engine: Engine
    _slab: Slab
    _stack: Stack
    _controller: Controller | None
    _again: "Check | Trial | None"
    _last: "Trial | None"
    _deferred: bool

    @property
    def local_layers(self) -> range: ...
    @property
    def theta(self) -> dict[str, nn.Parameter]: ...
    def _prepare(self, y: Tensor) -> Prepared: ...


@dataclass
class Gradient:
    """Gradients of the local weights and of the input (packed, without memory), and how they were found."""

    weights: list[Tensor]
    inputs: Tensor
    forward: Info
    adjoint: Info

    @property
    def residuals(self) -> tuple[float, float]:
        """The last residual of either solve."""
        return self.forward.residuals[-1], self.adjoint.residuals[-1]


class Step:
    """The solves of one call of a trunk: one version of the weights, one input, and what to start from."""

    def __init__(self, trunk: Trunk, y: Tensor) -> None:
        self.trunk, self.prepared, self.wanted = trunk, trunk._prepare(y), True
        self.field = next(iter(self.prepared.layers.fields.values()))
        self.x = self._packed(y)
        self.z = self.x
        self.guess: dict[str, list[Tensor] | None] = trunk._again.guess if trunk._again else {}

    def _packed(self, y: Tensor) -> Tensor:
        """(y, 0, …) as the field stores states."""
        memory = self.trunk.stepper.memory
        return self.field.pack(torch.stack([y.detach()] + [torch.zeros_like(y)] * (memory - 1)))

    def unpacked(self, y: Tensor) -> Tensor:
        """(batch, *features) from a packed state without memory."""
        return self.field.unpack(y[None])[0]

    def _solve(self, which: str, options: SolverOptions) -> Solve | None:
        if not isinstance(options, MGRIT) or options.initial not in FROM_EARLIER:
            return None
        x = self.x if which == "forward" else self.z
        return Solve(which, options, x, self.field.batch_dim(x))

    def _start(self, which: str, options: SolverOptions) -> list[Tensor] | None:
        """What the memory has to start from; the same for all solves of the step."""
        solve = self._solve(which, options)
        if solve is None:
            return None
        if which not in self.guess:
            self.guess[which] = self.trunk.memory.load(solve)
        return self.guess[which]

    def _keep(self, which: str, options: SolverOptions, carry: list[Tensor], info: Info) -> None:
        """For the next step, unless it is not finite (all ranks have the same residual)."""
        solve = self._solve(which, options)
        if solve is not None and info.solver == "mgrit" and not isinstance(self.trunk._again, Trial):
            self.trunk.memory.save(solve, carry if math.isfinite(info.residuals[-1]) else None)

    def forward(self, options: SolverOptions, keep: bool) -> tuple[Tensor, Solution]:
        """y_N, packed, and what the adjoint needs; collective."""
        guess = self._start("forward", options)
        out, solution, carry = self.trunk._engine.forward(self.prepared, self.x, options, keep, guess)
        self._keep("forward", options, carry, solution.info)
        return out, solution

    def adjoint(self, solution: Solution, options: SolverOptions, wanted: bool) -> Gradient:
        """The gradient for the cotangent `z`; collective."""
        guess = self._start("adjoint", options)
        out, info, carry = self.trunk._engine.adjoint(self.prepared, solution, self.z, options, wanted, guess)
        self._keep("adjoint", options, carry, info)
        weights: list[Tensor] = []
        if wanted:
            weights = self.trunk._stack.gradients(dict(self.trunk.theta), dict(self.prepared.layers.fields))
        return Gradient(weights, out, solution.info, info)


@dataclass(frozen=True)
class Trial:
    """The schedule of a step, and what its solves started from: to evaluate the same function at other weights."""

    schedule: Schedule
    guess: dict[str, list[Tensor] | None]


class Check:
    """Comparison of a step's gradient with those of the same step by more cycles, or by the exact chain.

    Args:
        step: whose gradient.
        first: by the schedule of the step.
        signals: residuals and norms of it.
    """

    def __init__(self, step: Step, first: Gradient, signals: Signals, controller: Controller) -> None:
        self.trunk, self.guess, self.controller = step.trunk, step.guess, controller
        self._signals, self._found = signals, [_copied(first)]
        self.done, self.report = False, Report(math.inf, False, True, _cycles(first))
        self.schedule = controller.schedule(1)

    def add(self, gradient: Gradient) -> None:
        """The gradient by `schedule`; collective."""
        self._found.append(_copied(gradient))
        errors, rate = _errors(self.trunk, self._found), math.inf
        exact, others = self.schedule.exact, self._found[: -1 if self.schedule.exact else None]
        if len(others) > 1:
            rate = reduction(others[-2].residuals, others[-1].residuals)
        self.done = exact or self.controller.enough(errors, rate)
        if self.done:
            self.controller.settle(errors, rate, exact, self._signals)
            self.report = Report(errors[0], exact, True, self.report.cycles)
        else:
            self.schedule = self.controller.schedule(len(self._found))


def _judged(step: Step, first: Gradient, schedule: Schedule, controller: Controller) -> Report | Check:
    """What control says of a gradient: a report, or a check that is to be done; collective."""
    if schedule.exact:
        return Report(0.0, True, False, _cycles(first))
    z = float(torch.linalg.vector_norm(step.z.double()))
    signals = Signals(*first.residuals, z, _norms(step.trunk, [first])[0])
    estimate = controller.estimate(signals)
    if controller.wants_check(estimate):
        return Check(step, first, signals, controller)
    return Report(estimate, False, False, _cycles(first))


def _checked(step: Step, check: Check) -> Gradient:
    """The last gradient of a check with the cotangent as it is."""
    while True:
        _, solution = step.forward(check.schedule.forward, True)
        gradient = step.adjoint(solution, check.schedule.adjoint, step.wanted)
        check.add(gradient)
        if check.done:
            return gradient


def _norms(trunk: Trunk, found: list[Gradient]) -> list[float]:
    """Norms of the weight gradients of all layers, summed in layer order."""
    n = len(trunk.local_layers)
    rows = [sum((layer_squares(w) for w in g.weights), torch.zeros(n, dtype=torch.float64)) for g in found]
    return [math.sqrt(s) for s in trunk._slab.sums(torch.stack(rows, dim=1)).tolist()]


def _errors(trunk: Trunk, found: list[Gradient]) -> list[float]:
    """Relative errors against the last: the larger one of weights and input."""
    *others, last = found
    differences = [
        Gradient([a - b for a, b in zip(g.weights, last.weights, strict=True)], g.inputs - last.inputs, *_infos(g))
        for g in others
    ]
    *weights, size = _norms(trunk, [*differences, last])
    inputs = [float(torch.linalg.vector_norm(d.inputs.double())) for d in differences]
    whole = float(torch.linalg.vector_norm(last.inputs.double()))
    return [max(_ratio(w, size), _ratio(y, whole)) for w, y in zip(weights, inputs, strict=True)]


def _cycles(g: Gradient) -> tuple[int, int]:
    return g.forward.cycles, g.adjoint.cycles


def _infos(g: Gradient) -> tuple[Info, Info]:
    return g.forward, g.adjoint


def _copied(g: Gradient) -> Gradient:
    """With memory of its own: the fields write their next gradient to the same place."""
    return Gradient([w.clone() for w in g.weights], g.inputs, *_infos(g))


def _ratio(part: float, whole: float) -> float:
    if not math.isfinite(part) or not math.isfinite(whole):
        return math.inf
    return part / whole if whole else (math.inf if part else 0.0)


def exact_of(options: SolverOptions) -> Serial:
    """The exact solver to be used in place of these options."""
    return options if isinstance(options, Serial) else Serial()


class Propagate(torch.autograd.Function):
    """y_N from y_0 and the local weights."""

    @staticmethod
    def forward(ctx: Any, trunk: Trunk, tracked: bool, y: Tensor, *theta: Tensor) -> Tensor:
        controller = trunk._controller if tracked and trunk.training and not trunk.exact else None
        step, schedule = Step(trunk, y), _schedule(trunk, controller)
        trunk._last = Trial(schedule, step.guess)
        out, solution = step.forward(schedule.forward, tracked)
        trunk.info.forward, trunk.info.control = solution.info, None
        ctx.step, ctx.solution, ctx.schedule, ctx.controller = step, solution, schedule, controller
        ctx.save_for_backward(*theta)
        return step.unpacked(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        theta = ctx.saved_tensors  # raises if weights were changed in place since the forward pass
        step = ctx.step
        step.z, step.wanted = step._packed(bar), any(ctx.needs_input_grad[3:])
        gradient = step.adjoint(ctx.solution, ctx.schedule.adjoint, step.wanted)
        step.trunk.info.adjoint = gradient.adjoint
        if ctx.controller is not None:
            gradient = _control(step, gradient, ctx.schedule, ctx.controller)
        grads: list[Tensor | None] = [None] * len(theta)
        if step.wanted:
            grads = [g if need else None for g, need in zip(gradient.weights, ctx.needs_input_grad[3:], strict=True)]
        return (None, None, step.unpacked(gradient.inputs), *grads)


def _schedule(trunk: Trunk, controller: Controller | None) -> Schedule:
    if trunk._again is not None and not trunk.exact:
        return trunk._again.schedule
    if controller is not None:
        return controller.begin()
    solvers = (trunk.forward_solver, trunk.adjoint_solver)
    ahead, back = (exact_of(s) if trunk.exact else s for s in solvers)
    return Schedule(ahead, back, trunk.exact)


def _control(step: Step, gradient: Gradient, schedule: Schedule, controller: Controller) -> Gradient:
    """The gradient to be used; a check is done here, or left to `controlled`."""
    trunk, check = step.trunk, step.trunk._again
    if isinstance(check, Trial):
        return gradient
    if check is not None:
        if not check.done:
            check.add(gradient)
        return gradient
    verdict = _judged(step, gradient, schedule, controller)
    if isinstance(verdict, Check) and trunk._deferred:
        trunk._again = verdict
        return gradient
    if isinstance(verdict, Check):
        gradient, verdict = _checked(step, verdict), verdict.report
    trunk.info.control = verdict
    return gradient


def controlled(trunks: Sequence[Trunk], closure: Callable[[], Tensor]) -> Tensor:
    """Loss and gradients of `closure` under the error control of the trunks; collective.

    A check inside a backward pass has to take the cotangent z_N as it is. Here the loss is evaluated again at each
    better y_N, so that the error of z_N is part of the estimate, which matters near a minimum, where z_N is small.

    Args:
        trunks: those in the network; each is called once by `closure`.
        closure: zeroes the gradients, evaluates the loss, calls ``backward``, returns the loss.

    Returns:
        The loss, with the gradients that belong to it: of the step's schedule, or the reference where it was checked.
    """
    for trunk in trunks:
        trunk._deferred = True
    try:
        loss = closure()
        while any(isinstance(trunk._again, Check) and not trunk._again.done for trunk in trunks):
            loss = closure()
        for trunk in trunks:
            if isinstance(trunk._again, Check):
                trunk.info.control = trunk._again.report
    finally:
        for trunk in trunks:
            trunk._deferred, trunk._again = False, None
    return loss


@contextmanager
def repeating(trunks: Sequence[Trunk]) -> Iterator[None]:
    """Inside, the trunks evaluate the same function of the weights as in their last call, and leave nothing behind.

    A line search needs that: solves that start from what they left last would be another function at each call.
    """
    for trunk in trunks:
        trunk._again = trunk._last
    try:
        yield
    finally:
        for trunk in trunks:
            trunk._again = None
