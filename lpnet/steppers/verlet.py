"""Verlet (symplectic, staggered) for partitioned dynamics: z ← z + h kick(y),  y ← y + h drift(z).

For the Hamiltonian layer kick(y) = −σ(Ky + b) and drift(z) = σ(Kᵀz + b).
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from lpnet.errors import InputError
from lpnet.options import MGRIT
from lpnet.steppers.base import Program, Stage, Stepper


@dataclass(frozen=True)
class Verlet(Stepper):
    """Verlet with state (y, z), z half a step behind y.

    Args:
        start: "half" starts from z_{−½} = z_0 − ½h kick(y_0), of order 2; "zero" takes z_0 = 0 itself for
            z_{−½}, of order 1.

    Coarse step, third order locally, s times in sequence on the parts of an interval, H = n_i h:

        z ← z + ½(H + h) kick(y);   y ← y + H drift(z);   z ← z + ½(H − h) kick(y)
    """

    start: Literal["half", "zero"] = "half"
    memory: ClassVar[int] = 2
    terms: ClassVar[tuple[str, ...]] = ("kick", "drift")
    reversible: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.start not in ("half", "zero"):
            raise InputError(f"start: {self.start!r} given, one of half, zero allowed")

    @property
    def order(self) -> int:
        return 2 if self.start == "half" else 1

    def lift(self, h: float) -> tuple[Stage, ...]:
        return (Stage("kick", 0, 1, -h / 2),) if self.start == "half" else ()

    def stages(self, h: float) -> tuple[Stage, ...]:
        return (Stage("kick", 0, 1, h), Stage("drift", 1, 0, h))

    def coarse(self, lengths: tuple[int, ...], h: float, options: MGRIT) -> Program:
        stages: list[Stage] = []
        for part, n in enumerate(lengths):
            H = n * h
            if options.coarse == "rediscretized":
                stages += [Stage("kick", 0, 1, H, part=part), Stage("drift", 1, 0, H, part=part)]
                continue
            stages += [
                Stage("kick", 0, 1, (H + h) / 2, part=part),
                Stage("drift", 1, 0, H, part=part),
                Stage("kick", 0, 1, (H - h) / 2, part=part),
            ]
        return tuple(stages)

    def check(self, options: MGRIT) -> None:
        super().check(options)
        if options.passes is not None:
            raise InputError(f"passes: {options.passes} given, Verlet takes none (its parts go in sequence)")
