"""Verlet (symplectic) for partitioned dynamics: z_{j+½} = z_{j−½} + h kick(y_j),  y_{j+1} = y_j + h drift(z_{j+½}).

For the Hamiltonian layer kick(y) = −σ(Ky + b) and drift(z) = σ(Kᵀz + b).
"""

from dataclasses import dataclass
from typing import ClassVar

from lpnet.steppers.base import Mix, Stage
from lpnet.steppers.staggered import Staggered


@dataclass(frozen=True)
class Verlet(Staggered):
    """Verlet with state (y, z), z half a step behind y; reversible.

    Source: Verlet, Computer "experiments" on classical fluids (1967); for networks Haber, Ruthotto (2017).
    """

    terms: ClassVar[tuple[str, ...]] = ("kick", "drift")

    def drift(self, h: float, part: int) -> Stage | Mix:
        return Stage("drift", 1, 0, h, part=part)
