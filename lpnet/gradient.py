"""The trunk as one differentiable operation: a forward solve, an adjoint solve, and the check of their error.

Under error control (`lpnet.control`) a gradient may be found again, with more cycles or by the exact chain, from the
same weights, input and start; the best of these gradients is then the one that is used.
"""

import math
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from lpnet.ambient import TRANSFORMS, without_autocast
from lpnet.control import Controller, Report, Schedule, Signals, exact_of, exactly, reduction
from lpnet.controls import squares
from lpnet.engine import Solution
from lpnet.errors import InputError
from lpnet.residuals import Info, relative
from lpnet.step import Gradient, Step, Trial, Trunk


class Check:
    """Comparison of a step's gradient with those of the same step by more cycles, or by the exact chain.

    Args:
        step: whose gradient.
        first: by the schedule of the step.
        signals: residuals and norms of it.
        controller: decides what follows.
    """

    keeps = True

    def __init__(self, step: Step, first: Gradient, signals: Signals, controller: Controller) -> None:
        self.trunk, self.guess, self.controller = step.trunk, step.guess, controller
        self._signals, self._found = signals, [first]
        self.done, self.report = False, _report(math.inf, False, True, first)
        self.schedule, self._spent = controller.next_of_check(1, 0.0)

    def add(self, gradient: Gradient) -> None:
        """The gradient by `schedule`; collective."""
        self._found.append(gradient)
        errors, rate = _errors(self.trunk, self._found), math.inf
        exact = self.schedule.exact or gradient.forward.diverged
        others = self._found[: -1 if exact else None]
        if len(others) > 1:
            rate = reduction(others[-2].residuals, others[-1].residuals)
        self.done = exact or self.controller.enough(errors, rate)
        if self.done:
            self.controller.settle(errors, rate, exact, self._signals)
            self.report = _report(errors[0], exact, True, self._found[0])
        else:
            self.schedule, self._spent = self.controller.next_of_check(len(self._found), self._spent)


def _judged(step: Step, first: Gradient, schedule: Schedule, controller: Controller) -> Report | Check:
    """What control says of a gradient: a report, or a check that is to be done; collective."""
    if schedule.exact or first.forward.diverged:
        if first.forward.diverged and math.isfinite(_norms(step.trunk, [first])[0]):
            controller.diverged()
        return _report(0.0, True, False, first)
    # That of rank 0: the cotangent is replicated, and may differ in the last bits on mixed hardware.
    z = step.trunk._slab.comm.bcast_(torch.linalg.vector_norm(step.z.double()).cpu().reshape(1), 0).item()
    g = _norms(step.trunk, [first])[0] if first.weights else float(torch.linalg.vector_norm(first.inputs.double()))
    signals = Signals(*first.residuals, z, g)
    # Where the adjoint's cycles alone led nowhere, its residual says nothing of the states that it is exact for.
    estimate = math.inf if first.adjoint.diverged else controller.estimate(signals)
    if controller.wants_check(estimate):
        return Check(step, first, signals, controller)
    return _report(estimate, False, False, first)


def _checked(step: Step, check: Check) -> Gradient:
    """The last gradient of a check with the cotangent as it is."""
    while True:
        _, solution = step.forward(check.schedule.forward, True)
        gradient = step.adjoint(solution, check.schedule.adjoint, step.wanted)
        step.trunk.info.found(*_infos(gradient), check.schedule, first=False)
        check.add(gradient)
        if check.done:
            return gradient


def _norms(trunk: Trunk, found: list[Gradient]) -> list[float]:
    """Norms of the weight gradients of all layers, summed in layer order."""
    return squares(trunk.grid, [g.weights for g in found]).sqrt().tolist()


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
    return [max(relative(w, size), relative(y, whole)) for w, y in zip(weights, inputs, strict=True)]


def _report(error: float, exact: bool, checked: bool, first: Gradient) -> Report:
    ahead, back = _infos(first)
    return Report(error, exact, checked, (ahead.cycles, back.cycles), ahead.diverged or back.diverged)


def _infos(g: Gradient) -> tuple[Info, Info]:
    return g.forward, g.adjoint


class Solved(NamedTuple):
    """What a forward pass leaves for the backward pass."""

    step: Step
    solution: Solution
    schedule: Schedule
    controller: Controller | None


class _Kept:
    """Holds it for a node of the graph whose saved tensors were replaced by others.

    Autograd drops what a node has saved after its last backward pass. So a tensor without content is saved, which has
    what was solved as an attribute: it is given up as soon as can be. Hooks on saved tensors may put copies in their
    place, though, which have no such attribute; the tensor is gone then before any backward pass.
    """

    def __init__(self, solved: Solved) -> None:
        self.done = False
        self.solved: Solved | None = None
        self.token = torch.empty(0)
        self.token.solved = solved  # type: ignore[attr-defined]
        weakref.finalize(self.token, self._outlive, solved).atexit = False

    def _outlive(self, solved: Solved) -> None:
        if not self.done:
            self.solved = solved

    def hand_over(self) -> Tensor:
        """The tensor that is to be saved, to which nothing else refers."""
        token, self.token = self.token, torch.empty(0)
        return token

    def of(self, saved: Tensor) -> Solved:
        """What was solved, from the tensor that autograd gives back."""
        found: Solved | None = getattr(saved, "solved", self.solved)
        assert found is not None
        return found


