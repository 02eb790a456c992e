"""Adams–Bashforth of order 3, whose memory is part of the state x_j = (y_j, f_{j−1}, f_{j−2}):

    y_{j+1} = y_j + h (23/12 f_j − 16/12 f_{j−1} + 5/12 f_{j−2}),    f_j = f(y_j, θ_j)

Start rule: f_{−1} and f_{−2} are those of two backward Heun steps from y_0 with the weights of layer 0.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lpnet.options import MGRIT
from lpnet.steppers.base import Mix, Program, Stage, Stepper, Steps
from lpnet.steppers.rk4 import rk4_step, slope_row


@dataclass(frozen=True)
class AB3(Stepper):
    """Adams–Bashforth, order 3; y' = iωy does not grow for hω ≤ 0.72363.

    Coarse step, H = n h, d the slope of the weights a layer: RK4 with step H for y⁺, with the weights of the line
    centred at θ̄ + d/2 (θ_j belongs to the left end of its step); then the history at the fine spacing behind y⁺:

        f_0 = f(y⁺, 2θ_{n−1} − θ_{n−2})
        p   = f(y⁺ − h f_0, θ_{n−1}),      y' = y⁺ − ½h (f_0 + p),      f_{−1} = f(y', θ_{n−1})
        p_2 = f(y' − h f_{−1}, θ_{n−2}),   f_{−2} = f(y' − ½h (f_{−1} + p_2), θ_{n−2})

    For n < 3 it is the n exact steps. There are no other coarse steps: no parts, no passes, no injection.
    """

    memory: ClassVar[int] = 3

    @property
    def order(self) -> int:
        return 3

    def lift(self, h: float) -> Steps:
        return _history(h, (0, 0, 0))

    def stages(self, h: float) -> Steps:
        return _ab3_step(h, 0)

    def coarse(self, lengths: tuple[int, ...], h: float, options: MGRIT) -> Program:
        n = sum(lengths)
        if n < 3:
            return tuple(step for j in range(n) for step in _ab3_step(h, j))
        return rk4_step(n * h, (0, 1, 2)) + _history(h, (3, 4, 5))

    def rows(self, lengths: tuple[int, ...], options: MGRIT) -> np.ndarray:
        n = sum(lengths)
        layers = np.eye(n)
        if n < 3:
            return layers
        mean, slope = np.full(n, 1 / n), slope_row(n)
        line = [mean + (1 / 2 + at) * slope for at in (-n / 2, 0.0, n / 2)]
        return np.stack([*line, 2 * layers[-1] - layers[-2], layers[-1], layers[-2]])

    def refusal(self, options: MGRIT) -> str | None:
        for key, only in (("samples", 1), ("coarse", "matched"), ("coarse_weights", "mean")):
            if getattr(options, key) != only:
                return f"{key}: {getattr(options, key)!r} given with AB3, {only!r} allowed"
        return super().refusal(options)


def _ab3_step(h: float, part: int) -> Steps:
    return (
        Mix(3),
        Stage("f", 0, 3, 1.0, part=part),
        Mix(0, ((0, 1.0), (3, 23 * h / 12), (1, -16 * h / 12), (2, 5 * h / 12))),
        Mix(2, ((1, 1.0),)),
        Mix(1, ((3, 1.0),)),
    )


def _history(h: float, parts: tuple[int, int, int]) -> Steps:
    """Slots 1 and 2 from slot 0 by two backward Heun steps; weights at the end, one and two layers before it."""
    end, one, two = parts
    return (
        *_value(3, 0, end),
        Mix(4, ((0, 1.0), (3, -h))),
        *_value(5, 4, one),
        Mix(4, ((0, 1.0), (3, -h / 2), (5, -h / 2))),
        *_value(1, 4, one),
        Mix(5, ((4, 1.0), (1, -h))),
        *_value(3, 5, two),
        Mix(5, ((4, 1.0), (1, -h / 2), (3, -h / 2))),
        *_value(2, 5, two),
    )


def _value(target: int, source: int, part: int) -> Steps:
    """slot[target] = f(slot[source])."""
    return (Mix(target), Stage("f", source, target, 1.0, part=part))
