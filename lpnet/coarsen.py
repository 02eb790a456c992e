"""Coarse steps of a level from the weights of the layers: θ̄ of each part of each span.

A coarse step spans the layers a, …, b − 1, cut into s parts; θ̄ is the mean of a part's weights, or (injection) those of
its first layer. Where a span lies on several ranks, each sends its share to the rank that owns the step.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from lpnet.options import MGRIT
from lpnet.slab import Slab

Span = tuple[int, int]
Weights = dict[str, Tensor]


def parts(span: Span, samples: int) -> list[Span]:
    """A span cut into `samples` parts, as equal as can be (fewer where it has fewer layers)."""
    a, b = span
    s = min(samples, b - a)
    cuts = [a + part * (b - a) // s for part in range(s + 1)]
    return list(pairwise(cuts))


def _share(stack: Tensor, lo: int, part: Span, inject: bool) -> Tensor | None:
    """This rank's share of θ̄ of a part; None if it has none. `stack` holds the layers from lo on."""
    p, q = part
    first, end = max(p, lo), min(q, lo + len(stack))
    if inject:
        return stack[p - lo] if first == p < end else None
    return stack[first - lo : end - lo].sum(0) / (q - p) if first < end else None


def _shares(stack: Tensor, lo: int, spans: Sequence[Span], options: MGRIT) -> Tensor:
    """Shares of all parts of some spans, (parts, ...)."""
    cut = [part for span in spans for part in parts(span, options.samples)]
    shares = [_share(stack, lo, part, options.coarse_weights == "inject") for part in cut]
    zero = stack.new_zeros(stack.shape[1:])
    return torch.stack([zero if share is None else share for share in shares])


def restrict(theta: Weights, spans: Sequence[Span], owners: Sequence[int], slab: Slab, options: MGRIT) -> Weights:
    """Weights of all parts of this rank's coarse steps, name -> (parts, ...); collective if spans cross ranks.

    Args:
        theta: local layers' weights, name -> (n, ...).
        spans: the layers of every step of the level.
        owners: the rank of every step.
        slab: who owns the layers.
        options: samples and kind of coarse weights.
    """
    comm, lo = slab.comm, slab.lo
    mine = [span for span, owner in zip(spans, owners, strict=True) if owner == comm.rank]
    for span, owner in zip(spans, owners, strict=True):
        if owner != comm.rank and span[0] < slab.hi and span[1] > lo:
            for stack in theta.values():
                comm.send(_shares(stack, lo, [span], options), owner)
    if not mine:
        return {}
    found = {name: _shares(stack, lo, mine, options) for name, stack in theta.items()}
    row = 0
    for span in mine:
        count = len(parts(span, options.samples))
        for source in range(slab.owner(span[0]), slab.owner(span[1] - 1) + 1):
            if source == comm.rank or not slab.counts[source]:
                continue
            for stack in found.values():
                stack[row : row + count] += comm.recv(stack[row : row + count], source)
        row += count
    return found
