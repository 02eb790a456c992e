"""Coarse steps of a level from the weights of the layers, by the rows of coefficients that their stepper asks for.

    θ_row = Σ_j c_{row, j} θ_j        j = a, …, b − 1 the layers of a step's span, such as their mean

Where a span lies on several ranks, each sends its share to the rank that owns the step.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from lpnet.slab import Slab

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


def _share(stack: Tensor, lo: int, span: Span, rows: np.ndarray) -> Tensor:
    """What this rank's layers bring to the weights of a step, (rows, ...); `stack` holds the layers from lo on."""
    a, b = span
    first, end = max(a, lo), min(b, lo + len(stack))
    if first >= end:
        return stack.new_zeros(len(rows), *stack.shape[1:])
    own = torch.from_numpy(rows[:, first - a : end - a]).to(stack)
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
    for span, owner in zip(spans, owners, strict=True):
        if owner != comm.rank:
            continue
        shares = {name: _share(stack, lo, span, rows(span)) for name, stack in theta.items()}
        for source in range(slab.owner(span[0]), slab.owner(span[1] - 1) + 1):
            if source == comm.rank or not slab.counts[source]:
                continue
            for share in shares.values():
                share += comm.recv(share, source)
        for name, share in shares.items():
            found[name].append(share)
    return {name: torch.cat(shares) for name, shares in found.items() if shares}
