"""Steppers of staggered states, the second half a step behind the first:  z ← z + h kick(y),  y ← y + h drift(z).

Their matched coarse step over H = n h, s times in sequence on the parts of an interval, is of third order locally:

    z ← z + ½(H + h) kick(y);   y ← y + H drift(z);   z ← z + ½(H − h) kick(y)
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lpnet.errors import InputError
from lpnet.options import MGRIT
from lpnet.steppers.base import Mix, Program, Stage, Stepper, Steps


@dataclass(frozen=True)
class Staggered(Stepper):
    """Base of `Verlet` and `Leapfrog`, which differ in their drift.

    Args:
        start: "half" starts from z_{−½} = z_0 − ½h kick(y_0), z_0 = 0, of order 2; "zero" takes z_0 = 0 itself for
            z_{−½}, of order 1.
    """

    start: Literal["half", "zero"] = "half"
    memory: ClassVar[int] = 2
    reversible: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.start not in ("half", "zero"):
            raise InputError(f"start: {self.start!r} given, one of half, zero allowed")

    @property
    def order(self) -> int:
        return 2 if self.start == "half" else 1

    def drift(self, h: float, part: int) -> Stage | Mix:
        """y ← y + h drift(z)."""
        raise NotImplementedError

    def lift(self, h: float) -> Steps:
        return (Stage("kick", 0, 1, -h / 2),) if self.start == "half" else ()

    def stages(self, h: float) -> Steps:
        return (Stage("kick", 0, 1, h), self.drift(h, 0))

    def coarse(self, lengths: tuple[int, ...], h: float, options: MGRIT) -> Program:
        steps: list[Stage | Mix] = []
        for part, n in enumerate(lengths):
            H = n * h
            if options.coarse == "rediscretized":
                steps += [Stage("kick", 0, 1, H, part=part), self.drift(H, part)]
                continue
            steps += [
                Stage("kick", 0, 1, (H + h) / 2, part=part),
                self.drift(H, part),
                Stage("kick", 0, 1, (H - h) / 2, part=part),
            ]
        return tuple(steps)