def solved_of(output: Tensor) -> Solved:
    """What the forward pass of a trunk has kept for the backward pass of this output; it must not have been done."""
    node: Any = output.grad_fn
    found: Solved = node.kept.of(node.saved_tensors[-1])
    return found


class Propagate(torch.autograd.Function):
    """y_N from y_0 and the local weights."""

    @staticmethod
    @without_autocast
    def forward(ctx: Any, trunk: Trunk, tracked: bool, y: Tensor, *theta: Tensor) -> Tensor:
        controller = trunk._controller if tracked and trunk.training and not trunk.exact else None
        step, schedule = Step(trunk, y), _schedule(trunk, controller)
        leads = tracked and trunk.training and (trunk._again is None or trunk._again.keeps)
        if leads:
            trunk._last = Trial(schedule, step.guess)
        out, solution = step.forward(schedule.forward, tracked)
        if leads and solution.info.diverged:
            trunk._last = Trial(exactly(schedule), {})  # what a line search evaluates is what the gradient is of
        trunk.info.forward = solution.info
        ctx.kept = _Kept(Solved(step, solution, schedule, controller))
        ctx.save_for_backward(*theta, ctx.kept.hand_over())
        return step.unpacked(out).clone()  # the user may change it in place, and the tape may have the same memory

    @staticmethod
    def jvp(ctx: Any, *dots: Any) -> Any:
        raise InputError(TRANSFORMS)

    @staticmethod
    @once_differentiable
    @without_autocast
    def backward(ctx: Any, bar: Tensor) -> tuple[Tensor | None, ...]:
        *theta, token = ctx.saved_tensors  # raises if weights were changed in place since the forward pass
        step, solution, schedule, controller = ctx.kept.of(token)
        ctx.kept.done = True
        step.z, step.wanted = step._packed(bar), any(ctx.needs_input_grad[3:])
        gradient = step.adjoint(solution, schedule.adjoint, step.wanted)
        info, again = step.trunk.info, step.trunk._again
        info.adjoint = gradient.adjoint
        if again is None or again.keeps:  # a step, or a check of it, and no look at other weights
            info.found(*_infos(gradient), schedule, first=again is None)
        if controller is not None:
            gradient = _control(step, gradient, schedule, controller)
        grads: list[Tensor | None] = [None] * len(theta)
        if step.wanted:
            grads = [g if need else None for g, need in zip(gradient.weights, ctx.needs_input_grad[3:], strict=True)]
        return (None, None, step.unpacked(gradient.inputs), *grads)


def _schedule(trunk: Trunk, controller: Controller | None) -> Schedule:
    if controller is not None and trunk._calls_left is not None:
        trunk._calls_left -= 1
        if trunk._calls_left < 0:
            raise InputError("net: a trunk under error control called twice for one loss given, one call allowed")
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
    if check is not None:
        if isinstance(check, Check) and not check.done:
            check.add(gradient)
        return gradient
    verdict = _judged(step, gradient, schedule, controller)
    if isinstance(verdict, Check) and trunk._calls_left is not None:
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

    Raises:
        InputError: a trunk under error control is called more than once.
    """
    def evaluated() -> Tensor:
        for trunk in trunks:
            trunk._calls_left = 1
        return closure()

    try:
        drawn = random_state()
        loss = evaluated()
        for trunk in trunks:
            trunk._again = trunk._again or trunk._last
        while any(isinstance(trunk._again, Check) and not trunk._again.done for trunk in trunks):
            set_random_state(drawn)  # dropout beside the trunks draws the same masks again
            loss = evaluated()
        for trunk in trunks:
            if isinstance(trunk._again, Check):
                trunk.info.control = trunk._again.report
    finally:
        for trunk in trunks:
            trunk._calls_left, trunk._again = None, None
    return loss


RandomState = tuple[Tensor, list[Tensor]]


def random_state() -> RandomState:
    """State of torch's generators, on the host and on all GPUs in use."""
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def set_random_state(state: RandomState) -> None:
    """Back to an earlier state of torch's generators."""
    torch.set_rng_state(state[0])
    if state[1]:
        torch.cuda.set_rng_state_all(state[1])


@contextmanager
def repeating(trunks: Sequence[Trunk]) -> Iterator[None]:
    """Inside, the trunks evaluate the same function of the weights as in their last step, and leave nothing behind.

    A line search needs that: solves that start from what they left last would be another function at each call.
    """
    for trunk in trunks:
        trunk._again = trunk._last
    try:
        yield
    finally:
        for trunk in trunks:
            trunk._again = None
