"""Line search: a step length a with sufficient decrease of φ(a) = loss(θ + a d), where φ'(0) = ∇loss(θ)·d < 0:

    φ(a) ≤ φ(0) + c a φ'(0),        a = start, start·ϱ, start·ϱ², …
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def require(right: bool, key: str, given: object, allowed: str) -> None:
    """Refuse what is not right."""
    if not right:
        raise InputError(f"{key}: {given!r} given, {allowed} allowed")
