"""Steppers: how the dynamics of one layer becomes a layer.

A new stepper is one class with its stages, added to `REGISTRY`; the tests run over the registry.
"""

from lpnet.steppers.base import Picard, Program, Stage, Stepper
from lpnet.steppers.euler import Euler
from lpnet.steppers.verlet import Verlet

REGISTRY: dict[str, type[Stepper]] = {"euler": Euler, "verlet": Verlet}

__all__ = ["REGISTRY", "Euler", "Picard", "Program", "Stage", "Stepper", "Verlet"]
