"""Steppers: how the dynamics of one layer becomes a layer.

A new stepper is one class with its programs, added to `REGISTRY`; the tests run over the registry.
"""

from lpnet.steppers.ab3 import AB3
from lpnet.steppers.base import (
    Mix,
    Picard,
    Program,
    Stage,
    Stepper,
    Steps,
    check_layer,
    coarse_of,
    evaluations,
    is_euler,
    is_in_place,
    is_reversible,
    slots_of,
    stages_of,
)
from lpnet.steppers.euler import Euler
from lpnet.steppers.leapfrog import Leapfrog
from lpnet.steppers.rk4 import RK4
from lpnet.steppers.verlet import Verlet

REGISTRY: dict[str, type[Stepper]] = {
    "euler": Euler,
    "rk4": RK4,
    "ab3": AB3,
    "verlet": Verlet,
    "leapfrog": Leapfrog,
}

__all__ = [
    "AB3",
    "REGISTRY",
    "RK4",
    "Euler",
    "Leapfrog",
    "Mix",
    "Picard",
    "Program",
    "Stage",
    "Stepper",
    "Steps",
    "Verlet",
    "check_layer",
    "coarse_of",
    "evaluations",
    "is_euler",
    "is_in_place",
    "is_reversible",
    "slots_of",
    "stages_of",
]
