"""The Wolfe line search: its conditions, and that of scipy. Armijo's is in test_optim."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.optimize
from hypothesis import given
from hypothesis import strategies as st

from lpnet import InputError
from lpnet.optim import Result, Wolfe

# From More and Thuente, Line search algorithms with guaranteed sufficient decrease (1994): (φ, φ').
FUNCTIONS: dict[str, Callable[[float], tuple[float, float]]] = {
    "rational": lambda a: (-a / (a * a + 2), (a * a - 2) / (a * a + 2) ** 2),
    "power": lambda a: ((a + 0.1) ** 5 - 2 * (a + 0.1) ** 4, 5 * (a + 0.1) ** 4 - 8 * (a + 0.1) ** 3),
    "parabola": lambda a: ((a - 3) ** 2, 2 * (a - 3)),
    "exponential": lambda a: (math.exp(min(a, 700.0)) - 5 * a, math.exp(min(a, 700.0)) - 5),
    "waves": lambda a: (math.cos(5 * a) - a - 1.0, -5 * math.sin(5 * a) - 1.0),
}


@pytest.mark.parametrize("name", FUNCTIONS)
@given(start=st.floats(1e-3, 1e3), curvature=st.sampled_from([0.1, 0.9, 0.01]))
def test_both_conditions_hold(name: str, start: float, curvature: float) -> None:
    phi = FUNCTIONS[name]
    phi0, slope = phi(0.0)
    asked = []
    search = Wolfe(curvature=curvature, most=40)
    result = search.search(lambda a: asked.append(a) or phi(a), phi0, slope, start)
    value, there = phi(result.step)
    assert result.accepted
    assert asked[0] == start
    assert result.evaluations == len(asked) < 40
    assert (result.value, asked[-1]) == (value, result.step)
    assert value <= phi0 + search.decrease * result.step * slope
    assert abs(there) <= curvature * abs(slope)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("curvature", [0.1, 0.9])
def test_it_needs_hardly_more_evaluations_than_that_of_scipy(name: str, curvature: float) -> None:
    phi = FUNCTIONS[name]
    phi0, slope = phi(0.0)
    args = (lambda x: phi(x[0])[0], lambda x: np.array([phi(x[0])[1]]), np.zeros(1), np.ones(1))
    step, evaluations, *_ = scipy.optimize.line_search(*args, c1=1e-4, c2=curvature, maxiter=30)
    found = Wolfe(curvature=curvature).search(phi, phi0, slope)
    assert step is not None
    assert found.accepted
    assert found.evaluations <= evaluations + 4


def test_a_parabola_takes_one_interpolation() -> None:
    result = Wolfe(curvature=1e-3).search(FUNCTIONS["parabola"], 9.0, -6.0, 8.0)
    assert (result.step, result.evaluations) == (pytest.approx(3.0), 2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_no_decrease(bad: float) -> None:
    result = Wolfe().search(lambda a: (bad, bad) if a > 0.3 else ((a - 0.2) ** 2, 2 * (a - 0.2)), 0.04, -0.4)
    assert result.accepted
    assert result.step == pytest.approx(0.2, abs=0.05)


def test_a_bracket_that_cannot_be_divided_ends_the_search() -> None:
    step = lambda a: (0.0 if a > 0 else 1.0, -1.0)  # noqa: E731
    cliff = lambda a: (-a if a < 0.5 else math.inf, -1.0)  # noqa: E731
    assert Wolfe(most=100).search(step, 1.0, -1.0, 1e-3).accepted
    result = Wolfe(most=200).search(cliff, 0.0, -1.0)
    assert result.accepted
    assert result.step == pytest.approx(0.5)
    assert result.evaluations < 70


def test_where_the_evaluations_are_spent() -> None:
    line = lambda a: (-a, -1.0)  # noqa: E731
    assert Wolfe(most=3).search(line, 0.0, -1.0) == Result(4.0, -4.0, 3, True)  # decrease without curvature
    assert Wolfe(most=3).search(lambda a: (a, 1.0), 0.0, -1.0) == Result(0.0, 0.0, 3, False)


@pytest.mark.parametrize(
    ("key", "call"),
    [
        ("decrease", lambda: Wolfe(decrease=0.0)),
        ("curvature", lambda: Wolfe(curvature=1.0)),
        ("curvature", lambda: Wolfe(decrease=0.2, curvature=0.1)),
        ("most", lambda: Wolfe(most=0)),
        ("slope", lambda: Wolfe().search(lambda a: (0.0, 0.0), 1.0, 1.0)),
        ("phi0", lambda: Wolfe().search(lambda a: (0.0, 0.0), math.nan, -1.0)),
        ("start", lambda: Wolfe().search(lambda a: (0.0, 0.0), 1.0, -1.0, 0.0)),
    ],
)
def test_bad_input(key: str, call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=rf"^{key}: .* given, .* allowed$"):
        call()
