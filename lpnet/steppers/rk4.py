"""The classical Runge–Kutta method of order 4, with the weights of a layer in all four stages.

    k_1 = f(y), k_2 = f(y + ½h k_1), k_3 = f(y + ½h k_2), k_4 = f(y + h k_3),    y ← y + h/6 (k_1 + 2k_2 + 2k_3 + k_4)
"""

from dataclasses import dataclass

import numpy as np

from lpnet.options import MGRIT
from lpnet.steppers.base import Mix, Program, Stage, Stepper, Steps


@dataclass(frozen=True)
class RK4(Stepper):
    """The classical Runge–Kutta method, order 4; y' = iωy does not grow for hω ≤ 2√2.

    Coarse step over each part of an interval, H = n h: the same with step H. Matched, its stages have the weights of
    the least-squares line through those of the layers, slope d a layer: θ̄ − nd/2, θ̄, θ̄, θ̄ + nd/2.

    Source: Kutta, Beitrag zur näherungsweisen Integration totaler Differentialgleichungen (1901).
    """


    @property
    def order(self) -> int:
        return 4

    def stages(self, h: float) -> Steps:
        return rk4_step(h, (0, 0, 0))

    def coarse(self, lengths: tuple[int, ...], h: float, options: MGRIT) -> Program:
        found: Steps = ()
        for part, n in enumerate(lengths):
            found += rk4_step(n * h, (3 * part, 3 * part + 1, 3 * part + 2))
        return found

    def rows(self, lengths: tuple[int, ...], options: MGRIT) -> np.ndarray:
        flat = np.repeat(super().rows(lengths, options), 3, axis=0)
        if options.coarse == "rediscretized" or options.coarse_weights == "inject":
            return flat
        start = 0
        for part, n in enumerate(lengths):
            slope = slope_row(n)
            flat[3 * part, start : start + n] -= n / 2 * slope
            flat[3 * part + 2, start : start + n] += n / 2 * slope
            start += n
        return flat


def rk4_step(h: float, parts: tuple[int, int, int]) -> Steps:
    """One step on slot 0 with scratch slots 1, 2, 3; weights of these parts at its beginning, middle and end.

    With s_1 = y + ½h k_1, s_2 = y + ½h k_2, s_3 = y + h k_3 the new y is −y/3 + s_1/3 + 2s_2/3 + s_3/3 + h/6 k_4.
    """
    begin, middle, end = parts
    return (
        Stage("f", 0, 1, h / 2, start=0, part=begin),
        Stage("f", 1, 2, h / 2, start=0, part=middle),
        Stage("f", 2, 3, h, start=0, part=middle),
        Mix(0, ((0, -1 / 3), (1, 1 / 3), (2, 2 / 3), (3, 1 / 3))),
        Stage("f", 3, 0, h / 6, part=end),
    )


def slope_row(n: int) -> np.ndarray:
    """Coefficients of the slope, a layer, of the least-squares line through n values."""
    t = np.arange(n) - (n - 1) / 2
    return t / (t @ t) if n > 1 else t
