"""The cost model is the engine: real solves on ranks that are threads, timed by counted evaluations and messages."""

import dataclasses
import itertools
import math
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_ranks import UNEVEN, CountedComm, Observed, observed, timed_parts

from lpnet import MGRIT, InputError, Serial
from lpnet.clock import Run, simulate, view_of
from lpnet.cost import UNIT, Costs, Work, critical_path, serial_work, slab_unit
from lpnet.crew import Crew, ThreadComm
from lpnet.residuals import Info
from lpnet.steppers import AB3, RK4, Euler, Leapfrog, Stepper, Verlet

EULER, VERLET = Euler(), Verlet()


class Seen(NamedTuple):
    """What the clocks of the real solves show, and the solves' infos by rank."""

    work: Work
    ahead: list[Info]
    back: list[Info]


def observe(stepper: Stepper, layers: int, ranks: int, solvers: tuple[Any, Any], costs: Costs) -> Seen:
    """One training step of the real engine on so many ranks."""

    def rank(comm: ThreadComm) -> Observed:
        return observed(CountedComm(comm, costs, stepper.memory), stepper, layers, solvers)

    with timed_parts():
        found = Crew(ranks).run(rank)
    assert all(f.times == found[0].times for f in found)
    forward, adjoint, whole = found[0].times
    return Seen(Work(forward, adjoint, whole - adjoint), [f.ahead for f in found], [f.back for f in found])


@st.composite
def solver(draw: Any, stepper: Stepper) -> Any:
    """With options that the stepper can honour."""
    if draw(st.integers(0, 5)) == 0:
        return Serial(draw(st.sampled_from([1, 2, 4, 8])))
    initial = draw(st.sampled_from(["coarse", "coarse", "warm", "constant", "tau"]))
    ab3, matched = isinstance(stepper, AB3), draw(st.integers(0, 3)) > 0 or isinstance(stepper, AB3)
    return MGRIT(
        coarsening=(draw(st.integers(2, 6)), draw(st.integers(2, 4)), 2),
        levels=draw(st.integers(2, 4)),
        cycles=draw(st.integers(1 if initial == "constant" else 0, 3)),
        relaxation=draw(st.sampled_from(["F", "FCF"])),
        coarse="matched" if matched else "rediscretized",
        samples=draw(st.integers(1, 2)) if matched and not ab3 else 1,
        passes=draw(st.sampled_from([None, 1, 2, 3])) if matched and stepper == EULER else None,
        initial=initial,
        cycle_shape=draw(st.sampled_from(["V", "F"])),
        micro_batches=draw(st.sampled_from([1, 1, 2, 4])),
    )


@st.composite
def case(draw: Any) -> Any:
    stepper = draw(st.sampled_from([EULER, EULER, Verlet("zero"), VERLET, RK4(), AB3(), Leapfrog()]))
    solvers = tuple(draw(solver(stepper)) for _ in range(2))
    return stepper, draw(st.integers(1, 40)), draw(st.integers(1, 7)), solvers, draw(st.sampled_from([UNIT, UNEVEN]))


@settings(max_examples=150)
@given(case())
def test_predicted_is_observed(case: Any) -> None:
    """Times of both directions, and the evaluations of every rank."""
    stepper, layers, ranks, solvers, costs = case
    found = observe(stepper, layers, ranks, solvers, costs)
    predicted = critical_path(stepper, layers, ranks, *solvers, costs=costs)
    assert predicted == pytest.approx(tuple(found.work), rel=1e-12, abs=1e-12)
    for adjoint, options, infos in ((False, solvers[0], found.ahead), (True, solvers[1], found.back)):
        if infos[0].solver == "mgrit":
            run = Run(stepper, layers, ranks, slab_unit(layers, ranks, *solvers), adjoint, options, costs)
            shape = MGRIT(options.coarsening, options.levels)
            _, simulated = simulate(run, view_of(layers, ranks, run.unit, adjoint, shape))
            in_order = infos[::-1] if adjoint else infos
            assert [info.evaluations for info in simulated] == [info.evaluations for info in in_order]


@pytest.mark.parametrize("cycles", [0, 1, 3])
@pytest.mark.parametrize("ranks", [1, 2, 5])
@pytest.mark.parametrize("relaxation", ["F", "FCF"])
def test_a_tolerance_costs_a_sum_after_every_cycle(relaxation: Any, ranks: int, cycles: int) -> None:
    options = MGRIT(coarsening=3, levels=3, cycles=cycles, relaxation=relaxation, tol=1e-300)
    found = observe(EULER, 40, ranks, (options, options), UNEVEN)
    assert found.ahead[0].cycles == found.back[0].cycles == cycles
    assert critical_path(EULER, 40, ranks, options, options, UNEVEN) == pytest.approx(tuple(found.work), rel=1e-12)


