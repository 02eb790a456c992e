"""Programs at work: instructions on slots, forward, on the slots' changes, and backward on their cotangents.

    forward     slot[target] = slot[start] + w f(slot[source])                          slot[target] = Σ c slot[s]
    tangent     dot[target] = dot[start] + w (∂f/∂y dot[source] + ∂f/∂θ δθ)             dot[target] = Σ c dot[s]
    backward    bar[source] += w (∂f/∂y)ᵀ bar[target]                                   bar[s] += c bar[target]
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from lpnet.fields import Field, Slot
from lpnet.steppers import Mix, Stage, Steps

Kept = list[Any]
Fields = Mapping[str, Field]


def mix(step: Mix, slots: Sequence[Slot]) -> None:
    """slot[target] = Σ c slot[s]."""
    target = slots[step.target].view
    if step.own == 0:
        target.zero_()
    elif step.own != 1:
        target.mul_(step.own)
    for s, c in step.others:
        target.add_(slots[s].view, alpha=c)


def unmix(step: Mix, slots: Sequence[Slot]) -> None:
    """Undo `mix`, which must have left something of the target."""
    target = slots[step.target].view
    for s, c in step.others:
        target.sub_(slots[s].view, alpha=c)
    if step.own != 1:
        target.div_(step.own)


def mix_bars(step: Mix, bars: Sequence[Tensor]) -> None:
    """The transpose of `mix`."""
    target = bars[step.target]
    for s, c in step.others:
        bars[s].add_(target, alpha=c)
    if step.own == 0:
        target.zero_()
    elif step.own != 1:
        target.mul_(step.own)


class Mixing:
    """A `Mix` that can be undone, in the place of a field; its source is the list of all slots (or cotangents)."""

    needs_source = False

    def __init__(self, step: Mix) -> None:
        self.step = step

    def tape(self, n: int, state: Tensor) -> list[Any]:
        return [None] * n

    def add(self, j: int, source: list[Slot], target: Slot, w: float, tape: list[Any], at: int) -> None:
        mix(self.step, source)

    def unmix(self, j: int, source: list[Slot], target: Slot, w: float, tape: list[Any], at: int) -> None:
        unmix(self.step, source)

    def pull(self, j: int, source: Any, target_bar: Tensor, source_bar: list[Tensor], w: float, kept: Any) -> None:
        mix_bars(self.step, source_bar)

    pull_grad = pull


def forward(
    program: Steps, fields: Fields, slots: Sequence[Slot], j: int, keeps: Sequence[Kept], linear: bool = False
) -> None:
    """Do a program with the weights j + part.

    Args:
        program: instructions.
        fields: term -> field.
        slots: what it works on.
        j: weights of part 0.
        keeps: for each instruction a tape of one place.
        linear: keep what repeated pulls need.
    """
    for step, keep in zip(program, keeps, strict=True):
        if isinstance(step, Mix):
            mix(step, slots)
            continue
        field = fields[step.term]
        if step.begin is not None:
            slots[step.target].view.copy_(slots[step.begin].view)
        act = field.linearize if linear else field.add
        act(j + step.part, slots[step.source], slots[step.target], step.w, keep, 0)


def replay(
    program: Steps, fields: Fields, slots: Sequence[Slot], j: int, keeps: Sequence[Kept], sources: Sequence[Slot]
) -> None:
    """Do a program again from its tapes, evaluating nothing; `sources` are given the source of each instruction."""
    for step, keep, source in zip(program, keeps, sources, strict=False):
        if isinstance(step, Mix):
            mix(step, slots)
            continue
        source.view.copy_(slots[step.source].view)
        if step.begin is not None:
            slots[step.target].view.copy_(slots[step.begin].view)
        fields[step.term].remove(j + step.part, source, slots[step.target], -step.w, keep, 0)


class Pairs(NamedTuple):
    """What a program and its changes work on.

    Attributes:
        slots: the values.
        dots: their changes.
        deltas: term -> change of the weights as its field holds them; None: the weights do not change.
        spare: one slot more, for f to be evaluated anew; None: it is replayed from the tapes.
    """

    slots: Sequence[Slot]
    dots: Sequence[Slot]
    deltas: Mapping[str, Any] | None
    spare: Slot | None = None


def tangent(program: Steps, fields: Fields, pairs: Pairs, j: int, tapes: Sequence[Kept], at: int = 0) -> None:
    """Do a program with its changes.

    Args:
        program: instructions.
        fields: term -> field.
        pairs: what it works on.
        j: weights of part 0.
        tapes: of each instruction.
        at: where they hold what belongs to j.
    """
    slots, dots, deltas, spare = pairs
    for step, tape in zip(program, tapes, strict=True):
        if isinstance(step, Mix):
            mix(step, slots)
            mix(step, dots)
            continue
        s, t, w, begin = step.source, step.target, step.w, step.begin
        field, row, source, target = fields[step.term], j + step.part, slots[s], slots[t]
        if spare is not None:
            field.add(row, source, spare, 0.0, tape, at)
        if begin is not None:
            target.view.copy_(slots[begin].view)
            dots[t].view.copy_(dots[begin].view)
        delta = None if deltas is None else deltas[step.term]
        field.tangent(row, source, dots[s].view, dots[t].view, w, tape[at], delta)
        field.remove(row, source, target, -w, tape, at)


def backward(
    program: Steps,
    fields: Fields,
    sources: Sequence[Slot],
    bars: Sequence[Tensor],
    j: int,
    kept: Sequence[Any],
    gradients: bool = False,
) -> None:
    """Pull the cotangents of all slots back through a program; those of scratch are zero before and after.

    Args:
        program: instructions.
        fields: term -> field.
        sources: the source of each instruction, as it was.
        bars: one for each slot.
        j: weights of part 0.
        kept: what each instruction left on its tape.
        gradients: add those of the weights to the fields'.
    """
    for i in range(len(program) - 1, -1, -1):
        step = program[i]
        if isinstance(step, Mix):
            mix_bars(step, bars)
            continue
        field, target = fields[step.term], bars[step.target]
        pull = field.pull_grad if gradients else field.pull
        pull(j + step.part, sources[i], target, bars[step.source], step.w, kept[i])
        if step.begin is not None:
            bars[step.begin].add_(target)
            target.zero_()


def keeps_of(program: Steps, fields: Fields, x: Tensor) -> list[Kept]:
    """Tapes of one place for each instruction; None for those that need none."""
    return [fields[step.term].tape(1, x) if isinstance(step, Stage) else [None] for step in program]
