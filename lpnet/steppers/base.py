"""What a stepper is: a sequence of stages, and how it is coarsened.

A stage is ``slot[target] = slot[start] + w f(slot[source])`` with one term f of the dynamics; by default it starts
from the target itself, in place. From the stages follow the step, its undoing, its adjoint and its weight gradients, so
a new stepper is a few lines: its stages for the fine step, and those of its coarse step.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from lpnet.errors import InputError
from lpnet.options import MGRIT


class Stage(NamedTuple):
    """slot[target] = slot[start] + w f(slot[source]), f the `term` of part `part` of a coarse step."""

    term: str
    source: int
    target: int
    w: float
    start: int | None = None
    part: int = 0


class Picard(NamedTuple):
    """`passes` sweeps of Picard iteration over the parts of an interval, all parts at once (see `Euler.coarse`)."""

    term: str
    lengths: tuple[int, ...]
    h: float
    passes: int


Program = tuple[Stage, ...] | Picard


@dataclass(frozen=True)
class Stepper:
    """Base of all steppers.

    Class constants: `order` of accuracy, `memory` (slots of the state), `terms` of the dynamics that are used,
    `reversible` (the step can be undone from its result).
    """

    memory: ClassVar[int] = 1
    terms: ClassVar[tuple[str, ...]] = ("f",)
    reversible: ClassVar[bool] = False

    @property
    def order(self) -> int:
        """Order of accuracy of the fine step."""
        raise NotImplementedError

    def lift(self, h: float) -> tuple[Stage, ...]:
        """Stages that complete the state x_0 = (y_0, 0, …), with the weights of layer 0."""
        return ()

    def stages(self, h: float) -> tuple[Stage, ...]:
        """One layer x_{j+1} = Φ_j(x_j) with step h; each stage in place, so that it can be undone."""
        raise NotImplementedError

    def coarse(self, lengths: tuple[int, ...], h: float, options: MGRIT) -> Program:
        """G over an interval whose parts have so many layers; stages may use scratch slots from `memory` on."""
        raise NotImplementedError

    def check(self, options: MGRIT) -> None:
        """Raise `InputError` for options that this stepper cannot honour."""
        smallest = min(options.coarsening) if isinstance(options.coarsening, tuple) else options.coarsening
        if options.samples > smallest:
            raise InputError(f"samples: {options.samples} given, at most the coarsening factor {smallest} allowed")