@pytest.mark.parametrize(("N", "P", "m"), [(64, 4, 4), (256, 8, 16), (1024, 32, 32), (1024, 32, 16), (4096, 16, 32)])
@pytest.mark.parametrize("k", [0, 1, 2, 4])
def test_cycles_follow_one_another_through_the_ranks(N: int, P: int, m: int, k: int) -> None:
    """Two levels, F-relaxation: the first chain, k + 1 sweeps, and one slab's share of each further chain."""
    options, n, c = MGRIT(coarsening=m, cycles=k), N // P, 2
    work = critical_path(EULER, N, P, options, options)
    expected = c * N / m + (k + 1) * n + k * c * n / m
    assert work.forward == pytest.approx(expected, abs=2 * c)  # the last coarse step is not needed
    assert work.adjoint == pytest.approx(expected + c * n / m, abs=2 * c)  # linearised once
    assert work.gradient == n


@given(st.integers(1, 200), st.integers(1, 30), st.integers(2, 20), st.integers(0, 4), st.sampled_from([None, 1e-9]))
def test_no_more_than_every_sweep_after_every_chain(N: int, P: int, m: int, k: int, tol: float | None) -> None:
    """The bound (k + 1)(max(n, m) + c N/m), for uneven slabs as well; reached where each cycle ends with a sum."""
    options, c = MGRIT(coarsening=m, cycles=k, tol=tol), 2
    work = critical_path(EULER, N, P, options, options)
    if m >= N:
        assert work.forward == N
        return
    n = m * math.ceil(math.ceil(N / m) / P) if math.ceil(N / m) >= P else m + math.ceil(N / P)
    bound = (k + 1) * (n + c * math.ceil(N / m))
    assert work.forward <= bound
    if tol and N % (P * m) == 0:
        assert work.forward >= bound - (k + 1) * 2 * c - k * c * N / m


@pytest.mark.parametrize("N", [1, 7, 64, 100])
@pytest.mark.parametrize("P", [1, 2, 4, 10])
@pytest.mark.parametrize("Q", [1, 2, 8])
def test_the_exact_chain_is_a_pipeline(N: int, P: int, Q: int) -> None:
    costs, busy, longest = Costs(pull=2.0, gradient=3.0), min(N, P), math.ceil(N / P)
    work = critical_path(EULER, N, P, Serial(Q), Serial(Q), costs)
    if N % busy == 0:
        expected = (Q + busy - 1) / Q * N / busy
        assert work == pytest.approx((expected, 2 * expected, 3 * N / busy))  # only the last rank's gradients count
    assert N / Q + (Q - 1) / Q * longest >= work.forward - 1e-12
    assert work.adjoint + work.gradient >= 5 * longest - 1e-9  # what each rank has to do for its own layers
    whole = critical_path(EULER, N, P, Serial(), MGRIT(levels=1), costs)
    assert whole[:2] == serial_work(N, costs)[:2]
    assert whole == critical_path(EULER, N, P, Serial(), Serial(), costs)
    share = 0.25 + 0.75 / Q
    fixed = critical_path(EULER, N, P, Serial(Q), Serial(Q), Costs(pull=2.0, gradient=3.0, fixed=0.25))
    assert fixed == pytest.approx([share * Q * part for part in work])


def test_samples_at_once_cost_what_a_batch_costs() -> None:
    """s parts and p passes: depth p where a batch is free, s p where it gains nothing."""
    N, P, m = 256, 8, 16
    options = MGRIT(coarsening=m, cycles=0, samples=8, passes=3)
    found = {b: critical_path(EULER, N, P, options, options, Costs(batched=b)).forward for b in (0.0, 0.5, 1.0)}
    steps = N // m - 1
    assert found == {b: pytest.approx(N / P + steps * 3 * (1 + 7 * b), abs=1e-9) for b in found}
    verlet = MGRIT(coarsening=m, cycles=0, samples=2)
    half = 1 / 2  # the stages of a layer share its cost
    assert critical_path(Verlet("zero"), N, P, verlet, verlet).forward == N / P + steps * 6 * half


def test_more_ranks_are_not_slower_without_latency() -> None:
    options = MGRIT(coarsening=8, cycles=2)
    found = [critical_path(EULER, 512, P, options, options).total for P in (1, 2, 4, 8, 16, 32, 64)]
    assert all(a > b for a, b in itertools.pairwise(found))


@pytest.mark.parametrize(("key", "arguments"), [("layers", (0, 2)), ("ranks", (4, 0)), ("ranks", (4, True))])
def test_bad_numbers_are_refused(key: str, arguments: Any) -> None:
    with pytest.raises(InputError, match=rf"{key}: .* given, a whole number of at least 1 allowed"):
        critical_path(EULER, *arguments, Serial(), Serial())


@pytest.mark.parametrize("key", [field.name for field in dataclasses.fields(Costs)])
@pytest.mark.parametrize("given", [-1.0, math.inf, math.nan])
def test_bad_costs_are_refused(key: str, given: float) -> None:
    with pytest.raises(InputError, match=f"{key}: {given} given"):
        Costs(**{key: given})
    with pytest.raises(InputError, match="from 0 to 1"):
        Costs(fixed=1.5)


def test_options_that_the_stepper_refuses() -> None:
    with pytest.raises(InputError, match="passes"):
        critical_path(VERLET, 32, 2, MGRIT(passes=2), Serial())
