"""Coarse steps of a level from the weights of the layers, by the rows of coefficients that their stepper asks for.

    θ_row = Σ_j c_{row, j} θ_j        j = a, …, b − 1 the layers of a step's span, such as their mean

Where a span lies on several ranks, each sends its share to the rank that owns the step.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lpnet.constants import constant
from lpnet.options import MGRIT
from lpnet.slab import Slab
from lpnet.steppers import Program, Stepper, coarse_of

Span = tuple[int, int]
Weights = dict[str, Tensor]
Rows = Callable[[Span], np.ndarray]
"""Coefficients (rows, layers of the span) of the weights of a coarse step."""


def parts(span: Span, samples: int) -> list[Span]:
    """A span cut into `samples` parts, as equal as can be (fewer where it has fewer layers)."""
    a, b = span
    s = min(samples, b - a)
    cuts = [a + part * (b - a) // s for part in range(s + 1)]
    return list(pairwise(cuts))


def kind_of(options: MGRIT) -> tuple[Any, ...]:
    """What of the options the coarse step over given layers depends on."""
    return options.samples, options.passes, options.coarse, options.coarse_weights


class Recipe(NamedTuple):
    """A coarse step: its program, its rows of coefficients, and for each row the layer that counts the most."""

    program: Program
    rows: np.ndarray
    first: list[int]


class Recipes:
    """The coarse steps of a stepper with layer step h, each made once for all spans of the same length."""

    def __init__(self, stepper: Stepper, h: float) -> None:
        self.stepper, self.h = stepper, h
        self._made: dict[Any, Recipe] = {}

    def __call__(self, span: Span, options: MGRIT) -> Recipe:
        """The coarse step over a span; `InputError` if its program and its rows do not fit each other."""
        key = (span[1] - span[0], *kind_of(options))
        if key not in self._made:
            lengths = tuple(b - a for a, b in parts(span, options.samples))
            program, rows = coarse_of(self.stepper, lengths, self.h, options)
            self._made[key] = Recipe(program, rows, np.abs(rows).argmax(axis=1).tolist())
        return self._made[key]


def _together(spans: Sequence[Span], slab: Slab, rows: Rows) -> list[list[Span]]:
    """Spans in groups to be done at once: neighbours in this slab with the same rows, any other one alone."""
    groups: list[list[Span]] = []
    for span in spans:
        last = groups[-1][-1] if groups else (0, -1)
        inside = slab.lo <= last[0] and span[1] <= slab.hi
        if inside and last[1] == span[0] and rows(last) is rows(span):
            groups[-1].append(span)
        else:
            groups.append([span])
    return groups


class Share(NamedTuple):
    """What layers of this slab bring to the weights of some steps that have as many layers each.

    Attributes:
        first, end: the layers, counted from the first of the slab.
        steps: number of steps.
        rows: coefficients of these layers (of one step, if there are several).
    """

    first: int
    end: int
    steps: int
    rows: np.ndarray

    def of(self, stack: Tensor) -> Tensor:
        """(n, ...) to (rows of all steps, ...)."""
        shape = stack.shape[1:]
        if self.first >= self.end:
            return stack.new_zeros(len(self.rows), *shape)
        layers = stack[self.first : self.end].reshape(self.steps, self.rows.shape[1], -1)
        return torch.matmul(constant(self.rows, stack), layers).reshape(-1, *shape)


class Restriction:
    """Weights of this rank's coarse steps on a level from those of the layers; worked out once.

    Args:
        spans: the layers of every step of the level.
        owners: the rank of every step.
        slab: who owns the layers.
        rows: coefficients for a span.
    """

    def __init__(self, spans: Sequence[Span], owners: Sequence[int], slab: Slab, rows: Rows) -> None:
        self._comm, lo, hi = slab.comm, slab.lo, slab.hi
        rank = self._comm.rank

        def share(group: Sequence[Span]) -> Share:
            (a, b), one = (group[0][0], group[-1][1]), rows(group[0])
            first, end = max(a, lo), min(b, hi)
            return Share(first - lo, end - lo, len(group), one if len(group) > 1 else one[:, first - a : end - a])

        steps = list(zip(spans, owners, strict=True))
        self.key = (tuple(spans), tuple(owners))
        self.mine = [k for k, owner in enumerate(owners) if owner == rank]
        self.own = [spans[k] for k in self.mine]
        self._sends = [(k, share([span])) for span, k in steps if k != rank and span[0] < hi and span[1] > lo]
        self._groups: list[tuple[Share, list[int]]] = []
        for group in _together(self.own, slab, rows):
            sources = range(slab.owner(group[0][0]), slab.owner(group[-1][1] - 1) + 1)
            self._groups.append((share(group), [r for r in sources if r != rank and slab.counts[r]]))

    def __call__(self, theta: Weights) -> Weights:
        """name -> (n, ...) to name -> (rows of all steps, ...); collective if spans cross ranks."""
        for owner, share in self._sends:
            for stack in theta.values():
                self._comm.send(share.of(stack), owner)
        found: dict[str, list[Tensor]] = {name: [] for name in theta}
        for share, sources in self._groups:
            own = {name: share.of(stack) for name, stack in theta.items()}
            for source in sources:
                for part in own.values():
                    part += self._comm.recv(part, source)
            for name, part in own.items():
                found[name].append(part)
        return {name: ps[0] if len(ps) == 1 else torch.cat(ps) for name, ps in found.items() if ps}
