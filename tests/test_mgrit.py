"""MGRIT on maps that have nothing to do with networks, against textbook Parareal and a textbook FAS cycle."""

import math
from collections import Counter
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from reference import Hierarchy, coarse_start, error, f_relax, fas_cycle, normal, parareal
from torch import Tensor

from lpnet import MGRIT
from lpnet.coarse_grid import one_by_one
from lpnet.hierarchy import bounds, build
from lpnet.mgrit import FinePropagator, Solver
from lpnet.residuals import Info
from lpnet.slab import Comm

WIDTH = 3


class Problem(NamedTuple):
    """u_{i+1} = u_i + h tanh(K_i u_i + b_i); on coarser levels with the mean of K and b over the longer step."""

    K: Tensor
    b: Tensor
    h: float

    def step(self, a: int, b: int, u: Tensor) -> Tensor:
        return u + (b - a) * self.h * torch.tanh(self.K[a:b].mean(0) @ u + self.b[a:b].mean(0))


def problem(N: int, T: float = 4.0) -> Problem:
    """Weights that are neither constant nor smooth in the step."""
    return Problem(0.8 * normal(N, WIDTH, WIDTH) + 0.4 * normal(WIDTH, WIDTH, seed=1), normal(N, WIDTH, seed=2), T / N)


class Fine(FinePropagator):
    """Exact propagation that counts."""

    def __init__(self, p: Problem) -> None:
        self.p, self.sweeps, self.calls = p, 0, Counter[int]()
        self.lasts: list[bool] = []

    def sweep(self, last: bool) -> None:
        self.sweeps += 1
        self.lasts.append(last)

    def run(self, i0: int, i1: int, u: Tensor) -> Tensor:
        for i in range(i0, i1):
            self.calls[i] += 1
            u = self.p.step(i, i + 1, u)
        return u


class Run(NamedTuple):
    """A finished solve with its counts."""

    end: Tensor
    c: list[Tensor]
    info: Info
    fine: Fine
    coarse: list[Counter[int]]


def solve(p: Problem, options: MGRIT, guess: list[Tensor] | None = None) -> Run:
    N = len(p.K)
    found = bounds(N, options)
    fine, counts = Fine(p), [Counter[int]() for _ in found[1:]]

    def counted(bound: tuple[int, ...], count: Counter[int]) -> Any:
        def step(k: int, u: Tensor) -> Tensor:
            count[k] += 1
            return p.step(bound[k], bound[k + 1], u)

        return one_by_one(step)

    steps = [counted(bound, count) for bound, count in zip(found[1:], counts, strict=True)]
    solver = Solver(options, build(found, (0, N), [0], 0), fine, steps, Comm())
    end = solver.solve(start(), guess, lambda rows: rows.sum(axis=0))
    assert end is not None
    return Run(end, solver.c, solver.info, fine, counts)


def start() -> Tensor:
    return normal(WIDTH, seed=3)


def exact(p: Problem) -> list[Tensor]:
    """x_0, …, x_N."""
    states = [start()]
    for i in range(len(p.K)):
        states.append(p.step(i, i + 1, states[i]))
    return states


def hierarchy(p: Problem, options: MGRIT) -> Hierarchy:
    found = bounds(len(p.K), options)
    steps = [lambda k, u, b=bound: p.step(b[k], b[k + 1], u) for bound in found]
    return Hierarchy(steps, [len(b) - 1 for b in found], [options.factor(i) for i in range(len(found) - 1)])


def intervals(p: Problem, m: int) -> tuple[Any, Any, int]:
    """F and G over the intervals, and how many there are."""
    N = len(p.K)

    def F(k: int, u: Tensor) -> Tensor:
        for i in range(k * m, min(N, (k + 1) * m)):
            u = p.step(i, i + 1, u)
        return u

    return F, lambda k, u: p.step(k * m, min(N, (k + 1) * m), u), math.ceil(N / m)


SHAPES = [
    MGRIT(coarsening=m, levels=levels, relaxation=relaxation, cycle_shape=shape)
    for m, levels in ((4, 2), (3, 3), ((4, 2, 2), 4))
    for relaxation in ("F", "FCF")
    for shape in ("V", "F")
]
each_shape = pytest.mark.parametrize("options", SHAPES, ids=lambda o: f"{o.levels}-{o.relaxation}-{o.cycle_shape}")


def with_cycles(options: MGRIT, cycles: int, **more: Any) -> MGRIT:
    return MGRIT(**{**options.__dict__, "cycles": cycles, **more})


