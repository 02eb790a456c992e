"""Intervals of equal length at once: their p-th layers are one batched evaluation, for each p in turn.

How many go together is a rule of the shapes alone (`blocks.most`).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lpnet.blocks import Blocks, most, shared
from lpnet.propagator import Layers
from lpnet.tape import Tape

Interval = tuple[int, int]
"""Layers a, …, b − 1."""


def run_all(layers: Layers, intervals: Sequence[Interval], xs: Sequence[Tensor], tape: Tape) -> Iterator[Tensor]:
    """x_b from x_a of each interval (a, b), in their order, which is that of the layers or its reverse."""
    for part in parts(layers, intervals, xs):
        many = _many(layers, intervals, part)
        if many is None:
            yield from (layers.run(*intervals[i], xs[i], tape) for i in part)
        else:
            yield from many.run([xs[i] for i in part], tape)


def pull_all(
    layers: Layers, intervals: Sequence[Interval], zs: Sequence[Tensor], tape: Tape, gradients: bool
) -> Iterator[Tensor]:
    """z_a from z_b of each interval (a, b), in their order, with the tape of a sweep (see `Layers.pull`)."""
    for part in parts(layers, intervals, zs):
        many = _many(layers, intervals, part)
        if many is None or any(tape.begin.get(b) != a for a, b in many.intervals):
            yield from (layers.pull(*intervals[i], zs[i], tape, gradients) for i in part)
        else:
            yield from many.pull([zs[i] for i in part], tape, gradients)


def parts(layers: Layers, intervals: Sequence[Interval], xs: Sequence[Tensor]) -> Iterator[list[int]]:
    """Indices of neighbours of equal length that go together."""
    runs: list[list[int]] = []
    for i, (a, b) in enumerate(intervals):
        before = intervals[i - 1] if i else (a, a)
        if b - a != before[1] - before[0] or b - a != abs(a - before[0]):
            runs.append([])
        runs[-1].append(i)
    size = sum(field.size for field in layers.fields.values())
    for run in runs:
        a, b = intervals[run[0]]
        yield from shared(run, most((b - a) * size, xs[0]))


def _many(layers: Layers, intervals: Sequence[Interval], part: Sequence[int]) -> "Together | None":
    """Those intervals, or None where they go one by one."""
    if len(part) < 2:
        return None
    own = [intervals[i] for i in part]
    (first, _), length = min(own), own[0][1] - own[0][0]
    many = layers.many(Blocks(first - layers.lo, len(part), length, length))
    return None if many is None else Together(many, own, first - layers.lo)


class Together:
    """Neighbouring intervals of equal length.

    Args:
        many: their layers, as blocks.
        intervals: in the order in which their states are given.
        first: index of their first layer within the slab.
    """

    def __init__(self, many: Layers, intervals: Sequence[Interval], first: int) -> None:
        self.many, self.intervals, self.first = many, intervals, first
        self.fields: list[Any] = list(many.fields.values())
        self.turned = intervals[0] > intervals[-1]

    def run(self, xs: Sequence[Tensor], tape: Tape) -> list[Tensor]:
        """The states at their ends, which go to the tape as those of single intervals do."""
        own = self._tape(tape, tape.records)
        ends = self._apart(self.many.run(0, self.many.n, self._together(xs), own))
        if tape.records:
            for (a, b), x, end in zip(self.intervals, xs, ends, strict=True):
                tape.note(a, b, x, end)
            for p, states in own.states.items():
                for (a, _), x in zip(self.intervals, self._apart(states), strict=True):
                    tape.states[a + p] = x
        return ends

    def pull(self, zs: Sequence[Tensor], tape: Tape, gradients: bool) -> list[Tensor]:
        """The cotangents at their begins."""
        own, n = self._tape(tape, True), self.many.n
        own.begin, own.ends = {n: 0}, {n: self._together([tape.ends[b] for _, b in self.intervals])}
        if not self.many.in_place:
            own.states = {p: self._together([tape.states[a + p] for a, _ in self.intervals]) for p in range(n)}
        found = self.many.pull(0, n, self._together(zs), own, gradients)
        for field in self.fields:
            field.collect()
        return self._apart(found)

    def _together(self, xs: Sequence[Tensor]) -> Tensor:
        """States (memory, ...) to (memory, K, ...), from left to right."""
        return torch.stack(list(reversed(xs)) if self.turned else list(xs), dim=1)

    def _apart(self, xs: Tensor) -> list[Tensor]:
        each = xs.unbind(1)
        return list(reversed(each)) if self.turned else list(each)

    def _tape(self, tape: Tape, records: bool) -> Tape:
        """That of the sweep, as the blocks see it."""
        at = Blocks(self.first - tape.shift, len(self.intervals), self.many.n, self.many.n)
        return Tape([at.kept(kept) for kept in tape.kept], records=records)
