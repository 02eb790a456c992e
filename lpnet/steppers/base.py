"""What a stepper is: a program on slots for one layer, and one for a coarse step.

The slots hold the memory of the state, and scratch behind it. Two instructions are enough for all explicit methods:

    Stage    slot[target] = slot[start] + w f(slot[source])      f one term of the dynamics; start: the target itself
    Mix      slot[target] = Σ c slot[s]

From a program follow the step, its undoing, its tangent, its adjoint and its weight gradients, so a new stepper is a
few lines: its program for the fine step, and that of its coarse step.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import numpy as np

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


class Mix(NamedTuple):
    """slot[target] = Σ c slot[s] over the pairs (s, c) of `terms`, with the values before; without terms it is zero."""

    target: int
    terms: tuple[tuple[int, float], ...] = ()

    @property
    def own(self) -> float:
        """Coefficient of the target itself."""
        return sum(c for s, c in self.terms if s == self.target)

    @property
    def others(self) -> tuple[tuple[int, float], ...]:
        """The terms of other slots."""
        return tuple((s, c) for s, c in self.terms if s != self.target)


class Picard(NamedTuple):
    """`passes` sweeps of Picard iteration over the parts of an interval, all parts at once (see `Euler.coarse`)."""

    term: str
    lengths: tuple[int, ...]
    h: float
    passes: int


Steps = tuple[Stage | Mix, ...]
Program = Steps | Picard


def stages_of(program: Iterable[Stage | Mix]) -> list[Stage]:
    """The instructions that evaluate f."""
    return [step for step in program if isinstance(step, Stage)]


def evaluations(program: Program) -> int:
    """Evaluations of f, one after the other; a pass over all parts at once counts as one."""
    return program.passes if isinstance(program, Picard) else len(stages_of(program))


def slots_of(program: Iterable[Stage | Mix], memory: int) -> int:
    """How many slots a program needs."""
    used = [memory - 1]
    for step in program:
        used += [step.target] + ([step.source] if isinstance(step, Stage) else [s for s, _ in step.terms])
    return 1 + max(used)


def is_in_place(program: Iterable[Stage | Mix]) -> bool:
    """Whether each instruction can be undone from its result, given what its evaluation of f gave."""
    return all(step.start is None if isinstance(step, Stage) else step.own != 0 for step in program)


@dataclass(frozen=True)
class Stepper:
    """Base of all steppers.

    Class constants: `memory` (slots of the state), `terms` of the dynamics that are used, `reversible` (the step can be
    undone from its result alone), `continuous` (the continuous adjoint can be discretised), and `takes_passes` (its
    coarse step is an iteration). The steps that are stable follow from the program, see `lpnet.stability`.
    """

    memory: ClassVar[int] = 1
    terms: ClassVar[tuple[str, ...]] = ("f",)
    reversible: ClassVar[bool] = False
    continuous: ClassVar[bool] = False
    takes_passes: ClassVar[bool] = False

    @property
    def order(self) -> int:
        """Order of accuracy of the fine step, for weights that do not depend on the layer."""
        raise NotImplementedError

    def lift(self, h: float) -> Steps:
        """Program that completes the state x_0 = (y_0, 0, …), with the weights of layer 0."""
        return ()

    def stages(self, h: float) -> Steps:
        """One layer x_{j+1} = Φ_j(x_j) with step h."""
        raise NotImplementedError

    def coarse(self, lengths: tuple[int, ...], h: float, options: MGRIT) -> Program:
        """G over an interval whose parts have so many layers, from the weights of `rows`."""
        raise NotImplementedError

    def rows(self, lengths: tuple[int, ...], options: MGRIT) -> np.ndarray:
        """What weights a coarse step needs, as combinations of those of its layers: (rows, layers).

        Instructions of `coarse` name a row as their `part`. Here: the mean over each part, or its first layer.
        """
        found = np.zeros((len(lengths), sum(lengths)))
        for row, (a, b) in zip(found, pairwise(np.cumsum((0, *lengths))), strict=True):
            row[a : a + 1 if options.coarse_weights == "inject" else b] = 1.0
        return found / found.sum(axis=1, keepdims=True)

    def refusal(self, options: MGRIT) -> str | None:
        """Why this stepper cannot honour these options; None if it can."""
        smallest = min(options.coarsening) if isinstance(options.coarsening, tuple) else options.coarsening
        if options.samples > smallest:
            return f"samples: {options.samples} given, at most the coarsening factor {smallest} allowed"
        if options.passes is not None and not self.takes_passes:
            return f"passes: {options.passes} given with {type(self).__name__}, none allowed"
        return None

    def check(self, options: MGRIT) -> None:
        """Raise `InputError` for options that this stepper cannot honour."""
        why = self.refusal(options)
        if why is not None:
            raise InputError(why)
