"""Error control: how many cycles the solves of a training step do, and when the exact chain is the better choice.

The gradient error is that of the gradient by so many cycles against a *reference*, the gradient by more cycles, or the
exact one. A check solves with one cycle more, and again, until the last change is small against all changes together
and what is left is within 0.4 of the tolerance; where all its solves together would cost more than the exact chain on
`plan_ranks` ranks, by the cost model, the exact chain is the reference. So a check costs at most twice the exact chain,
and no estimate rests on a convergence factor alone. Between checks the error is taken proportional to the residuals,

    e  ≈  C |z_N| (r_forward + r_adjoint) / |g|,       C from the last check

since an error of the states moves the gradient by an amount that does not shrink with the gradient: near a minimum the
same residual is a larger error. Nor is it taken to be below the residuals themselves. An estimate above 0.6 of the
tolerance calls for a check in the same step, and so do residuals far above those of the last check.

Nothing here depends on the number of ranks or on timings.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lpnet import cost
from lpnet.errors import InputError
from lpnet.options import MGRIT, Serial, SolverOptions
from lpnet.steppers import Stepper

_MOST_CYCLES = 30  # beyond which nobody waits for convergence
_FAR = 10.0  # times the residual of the last check ...
_FEW = 0.1  # ... and more than this share of the aim: grounds for a new check
_SOON = 5  # a check after a rise follows so many times sooner than others
_LONGEST = 8  # times `every`: the longest stay with the exact chain
_AIM = 0.4  # share of the tolerance that a schedule may use up at a check
_ALARM = 0.6  # share of the tolerance beyond which an estimate calls for a check
_UNKNOWN_GAIN = 0.1  # of a cycle that nobody has measured
_SETTLED = 0.3  # last change over all changes together, below which a reference is one


@dataclass(frozen=True)
class Adaptive:
    """Control of the gradient error, as ``control`` of `lpnet.LayerParallel` and `lpnet.OneShot`.

    Args:
        gradient_tol: largest relative error of the gradient (of all weights together, and of the input), in (0, 1).
        every: steps between two checks.
        plan_ranks: number of ranks for which the exact chain is weighed against cycles; the same decisions are then
            taken on any number of ranks.

    Raises:
        InputError: a value outside of what is allowed.
    """

    gradient_tol: float = 0.05
    every: int = 50
    plan_ranks: int = 32

    def __post_init__(self) -> None:
        tol = self.gradient_tol
        if isinstance(tol, bool) or not isinstance(tol, int | float) or not 0 < tol < 1:
            raise InputError(f"gradient_tol: {tol!r} given, a number above 0 and below 1 allowed")
        for key in ("every", "plan_ranks"):
            given = getattr(self, key)
            if isinstance(given, bool) or not isinstance(given, int) or given < 1:
                raise InputError(f"{key}: {given!r} given, a whole number of at least 1 allowed")


@dataclass(frozen=True)
class Schedule:
    """What the solves of one step do; `exact`: both by the exact chain."""

    forward: SolverOptions
    adjoint: SolverOptions
    exact: bool


@dataclass(frozen=True)
class Report:
    """What control knows of a step.

    Attributes:
        gradient_error: estimated relative error of the gradient that the step's schedule gives; 0 for the exact chain.
        exact: the gradient that was used is that of the exact chain.
        checked: it was compared with a reference, which was then used in its place.
        cycles: cycles of the step's schedule, forward and adjoint.
        diverged: those of one of the two led nowhere, and the exact chain was done in their place.
    """

    gradient_error: float
    exact: bool
    checked: bool
    cycles: tuple[int, int] = (0, 0)
    diverged: bool = False


@dataclass(frozen=True)
class Signals:
    """Residuals of the two solves of a step, norm of the cotangent z_N, norm of the gradient (of weights, or input)."""

    forward: float
    adjoint: float
    z: float
    g: float

    @property
    def size(self) -> float:
        """What the gradient error is proportional to."""
        if not self.g:
            return math.inf if self.z * (self.forward + self.adjoint) else 0.0
        return self.z * (self.forward + self.adjoint) / self.g


_LEARNT = ("_offset", "_steps", "_next_check", "_left", "_stay", "_scale", "_seen", "_failed")


class Controller:
    """Decides for one trunk, step after step.

    Args:
        adaptive: what is wanted.
        stepper: for the cost model.
        layers: N.
        forward, adjoint: solvers to start with; their cycles are raised and lowered together.
    """

    def __init__(
        self, adaptive: Adaptive, stepper: Stepper, layers: int, forward: SolverOptions, adjoint: SolverOptions
    ) -> None:
        self.adaptive, self.stepper, self.layers = adaptive, stepper, layers
        self.solvers = (forward, adjoint)
        self._serial = Schedule(exact_of(forward), exact_of(adjoint), True)
        self._offset = 0  # cycles beyond those of the solvers
        self._least = min(0, -max((s.cycles for s in self.solvers if isinstance(s, MGRIT)), default=0))
        self._steps, self._next_check = 0, 1
        self._left, self._stay = 0, adaptive.every  # steps still to be done by the exact chain, and next time
        self._scale: float | None = None
        self._seen = (0.0, 0.0)  # residuals at the last check
        self._failed = 0

    def state(self) -> dict[str, Any]:
        """What it has learnt, as values of JSON (and numbers that are not finite)."""
        return {key.lstrip("_"): getattr(self, key) for key in _LEARNT} | {"seen": list(self._seen)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what one with the same options has learnt."""
        for key in _LEARNT:
            setattr(self, key, state[key.lstrip("_")])
        self._seen = (state["seen"][0], state["seen"][1])

    def next_of_check(self, more: int, spent: float) -> tuple[Schedule, float]:
        """What a check solves by next, with so many cycles more, and what it has then spent of what it may.

        The exact chain as soon as all solves together would cost more.
        """
        found = self.schedule(more)
        spent += self._cost(found)
        return (found, spent) if spent <= self._cost(self._serial) else (self._serial, spent)

    def schedule(self, more: int = 0) -> Schedule:
        """That of this step with so many more cycles; the exact chain where this would be cheaper."""
        offset = self._offset + more
        forward, adjoint = (_cycles(s, offset) for s in self.solvers)
        found = Schedule(forward, adjoint, False)
        if found.forward == self._serial.forward and found.adjoint == self._serial.adjoint:
            return self._serial
        return found if offset <= _MOST_CYCLES and self._cost(found) < self._cost(self._serial) else self._serial

    def _cost(self, schedule: Schedule) -> float:
        ranks = self.adaptive.plan_ranks
        return cost.critical_path(self.stepper, self.layers, ranks, schedule.forward, schedule.adjoint).total

    def begin(self) -> Schedule:
        """The schedule of the next step."""
        self._steps += 1
        if self._left:
            self._left -= 1
            if not self._left:
                self._next_check = self._steps + 1
            return self._serial
        while self._offset > self._least and self.schedule().exact:
            self._offset -= 1
        return self.schedule()

    def estimate(self, signals: Signals) -> float:
        """Estimated gradient error of a step; not finite where nothing is known."""
        if not signals.size:
            return 0.0
        if self._scale is None or self._is_new(signals):
            return math.inf
        return max(self._scale * signals.size, signals.forward, signals.adjoint)

    def _is_new(self, signals: Signals) -> bool:
        """Whether a residual has grown too far beyond that of the last check for C still to hold."""
        pairs = zip((signals.forward, signals.adjoint), self._seen, strict=True)
        return any(new > max(_FAR * seen, _FEW * self._target) for new, seen in pairs)

    def wants_check(self, estimate: float) -> bool:
        """Whether the step is to be compared with a reference."""
        return self._steps >= self._next_check or not estimate <= _ALARM * self.adaptive.gradient_tol

    def enough(self, errors: Sequence[float], rate: float) -> bool:
        """Whether the last gradient of a check is a reference.

        Args:
            errors: of the gradients before, against the last.
            rate: largest ratio of the residuals of the last two.
        """
        settled = errors[-1] <= _SETTLED * errors[0] if len(errors) > 1 else rate <= _SETTLED
        return settled and self._left_over(errors, rate) <= min(self._target, _SETTLED * errors[0])

    def _left_over(self, errors: Sequence[float], rate: float) -> float:
        """Error that the last gradient of a check is likely to have: the rest of a geometric series."""
        if len(errors) > 1 and errors[0] > 0:
            rate = max(rate, errors[-1] / errors[-2]) if errors[-2] > 0 else rate
        return errors[-1] * rate / (1 - rate) if rate < 1 else math.inf

    @property
    def _target(self) -> float:
        return _AIM * self.adaptive.gradient_tol

    def settle(self, errors: Sequence[float], rate: float, exact: bool, signals: Signals) -> None:
        """Decide how to go on after a check.

        Args:
            errors: of the gradients by the step's schedule, by one cycle more, …, against the reference.
            rate: largest ratio of the residuals of the last two gradients by cycles.
            exact: the reference is that of the exact chain.
            signals: of the step's schedule.
        """
        adaptive = self.adaptive
        self._scale = errors[0] / signals.size if 0 < signals.size < math.inf else None
        self._seen = (signals.forward, signals.adjoint)
        self._next_check = self._steps + adaptive.every
        known = [*errors] if exact else [*errors, self._left_over(errors, rate)]
        good = next((i for i, e in enumerate(known) if e <= self._target), None)
        if good is None:
            self._fail()
            return
        self._failed, self._stay = 0, adaptive.every
        self._offset += good
        if good:  # counted from what the solves of this step started from, which is better the next time
            self._next_check = self._steps + max(1, adaptive.every // _SOON)
        gain = known[1] / known[0] if len(known) > 1 and known[0] > 0 else min(rate, _UNKNOWN_GAIN)
        if not good and self._offset > self._least and known[0] <= self._target * min(1.0, gain) / 2:
            self._offset -= 1
            self._next_check = self._steps + 1

    def diverged(self) -> None:
        """The cycles of a step led nowhere, and the exact chain was done in their place: a check that has failed."""
        self.settle([math.inf], math.inf, True, Signals(math.inf, math.inf, 1.0, 1.0))

    def _fail(self) -> None:
        """Cycles do not reach the tolerance at the price of the exact chain: stay with that for a while.

        A start from an earlier solve gets a second chance, since the check has just renewed what it starts from.
        """
        self._failed += 1
        self._next_check = self._steps + 1
        again = any(isinstance(s, MGRIT) and s.initial in ("tau", "warm") for s in self.solvers)
        if self._failed < 2 and again:
            return
        self._failed = 0
        self._left, self._stay = self._stay, min(2 * self._stay, _LONGEST * self.adaptive.every)


def exactly(schedule: Schedule) -> Schedule:
    """By the exact chain what this schedule does."""
    return Schedule(exact_of(schedule.forward), exact_of(schedule.adjoint), True)


def exact_of(options: SolverOptions) -> Serial:
    """The exact solver to be used in place of these options."""
    return options if isinstance(options, Serial) else Serial()


def _cycles(options: SolverOptions, more: int) -> SolverOptions:
    """The same solver with so many more cycles (or fewer, down to what it allows)."""
    if isinstance(options, Serial):
        return options
    return options.with_cycles(max(options.least_cycles, options.cycles + more))


def reduction(before: Sequence[float], after: Sequence[float]) -> float:
    """Largest ratio of last residuals; 0 where nothing was left to reduce."""
    ratios = [b / a if a else 0.0 for a, b in zip(before, after, strict=True)]
    return max(ratios) if all(map(math.isfinite, ratios)) else math.inf

