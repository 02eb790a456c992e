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

    @property
    def begin(self) -> int | None:
        """The slot that is copied into the target first; None where that is the target itself."""
        return None if self.start == self.target else self.start


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
    return all(step.begin is None if isinstance(step, Stage) else step.own != 0 for step in program)


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
        if options.samples > 1:
            lengths = (1,) * options.samples
            return _misused(self, self.coarse(lengths, 1.0, options), self.rows(lengths, options), lengths)
        return None

    def check(self, options: MGRIT) -> None:
        """Raise `InputError` for options that this stepper cannot honour."""
        why = self.refusal(options)
        if why is not None:
            raise InputError(why)


def is_reversible(stepper: Stepper) -> bool:
    """Whether each instruction of a layer can be undone from its result, with f at a slot that it leaves alone."""
    program = stepper.stages(1.0)
    return is_in_place(program) and all(step.source != step.target for step in stages_of(program))


def is_euler(stepper: Stepper) -> bool:
    """Whether a layer is y += w f(y)."""
    program = stepper.stages(1.0)
    steps = stages_of(program)
    return stepper.memory == 1 and len(program) == len(steps) == 1 and steps[0][1:3] == (0, 0) and is_in_place(steps)


def check_layer(stepper: Stepper) -> None:
    """Raise `InputError` for a fine step or a lift that cannot be done on slots."""
    for what, program in (("fine step", stepper.stages(1.0)), ("lift", stepper.lift(1.0))):
        _check(stepper, what, program)
        wrong = next((step for step in stages_of(program) if step.part != 0), None)
        if wrong is not None:
            raise InputError(f"stepper: part {wrong.part} given in the {what} of {type(stepper).__name__}, 0 allowed")
    if not stages_of(stepper.stages(1.0)):
        raise InputError(f"stepper: {type(stepper).__name__} given, whose fine step has no Stage; at least one needed")


def coarse_of(
    stepper: Stepper, lengths: tuple[int, ...], h: float, options: MGRIT
) -> tuple[Program, np.ndarray]:
    """Program of a coarse step over parts of so many layers, and the rows of its weights.

    Raises:
        InputError: they cannot be done on slots, or do not fit each other.
    """
    program, rows = stepper.coarse(lengths, h, options), stepper.rows(lengths, options)
    if not isinstance(program, Picard):
        _check(stepper, "coarse step", program)
    why = _misused(stepper, program, rows, lengths)
    if why is not None:
        raise InputError(why)
    return program, rows


def _check(stepper: Stepper, what: str, program: Steps) -> None:
    """Raise `InputError` for an instruction that cannot be done, or that reads scratch which none has written."""
    name, known = type(stepper).__name__, set(range(stepper.memory))
    for step in program:
        if isinstance(step, Mix):
            reads = {s for s, _ in step.terms}
        else:
            reads = {step.source, step.target if step.start is None else step.start}
            if step.term not in stepper.terms:
                allowed = ", ".join(stepper.terms)
                raise InputError(f"stepper: term {step.term!r} given in the {what} of {name}, {allowed} allowed")
            if step.source == step.target and step.begin is not None:
                raise InputError(
                    f"stepper: source and target {step.source} with start {step.start} given in the {what} of {name}, "
                    "another target allowed"
                )
        if step.target < 0:
            raise InputError(f"stepper: slot {step.target} given in the {what} of {name}, at least 0 allowed")
        if reads - known:
            raise InputError(
                f"stepper: slot {min(reads - known)} given in the {what} of {name}, which nothing has written; "
                f"{', '.join(map(str, sorted(known)))} allowed"
            )
        known.add(step.target)


def _misused(stepper: Stepper, program: Program, rows: np.ndarray, lengths: tuple[int, ...]) -> str | None:
    """What is wrong with the use that a coarse step makes of its rows of weights; None if nothing is."""
    name, layers = type(stepper).__name__, sum(lengths)
    if rows.ndim != 2 or rows.shape[1] != layers:
        return f"stepper: rows of shape {rows.shape} given by {name}, (rows, {layers}) allowed"
    used = range(len(program.lengths)) if isinstance(program, Picard) else {s.part for s in stages_of(program)}
    strange = sorted(set(used) - set(range(len(rows))))
    if strange:
        return f"stepper: row {strange[0]} given in the coarse step of {name}, one of its {len(rows)} rows allowed"
    if len(used) == len(rows):
        return None
    uses = f"coarse step uses {len(used)} of {len(rows)} rows of weights"
    if len(lengths) > 1:
        return f"samples: {len(lengths)} given with {name}, whose {uses}; 1 allowed"
    return f"stepper: {name} given, whose {uses}; only rows that are used allowed"
