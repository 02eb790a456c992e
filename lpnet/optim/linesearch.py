"""Line searches: a step length a with sufficient decrease of φ(a) = loss(θ + a d), where φ'(0) = ∇loss(θ)·d < 0:

    φ(a) ≤ φ(0) + c a φ'(0)              Armijo: the first such a = start, start·ϱ, start·ϱ², …
    and |φ'(a)| ≤ C |φ'(0)|              Wolfe (strong): a bracket, and cubic interpolation in it
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from lpnet.errors import InputError


@dataclass(frozen=True)
class Result:
    """Step length (0 if none was accepted), φ there, number of evaluations of φ, whether the step was accepted."""

    step: float
    value: float
    evaluations: int
    accepted: bool


@dataclass(frozen=True)
class Armijo:
    """Backtracking until the decrease is sufficient.

    Source: Armijo, Minimization of functions having Lipschitz continuous first partial derivatives (1966).

    Args:
        decrease: c, between 0 and 1, the part of the decrease of the linear model that is asked for.
        factor: ϱ, between 0 and 1, by which a step that was refused is shortened.
        most: number of evaluations after which the search gives up.

    Raises:
        InputError: a value is not allowed.
    """

    decrease: float = 1e-4
    factor: float = 0.5
    most: int = 15

    def __post_init__(self) -> None:
        for key in ("decrease", "factor"):
            value = getattr(self, key)
            require(is_number(value) and 0 < value < 1, key, value, "a number between 0 and 1")
        require(is_whole(self.most) and self.most >= 1, "most", self.most, "a whole number of at least 1")

    def search(self, phi: Callable[[float], float], phi0: float, slope: float, start: float = 1.0) -> Result:
        """The first step length of the sequence with sufficient decrease; a φ that is not finite counts as none.

        Args:
            phi: φ.
            phi0: φ(0).
            slope: φ'(0).
            start: the first step length.

        Raises:
            InputError: φ(0) is not finite, the slope is not negative, or the start not a number of at least 0.
        """
        require(math.isfinite(phi0), "phi0", phi0, "a finite number")
        require(-math.inf < slope < 0, "slope", slope, "a negative number (a direction of descent)")
        require(0 <= start < math.inf, "start", start, "a number of at least 0")
        a = start
        for evaluations in range(1, self.most + 1):
            value = phi(a)
            if math.isfinite(value) and value <= phi0 + self.decrease * a * slope:
                return Result(a, value, evaluations, True)
            a *= self.factor
        return Result(0.0, phi0, self.most, False)


class Point(NamedTuple):
    """A step length, φ and φ' there."""

    a: float
    value: float
    slope: float


@dataclass(frozen=True)
class Wolfe:
    """The strong Wolfe conditions, as nonlinear conjugate gradients need them.

    Sources: Wolfe, Convergence conditions for ascent methods (1969); Nocedal, Wright, Numerical optimization (2006),
    algorithms 3.5 and 3.6.

    Args:
        decrease: c, between 0 and 1.
        curvature: C, between c and 1: 0.9 for quasi-Newton directions, 0.1 for conjugate gradients.
        most: number of evaluations after which the best step with sufficient decrease is taken, if there is any.

    Raises:
        InputError: a value is not allowed.
    """

    decrease: float = 1e-4
    curvature: float = 0.1
    most: int = 20
    slopes: ClassVar[bool] = True  # what is searched tells φ' as well

    def __post_init__(self) -> None:
        c, C = self.decrease, self.curvature
        require(is_number(c) and 0 < c < 1, "decrease", c, "a number between 0 and 1")
        require(is_number(C) and c < C < 1, "curvature", C, f"a number between decrease ({c:g}) and 1")
        require(is_whole(self.most) and self.most >= 1, "most", self.most, "a whole number of at least 1")

    def search(
        self, phi: Callable[[float], tuple[float, float]], phi0: float, slope: float, start: float = 1.0
    ) -> Result:
        """A step length with both conditions; a φ that is not finite counts as no decrease.

        Args:
            phi: a -> φ, φ'.
            phi0: φ(0).
            slope: φ'(0).
            start: the first step length.

        Raises:
            InputError: φ(0) is not finite, the slope is not negative, or the start not a positive number.
        """
        require(math.isfinite(phi0), "phi0", phi0, "a finite number")
        require(-math.inf < slope < 0, "slope", slope, "a negative number (a direction of descent)")
        require(0 < start < math.inf, "start", start, "a positive number")
        low, high, a = Point(0.0, phi0, slope), None, start
        for evaluations in range(1, self.most + 1):
            point = Point(a, *phi(a))
            enough = math.isfinite(point.value) and point.value <= phi0 + self.decrease * a * slope
            if enough and point.value < low.value and abs(point.slope) <= -self.curvature * slope:
                return Result(a, point.value, evaluations, True)
            if not enough or not point.value < low.value:
                high = point
            else:
                # φ falls from the new low point towards the end of the bracket; without one, on and on.
                turned = point.slope * ((high.a if high else math.inf) - low.a) >= 0
                low, high = point, (low if turned else high)
            a = _between(low, high) if high else 2 * a
            if a in (low.a, high.a if high else math.inf):  # the bracket is as small as numbers are apart
                break
        return Result(low.a, low.value, evaluations, low.a > 0)


def _between(low: Point, high: Point) -> float:
    """The minimiser of the cubic through both points, well inside; the middle where it is none."""
    width, middle = high.a - low.a, 0.5 * (low.a + high.a)
    if middle in (low.a, high.a) or not (math.isfinite(high.value) and math.isfinite(high.slope)):
        return middle
    d1 = low.slope + high.slope - 3 * (low.value - high.value) / (low.a - high.a)
    root = d1 * d1 - low.slope * high.slope
    if not root >= 0:
        return middle
    d2 = math.copysign(math.sqrt(root), width)
    divisor = high.slope - low.slope + 2 * d2
    a = high.a - width * (high.slope + d2 - d1) / divisor if divisor else middle
    return a if 0.1 <= (a - low.a) / width <= 0.9 else middle


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def require(right: bool, key: str, given: object, allowed: str) -> None:
    """Refuse what is not right."""
    if not right:
        raise InputError(f"{key}: {given!r} given, {allowed} allowed")
