"""Laws of the control of the gradient error, in a world of numbers: k cycles leave the relative error e ρ^k."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lpnet import MGRIT, Adaptive, InputError, LayerParallel, Serial, cost
from lpnet.control import Controller, Schedule, Signals, reduction
from lpnet.dynamics import Dense
from lpnet.steppers import Euler, Verlet

SOLVER = MGRIT(coarsening=16, cycles=1)
TAU = MGRIT(coarsening=16, cycles=0, initial="tau")
Errors = Callable[[int, int], float]
"""(step, cycles) -> relative error of the gradient."""


@dataclass
class Done:
    """One step: the schedule, the error of its gradient, what control thought of that before and after a check."""

    schedule: Schedule
    error: float
    estimate: float
    checks: Sequence[Schedule]
    measured: float | None = None

    @property
    def exact(self) -> bool:
        return self.schedule.exact

    @property
    def cycles(self) -> int:
        assert isinstance(self.schedule.forward, MGRIT)
        return self.schedule.forward.cycles


def cycles_of(schedule: Schedule) -> float:
    return schedule.forward.cycles if isinstance(schedule.forward, MGRIT) else math.inf


def controller(layers: int = 1024, solver: Any = SOLVER, **more: Any) -> Controller:
    return Controller(Adaptive(**more), Euler(), layers, solver, solver)


def drive(control: Controller, errors: Errors, steps: int) -> list[Done]:
    """Steps as a trunk takes them; the residual is the error, in a world where |z_N| = |g| = 1."""
    found = []
    for step in range(steps):
        schedule = control.begin()
        if schedule.exact:
            found.append(Done(schedule, 0.0, 0.0, []))
            continue
        all_errors = [errors(step, int(cycles_of(schedule)))]
        signals = Signals(all_errors[0], all_errors[0], 1.0, 1.0)
        estimate, checks, measured = control.estimate(signals), [], None
        if control.wants_check(estimate):
            while measured is None:
                measured = _once_more(control, errors, step, all_errors, checks, signals)
        found.append(Done(schedule, all_errors[0], estimate, checks, measured))
    return found


def _once_more(
    control: Controller, errors: Errors, step: int, found: list[float], checks: list[Schedule], signals: Signals
) -> float | None:
    """One better gradient; the measured error of the first, or None where another one is needed."""
    schedule = control.schedule(len(found))
    checks.append(schedule)
    if schedule.exact:
        control.settle(list(found), reduction(found[-2:-1], found[-1:]) if found[1:] else math.inf, True, signals)
        return found[0]
    found.append(errors(step, int(cycles_of(schedule))))
    against = [abs(e - found[-1]) if math.isfinite(e - found[-1]) else math.inf for e in found[:-1]]
    rate = reduction(found[-2:-1], found[-1:])
    if not control.enough(against, rate):
        return None
    control.settle(against, rate, False, signals)
    return against[0]


def steady(e: float, rho: float) -> Errors:
    return lambda step, cycles: e * rho**cycles


worlds = st.tuples(st.floats(1e-6, 10.0), st.floats(1e-3, 0.95))
wishes = st.fixed_dictionaries(
    {
        "gradient_tol": st.sampled_from([0.5, 0.05, 1e-3]),
        "every": st.integers(1, 9),
        "plan_ranks": st.sampled_from([1, 4, 16, 64]),
    }
)


@settings(max_examples=40)
@given(worlds, wishes, st.sampled_from([SOLVER, TAU, MGRIT(coarsening=8, cycles=3)]))
def test_no_step_is_worse_than_the_tolerance(world: Any, options: dict[str, Any], solver: MGRIT) -> None:
    """Of those whose own gradient is used; and the exact chain is taken where cycles cost more."""
    control = controller(256, solver, **options)
    most = cost.critical_path(Euler(), 256, options["plan_ranks"], Serial(), Serial()).total
    for done in drive(control, steady(*world), 60):
        if not done.exact and not done.checks:
            assert done.error <= options["gradient_tol"] * (1 + 1e-9)
            assert done.estimate == pytest.approx(done.error, rel=0.5)
        for schedule in (done.schedule, *done.checks):
            cycles = schedule.forward, schedule.adjoint
            price = cost.critical_path(Euler(), 256, options["plan_ranks"], *cycles).total
            assert schedule.exact == (schedule.forward == Serial())
            assert schedule.exact or price < most


@pytest.mark.parametrize("e", [0.01, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("rho", [0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
def test_what_a_check_measures_is_true(e: float, rho: float) -> None:
    """However slowly cycles converge: within a factor of 3, and never below a tenth."""
    checks = [d for d in drive(controller(512, every=3), steady(e, rho), 40) if d.measured is not None]
    assert checks
    for done in checks:
        assert done.measured is not None
        assert done.error / 3 <= done.measured <= 3 * done.error


@settings(max_examples=40)
@given(worlds, wishes)
def test_it_settles_on_the_fewest_cycles_that_do(world: Any, options: dict[str, Any]) -> None:
    """In a steady world within a few checks, or on the exact chain where the price is higher."""
    options = options | {"plan_ranks": 32}
    control, errors, tol = controller(512, **options), steady(*world), options["gradient_tol"]
    last = drive(control, errors, 40 * options["every"] + 40)[-1]
    if last.exact:
        affordable = max(k for k in range(31) if not control_schedule(options, k).exact)
        assert errors(0, affordable) > tol / 4
        return
    assert errors(0, last.cycles) <= tol
    assert not last.cycles or errors(0, last.cycles - 1) > tol / 8


def control_schedule(options: dict[str, Any], cycles: int) -> Schedule:
    return controller(512, SOLVER.with_cycles(cycles), **options).schedule()


def test_it_goes_up_and_down_with_the_error() -> None:
    """Up in the step in which the estimate is above the tolerance, down one by one, with a check each."""
    errors = lambda step, k: (1.0 if 20 <= step < 60 else 1e-3) * 0.1**k  # noqa: E731
    done = drive(controller(1024, every=10, gradient_tol=0.05), errors, 100)
    assert done[19].cycles == 0
    assert done[20].cycles == 0
    assert done[20].checks  # at once, although none was due
    assert all(d.cycles == 2 for d in done[21:60])
    assert done[99].cycles == 0
    falls = [i for i in range(60, 100) if done[i].cycles < done[i - 1].cycles]
    assert len(falls) == 2
    assert all(done[i].checks for i in falls)


def test_the_cycles_of_both_directions_move_together() -> None:
    """Down to none, whatever the other has."""
    forward, adjoint = MGRIT(coarsening=16, cycles=3), MGRIT(coarsening=16, cycles=1, initial="constant")
    control = Controller(Adaptive(every=1), Euler(), 1024, forward, adjoint)
    found = [(cycles_of(d.schedule), d.schedule.adjoint.cycles) for d in drive(control, steady(1e-6, 0.1), 20)]
    assert found[0] == (3, 1)
    assert found[-1] == (0, 1)
    assert all(a >= 0 and b == 1 for a, b in found)


def test_checks_come_every_so_many_steps() -> None:
    done = drive(controller(1024, every=7, gradient_tol=0.05), steady(0.2, 0.1), 100)
    checked = [i for i, d in enumerate(done) if d.checks]
    assert checked[0] == 0
    assert {b - a for a, b in pairwise(checked[1:])} == {7}


# ---- the exact chain -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("errors", [lambda k: 1.05**k, lambda k: math.inf, lambda k: math.nan])
@pytest.mark.parametrize("solver", [SOLVER, TAU])
def test_hopeless_cycles_give_way_to_the_exact_chain(solver: MGRIT, errors: Callable[[int], float]) -> None:
    """For `every` steps, then twice as many, up to eight times; between lies one check, two where starts may be old."""
    every = 5
    done = drive(controller(256, solver, every=every), lambda step, k: errors(k), 400)
    runs, tries = lengths([d.exact for d in done])
    expected = [every, 2 * every, 4 * every, 8 * every, 8 * every]
    assert runs[:5] == expected
    assert set(tries) == {2 if solver is TAU else 1}
    assert all(d.checks and d.checks[-1].exact for d in done if not d.exact)


def lengths(flags: Sequence[bool]) -> tuple[list[int], list[int]]:
    """Lengths of the runs of True, and of those of False between them."""
    runs: dict[bool, list[int]] = {True: [], False: []}
    before = None
    for flag in flags:
        if flag != before:
            runs[flag].append(0)
        runs[flag][-1] += 1
        before = flag
    return runs[True], runs[False]


def test_it_comes_back_and_forgets_the_failures() -> None:
    """After a success the next stay with the exact chain is as short as the first."""
    every = 5
    errors = lambda step, k: 1e-3 if 80 <= step < 250 else 1.05**k  # noqa: E731
    done = drive(controller(256, every=every), errors, 350)
    runs, tries = lengths([d.exact for d in done])
    assert any(n > 50 for n in tries)
    again = next(i for i in range(250, 350) if done[i].exact)
    assert again <= 252
    after = lengths([d.exact for d in done[again:]])[0]
    assert after[:3] == [every, 2 * every, 4 * every]
    assert runs[:3] == [every, 2 * every, 4 * every]


@pytest.mark.parametrize(("layers", "ranks"), [(64, 1), (256, 1), (1024, 1)])
def test_where_the_exact_chain_is_cheaper_nothing_else_is_done(layers: int, ranks: int) -> None:
    control = controller(layers, MGRIT(coarsening=16, cycles=2), plan_ranks=ranks)
    assert all(d.exact and not d.checks for d in drive(control, steady(1.0, 0.1), 300))


def test_a_serial_solver_stays_as_it_is() -> None:
    control = Controller(Adaptive(), Euler(), 256, Serial(3), Serial(2))
    schedule = control.begin()
    assert (schedule.forward, schedule.adjoint, schedule.exact) == (Serial(3), Serial(2), True)
    mixed = Controller(Adaptive(), Euler(), 1024, SOLVER, Serial())
    done = drive(mixed, steady(1.0, 0.5), 30)
    assert all(d.schedule.adjoint == Serial() for d in done)
    assert any(not d.exact and d.cycles > 1 for d in done)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 3, 10])
def test_a_step_that_is_not_finite_is_checked(bad: float, at: int) -> None:
    """And the exact chain taken in its place, in the same step."""
    errors = lambda step, k: bad if step >= at else 1e-3  # noqa: E731
    done = drive(controller(256, every=50), errors, 40)
    assert done[at].checks[-1].exact
    assert all(d.exact or d.checks for d in done[at:])
    assert sum(d.exact for d in done[at:]) >= 20


# ---- what it depends on ----------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(worlds, wishes)
def test_the_same_numbers_the_same_decisions(world: Any, options: dict[str, Any]) -> None:
    first, second = (drive(controller(256, TAU, **options), steady(*world), 40) for _ in range(2))
    assert first == second


@pytest.mark.parametrize("stepper", [Euler(), Verlet()])
def test_more_planned_ranks_pay_for_more_cycles(stepper: Any) -> None:
    """As long as an interval is not on several ranks: then only the exact chain gains, whose gradients are spread.

    There are 8 intervals. With 32 ranks Verlet pays for one cycle fewer than with 16, but still for more than with 4.
    """
    most = {}
    for ranks in (1, 2, 4, 8, 16, 32):
        control = Controller(Adaptive(plan_ranks=ranks), stepper, 128, SOLVER, SOLVER)
        most[ranks] = sum(not control.schedule(more).exact for more in range(-1, 10))
    up_to_16 = [most[ranks] for ranks in (1, 2, 4, 8, 16)]
    assert up_to_16 == sorted(up_to_16)
    assert most[16] > most[1]
    assert most[4] < most[32] <= most[16] <= most[32] + 1


def test_the_estimate_grows_as_the_gradient_shrinks() -> None:
    """The same residuals and cotangent are a larger error of a smaller gradient."""
    control = controller(1024)
    assert control.estimate(Signals(1e-3, 1e-3, 1.0, 1.0)) == math.inf  # nothing is known yet
    control.begin()
    control.settle([0.01], 0.1, True, Signals(1e-3, 1e-3, 1.0, 1.0))
    assert control.estimate(Signals(1e-3, 1e-3, 1.0, 1.0)) == pytest.approx(0.01)
    assert control.estimate(Signals(1e-3, 3e-3, 2.0, 0.5)) == pytest.approx(0.08)
    assert control.estimate(Signals(1e-3, 1e-3, 1.0, 0.0)) == math.inf
    assert not control.estimate(Signals(math.nan, 1e-3, 1.0, 1.0)) <= 1.0


def test_nothing_left_to_reduce_is_no_error() -> None:
    """Residuals of zero (few intervals, exact solves): the estimate is zero, and no check is wanted before its time."""
    control = controller(1024, every=10)
    done = drive(control, steady(0.0, 0.1), 100)
    assert sum(bool(d.checks) for d in done) <= 14
    assert not any(d.exact for d in done)


@pytest.mark.parametrize(
    ("key", "value"),
    [("gradient_tol", v) for v in (0, 1, 2, -0.1, math.nan, math.inf, "x", None, True)]
    + [(key, v) for key in ("every", "plan_ranks") for v in (0, -1, 1.5, "x", None, True)],
)
def test_bad_options(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{key}: .* given, .* allowed$"):
        Adaptive(**{key: value})


def test_control_that_is_none() -> None:
    with pytest.raises(InputError, match=r"^control: 0\.05 given, .* allowed$"):
        LayerParallel(Dense(3), 8, 1.0, control=0.05)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [([1.0, 2.0], [0.1, 0.4], 0.2), ([0.0, 1.0], [0.0, 0.5], 0.5), ([1.0], [math.nan], math.inf)],
)
def test_reduction(before: list[float], after: list[float], expected: float) -> None:
    assert reduction(before, after) == pytest.approx(expected)
