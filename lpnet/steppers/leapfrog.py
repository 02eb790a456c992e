"""Leapfrog for second-order dynamics y'' = kick(y): y_{j+1} = 2y_j − y_{j−1} + h² kick(y_j), as a system of two.

    v_{j+½} = v_{j−½} + h kick(y_j),    y_{j+1} = y_j + h v_{j+½},    v_{j−½} = (y_j − y_{j−1})/h

The velocity is kept in place of y_{j−1}: the m-step map of the pair (y_j, y_{j−1}) is ill conditioned.
"""

from dataclasses import dataclass
from typing import ClassVar

from lpnet.steppers.base import Mix, Stage
from lpnet.steppers.staggered import Staggered


@dataclass(frozen=True)
class Leapfrog(Staggered):
    """Leapfrog with state (y, v), v half a step behind y, v(0) = 0; reversible.

    Source: Chang, Meng, Haber, Ruthotto, Begert, Holtham, Reversible architectures for arbitrarily deep residual neural
    networks (2018).
    """

    terms: ClassVar[tuple[str, ...]] = ("kick",)

    def drift(self, h: float, part: int) -> Stage | Mix:
        return Mix(0, ((0, 1.0), (1, h)))