@each_shape
def test_the_serial_solution_is_a_fixed_point(options: MGRIT) -> None:
    p = problem(38)
    states = exact(p)
    m = options.factor(0)
    found = solve(p, with_cycles(options, 3), states[:38:m])
    assert len(found.info.residuals) == 4
    assert max(found.info.residuals) < 1e-14
    assert error(found.end, states[-1]) < 1e-14


@pytest.mark.parametrize("relaxation", ["F", "FCF"])
@pytest.mark.parametrize(("N", "m"), [(24, 4), (23, 4), (13, 2), (9, 8), (10, 5)])
def test_two_levels_are_parareal_cycle_by_cycle(N: int, m: int, relaxation: Any) -> None:
    p = problem(N)
    F, G, n = intervals(p, m)
    expected = parareal(F, G, start(), n, n + 1, relaxation == "FCF")
    for k, iterate in enumerate(expected):
        found = solve(p, MGRIT(coarsening=m, cycles=k, relaxation=relaxation))
        assert len(found.c) == n
        assert max(error(a, b) for a, b in zip(found.c, iterate.c, strict=True)) < 1e-13
        assert error(found.end, iterate.end) < 1e-13
        assert found.info.residuals == pytest.approx([it.residual for it in expected[: k + 1]], rel=1e-6, abs=1e-14)


@pytest.mark.parametrize("relaxation", ["F", "FCF"])
@pytest.mark.parametrize(("N", "m"), [(24, 4), (23, 4), (13, 2), (10, 5)])
def test_exact_after_as_many_cycles_as_intervals(N: int, m: int, relaxation: Any) -> None:
    """The end is one cycle ahead; with FCF-relaxation half as many; and not one cycle earlier."""
    p, n = problem(N), math.ceil(N / m)
    states = exact(p)
    needed = math.ceil((n - 1) / (2 if relaxation == "FCF" else 1))
    for cycles in (needed, n):
        found = solve(p, MGRIT(coarsening=m, cycles=cycles, relaxation=relaxation))
        assert error(found.end, states[-1]) < 1e-14
        assert max(error(c, states[i * m]) for i, c in enumerate(found.c)) < 1e-14
    before = solve(p, MGRIT(coarsening=m, cycles=needed - 1, relaxation=relaxation))
    assert max(error(c, states[i * m]) for i, c in enumerate(before.c)) > 1e-12


