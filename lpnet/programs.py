"""Programs at work: instructions on slots, forward, on the slots' changes, and backward on their cotangents.

    forward     slot[target] = slot[start] + w f(slot[source])                          slot[target] = Σ c slot[s]
    tangent     dot[target] = dot[start] + w (∂f/∂y dot[source] + ∂f/∂θ δθ)             dot[target] = Σ c dot[s]
    backward    bar[source] += w (∂f/∂y)ᵀ bar[target]                                   bar[s] += c bar[target]
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
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

    def add(self, source: list[Slot], target: Slot, w: float, tape: list[Any], j: int, at: int) -> None:
        mix(self.step, source)

    def unmix(self, source: list[Slot], target: Slot, w: float, tape: list[Any], j: int, at: int) -> None:
        unmix(self.step, source)

    def pull(
        self, source: Any, target_bar: Tensor, source_bar: list[Tensor], w: float, tape: list[Any], j: int, at: int
    ) -> None:
        mix_bars(self.step, source_bar)

    pull_grad = pull


class Place(NamedTuple):
    """Which weights an evaluation of a program uses, and where it keeps what the adjoint needs.

    Attributes:
        j: weights of part 0.
        tapes: one for each instruction.
        at: the place on all of them.
    """

    j: int
    tapes: Sequence[Kept]
    at: int = 0


def forward(program: Steps, fields: Fields, slots: Sequence[Slot], place: Place) -> None:
    """Do a program on slots."""
    j, tapes, at = place
    for step, tape in zip(program, tapes, strict=True):
        if isinstance(step, Mix):
            mix(step, slots)
            continue
        target = slots[step.target]
        if step.begin is not None:
            target.view.copy_(slots[step.begin].view)
        fields[step.term].add(slots[step.source], target, step.w, tape, j + step.part, at)


def apart(
    program: Steps, fields: Fields, values: list[Tensor], places: Sequence[Tensor], place: Place, linear: bool
) -> None:
    """Do a program, but leave the values as they are and write each new one to its place.

    Args:
        program: instructions.
        fields: term -> field.
        values: of the slots; replaced by the new ones.
        places: one for each slot.
        place: weights and tapes.
        linear: keep what repeated pulls need.
    """
    j, tapes, at = place
    for step, tape in zip(program, tapes, strict=True):
        out = places[step.target]
        if isinstance(step, Mix):
            _mix_apart(step, values, out)
        else:
            field = fields[step.term]
            begin = values[step.target if step.start is None else step.start]
            act = field.plus_linear if linear else field.plus
            act(values[step.source], begin, out, step.w, tape, j + step.part, at)
        values[step.target] = out


def _mix_apart(step: Mix, values: Sequence[Tensor], out: Tensor) -> None:
    if step.own == 0:
        out.zero_()
    else:
        torch.mul(values[step.target], step.own, out=out)
    for s, c in step.others:
        out.add_(values[s], alpha=c)


def replay(
    program: Steps, fields: Fields, slots: Sequence[Slot], place: Place, sources: Sequence[Slot]
) -> None:
    """Do a program again from its tapes, evaluating nothing; `sources` are given the source of each instruction."""
    j, tapes, at = place
    for step, tape, source in zip(program, tapes, sources, strict=False):
        if isinstance(step, Mix):
            mix(step, slots)
            continue
        source.view.copy_(slots[step.source].view)
        if step.begin is not None:
            slots[step.target].view.copy_(slots[step.begin].view)
        fields[step.term].remove(source, slots[step.target], -step.w, tape, j + step.part, at)


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


def tangent(program: Steps, fields: Fields, pairs: Pairs, place: Place) -> None:
    """Do a program with its changes."""
    slots, dots, deltas, spare = pairs
    for step, tape in zip(program, place.tapes, strict=True):
        if isinstance(step, Mix):
            mix(step, slots)
            mix(step, dots)
            continue
        s, t, w, begin = step.source, step.target, step.w, step.begin
        field, source, target = fields[step.term], slots[s], slots[t]
        where = (tape, place.j + step.part, place.at)
        if spare is not None:
            field.add(source, spare, 0.0, *where)
        if begin is not None:
            target.view.copy_(slots[begin].view)
            dots[t].view.copy_(dots[begin].view)
        delta = None if deltas is None else deltas[step.term]
        field.tangent(source, dots[s].view, dots[t].view, w, tape[place.at], place.j + step.part, delta)
        field.remove(source, target, -w, *where)


def backward(
    program: Steps,
    fields: Fields,
    sources: Sequence[Slot],
    bars: Sequence[Tensor],
    place: Place,
    gradients: bool = False,
) -> None:
    """Pull the cotangents of all slots back through a program; those of scratch are zero before and after.

    Args:
        program: instructions.
        fields: term -> field.
        sources: the source of each instruction, as it was.
        bars: one for each slot.
        place: weights, and what each instruction left on its tape.
        gradients: add those of the weights to the fields'.
    """
    j, tapes, at = place
    for i in range(len(program) - 1, -1, -1):
        step = program[i]
        if isinstance(step, Mix):
            mix_bars(step, bars)
            continue
        field, target = fields[step.term], bars[step.target]
        pull = field.pull_grad if gradients else field.pull
        pull(sources[i], target, bars[step.source], step.w, tapes[i], j + step.part, at)
        if step.begin is not None:
            bars[step.begin].add_(target)
            target.zero_()


def tapes_of(program: Steps, fields: Fields, n: int, x: Tensor, holder: object = None) -> list[Kept]:
    """A tape of n places for each instruction; without content for those that need none."""
    return [fields[s.term].tape(n, x, holder) if isinstance(s, Stage) else [None] * n for s in program]
