"""Vectors of the space of all parameters, partly sharded over the layers, partly replicated:

    v = (v_1, …, v_k)        one tensor for each parameter, in their order, of its shape (this rank's layers)

Sums and multiples of vectors are local; inner products are collective, and the same bits for every number of ranks.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from lpnet.sharded import comm_of, dots

Vector = list[Tensor]

__all__ = [
    "Vector", "assign", "axpy", "combination", "copies", "dot", "dots", "gradients", "largest", "norm", "of_rank_0"
]  # fmt: skip


def copies(v: Iterable[Tensor]) -> Vector:
    """A vector with memory of its own, detached."""
    return [t.detach().clone(memory_format=torch.contiguous_format) for t in v]


def gradients(parameters: Iterable[Tensor]) -> Vector:
    """The parameters' gradients as a vector with memory of its own; zeros where there is none."""
    return copies(torch.zeros_like(p) if p.grad is None else p.grad for p in parameters)


def assign(parameters: Iterable[Tensor], v: Iterable[Tensor]) -> None:
    """Overwrite the parameters by a vector."""
    with torch.no_grad():
        for p, t in zip(parameters, v, strict=True):
            p.copy_(t)


def axpy(a: float, x: Iterable[Tensor], y: Iterable[Tensor]) -> Vector:
    """y + a x."""
    return [torch.add(v, u, alpha=a) for u, v in zip(x, y, strict=True)]


def combination(coefficients: Sequence[float], vectors: Sequence[Sequence[Tensor]]) -> Vector:
    """Σ_i c_i v_i, summed in float64: the terms may be much larger than their sum."""
    found = []
    for parts in zip(*vectors, strict=True):
        total = torch.zeros_like(parts[0], dtype=torch.float64)
        for c, part in zip(coefficients, parts, strict=True):
            total.add_(part, alpha=c)
        found.append(total.to(parts[0].dtype))
    return found


def dot(parameters: Sequence[Tensor], a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """⟨a, b⟩ over all ranks; collective. Several at once: `dots`."""
    return float(dots(parameters, [(a, b)])[0])


def norm(parameters: Sequence[Tensor], a: Sequence[Tensor]) -> float:
    """|a| over all ranks; collective."""
    return dot(parameters, a, a) ** 0.5


def largest(parameters: Iterable[Tensor], v: Sequence[Tensor]) -> float:
    """|v|_∞ over all ranks, not a number where an entry is none; collective."""
    mine = max((t.abs().max().item() for t in v if t.numel()), default=0.0)
    mine = math.nan if any(bool(t.isnan().any()) for t in v) else mine
    comm = next((comm for comm in map(comm_of, parameters) if comm is not None), None)
    return mine if comm is None else float(comm.allgather(np.array([mine]), [1] * comm.size).max())


def of_rank_0(parameters: Iterable[Tensor], values: Tensor) -> Tensor:
    """Overwrite `values` by those of rank 0, on the ranks that share the parameters' trunk; collective.

    Replicated numbers are equal on all ranks, but for rounding on mixed hardware. What decides how a search goes on
    must not differ at all: a rank that evaluates once more would wait for the others forever.
    """
    comm = next((comm for comm in map(comm_of, parameters) if comm is not None), None)
    return values if comm is None else comm.bcast_(values, 0)
