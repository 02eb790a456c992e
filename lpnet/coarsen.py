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


def _shares(stack: Tensor, lo: int, group: Sequence[Span], rows: np.ndarray) -> Tensor:
    """What this rank's layers bring to the weights of the steps of a group, (rows of all, ...)."""
    if len(group) == 1:
        return _share(stack, lo, group[0], rows)
    layers = stack[group[0][0] - lo : group[-1][1] - lo].reshape(len(group), rows.shape[1], -1)
    return torch.matmul(constant(rows, stack), layers).reshape(-1, *stack.shape[1:])


def _share(stack: Tensor, lo: int, span: Span, rows: np.ndarray) -> Tensor:
    """What this rank's layers bring to the weights of a step, (rows, ...); `stack` holds the layers from lo on."""
    a, b = span
    first, end = max(a, lo), min(b, lo + len(stack))
    if first >= end:
        return stack.new_zeros(len(rows), *stack.shape[1:])
    own = constant(rows[:, first - a : end - a], stack)
    return torch.tensordot(own, stack[first - lo : end - lo], 1)


def restrict(theta: Weights, spans: Sequence[Span], owners: Sequence[int], slab: Slab, rows: Rows) -> Weights:
    """Weights of all of this rank's coarse steps, name -> (rows of all steps, ...); collective if spans cross ranks.

    Args:
        theta: local layers' weights, name -> (n, ...).
        spans: the layers of every step of the level.
        owners: the rank of every step.
        slab: who owns the layers.
        rows: coefficients for a span.
    """
    comm, lo = slab.comm, slab.lo
    for span, owner in zip(spans, owners, strict=True):
        if owner != comm.rank and span[0] < slab.hi and span[1] > lo:
            for stack in theta.values():
                comm.send(_share(stack, lo, span, rows(span)), owner)
    found: dict[str, list[Tensor]] = {name: [] for name in theta}
    mine = [span for span, owner in zip(spans, owners, strict=True) if owner == comm.rank]
    for group in _together(mine, slab, rows):
        shares = {name: _shares(stack, lo, group, rows(group[0])) for name, stack in theta.items()}
        for source in range(slab.owner(group[0][0]), slab.owner(group[-1][1] - 1) + 1):
            if source == comm.rank or not slab.counts[source]:
                continue
            for share in shares.values():
                share += comm.recv(share, source)
        for name, share in shares.items():
            found[name].append(share)
    return {name: torch.cat(shares) for name, shares in found.items() if shares}