@each_shape
@pytest.mark.parametrize("N", [38, 31])
def test_any_levels_are_textbook_fas_cycle_by_cycle(options: MGRIT, N: int) -> None:
    p = problem(N)
    H, m = hierarchy(p, options), options.factor(0)
    assert len(H.steps) == options.levels
    g = [start()] + [torch.zeros(WIDTH, dtype=torch.float64)] * (N - 1)
    c = coarse_start(H, 1, start(), options.relaxation)
    u = f_relax(H.steps[0], m, [c[i // m] for i in range(N)], g)
    for cycles in range(4):
        if cycles:
            u = fas_cycle(H, 0, u, g, (options.relaxation, options.cycle_shape))
        found = solve(p, with_cycles(options, cycles))
        assert max(error(a, b) for a, b in zip(found.c, u[::m], strict=True)) < 1e-12
        assert error(found.end, H.steps[0](N - 1, u[-1])) < 1e-12


@given(
    N=st.integers(1, 40),
    factors=st.tuples(st.integers(2, 6), st.integers(2, 4), st.integers(2, 3)),
    levels=st.integers(2, 4),
    relaxation=st.sampled_from(["F", "FCF"]),
    shape=st.sampled_from(["V", "F"]),
    initial=st.sampled_from(["coarse", "nested", "constant"]),
)
def test_any_levels_converge_to_the_serial_solution(
    N: int, factors: tuple[int, ...], levels: int, relaxation: Any, shape: Any, initial: str
) -> None:
    p = problem(N, T=2.0)
    options = MGRIT(factors, levels, 60, relaxation, cycle_shape=shape, initial=initial, tol=1e-15)
    if len(bounds(N, options)) < 2:
        return  # the exact chain, which is not the solver's
    guess = [start()] * math.ceil(N / factors[0]) if initial == "constant" else None
    found = solve(p, options, guess)
    assert error(found.end, exact(p)[-1]) < 1e-12
    assert found.info.residuals[-1] < 1e-13


@each_shape
@pytest.mark.parametrize("cycles", [0, 1, 3])
def test_no_sweep_is_done_twice(options: MGRIT, cycles: int) -> None:
    """k cycles cost k + 1 sweeps (FCF: 2k + 1), of every step once, and as many coarse solves."""
    N = 38
    found = solve(problem(N), with_cycles(options, cycles))
    sweeps = (2 if options.relaxation == "FCF" else 1) * cycles + 1
    assert found.fine.sweeps == sweeps
    assert dict(found.fine.calls) == dict.fromkeys(range(N), sweeps)
    coarse = sum(sum(count.values()) for count in found.coarse)
    assert found.info.evaluations == N * sweeps + coarse
    if options.levels == 2:
        n = math.ceil(N / options.factor(0))
        bound = (cycles + 1) if options.relaxation == "F" else 2 * cycles + 1
        assert n - 1 <= max(found.coarse[0].values()) * (n - 1) <= bound * (n - 1)
        assert found.coarse[0][n - 1] == 0  # the last coarse step leads nowhere
        assert found.coarse[0][0] <= 1  # u_0 never changes
    # Only the final sweep needs to leave weight gradients.
    assert found.fine.lasts == [False] * (sweeps - 1) + [True]


@pytest.mark.parametrize("levels", [3, 4])
def test_an_f_cycle_visits_the_coarsest_level_once_for_each_level(levels: int) -> None:
    p, factors = problem(40), (2, 2, 2)
    visits = {}
    for shape in ("V", "F"):
        options = MGRIT(factors, levels, cycles=1, cycle_shape=shape)
        H = hierarchy(p, options)
        count = H.counts[-1]
        more = [solve(p, with_cycles(options, k)).coarse[-1][count - 2] for k in (1, 2)]
        visits[shape] = more[1] - more[0]
    # Each visit evaluates a step once, at the new values: at the old ones it is known from the visit before.
    assert visits == {"V": 1, "F": levels - 1}


@each_shape
@pytest.mark.parametrize("tol", [1e-2, 1e-5, 1e-9])
def test_tolerance_stops_at_the_first_small_residual(options: MGRIT, tol: float) -> None:
    p, m = problem(38), options.factor(0)
    free = solve(p, with_cycles(options, 12)).info.residuals
    found = solve(p, with_cycles(options, 12, tol=tol))
    k = found.info.cycles
    assert found.info.residuals == free[: k + 1]
    assert found.info.residuals[-1] <= tol
    assert all(r > tol for r in found.info.residuals[:-1])
    F, _, _ = intervals(p, m)
    ends = [F(i, c) for i, c in enumerate(found.c)]
    off = sum((e - c).square().sum().item() for e, c in zip(ends[:-1], found.c[1:], strict=True))
    size = sum(c.square().sum().item() for c in found.c[1:])
    assert found.info.residuals[-1] == pytest.approx(math.sqrt(off / size), rel=1e-9, abs=1e-15)
    assert found.fine.sweeps == 1 + k * (2 if options.relaxation == "FCF" else 1)
    assert found.fine.lasts[-1]


def test_info() -> None:
    found = solve(problem(38), MGRIT(coarsening=4, cycles=3)).info
    assert (found.solver, found.cycles, found.levels, len(found.residuals)) == ("mgrit", 3, 2, 4)
    assert all(a > b for a, b in pairwise(found.residuals))
    assert found.convergence_factor == found.residuals[-1] / found.residuals[-2]
    assert solve(problem(38), MGRIT(coarsening=3, levels=9)).info.levels == 4
    assert Info("mgrit").convergence_factor is None
    assert Info("mgrit", [1e-3]).convergence_factor is None
    assert Info("mgrit", [0.0, 0.0]).convergence_factor is None
    assert Info("mgrit", [1e-2, 0.0]).convergence_factor == 0


@pytest.mark.parametrize("factors", [(4,), (4, 2), (2, 2, 2)])
def test_a_nested_start_does_each_coarse_step_once(factors: tuple[int, ...]) -> None:
    """It is a coarse start where there is one coarse level; else it leaves out the cycles on those between."""
    found = {}
    for initial in ("coarse", "nested"):
        found[initial] = solve(problem(24), MGRIT(factors, len(factors) + 1, cycles=0, initial=initial))
    for count in found["nested"].coarse:
        assert set(count.values()) <= {0, 1}
    total = {initial: sum(sum(count.values()) for count in run.coarse) for initial, run in found.items()}
    assert (total["coarse"] > total["nested"]) == (len(factors) > 1)
    errors = {initial: error(run.end, exact(problem(24))[-1]) for initial, run in found.items()}
    assert (errors["coarse"] < errors["nested"]) == (len(factors) > 1)
