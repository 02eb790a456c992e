"""Sums over the numbers of each layer of stacked tensors, in float64, with the same bits however many layers there are.

A part of the layers is taken at once, so that its numbers in float64 stay in the cache and need no large memory.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

CHUNK = 2**15
"""Numbers that are worked on at once."""


def parts_of(stack: Tensor) -> Iterator[tuple[int, int]]:
    """Layers a, …, b − 1 of (n, size) that are worked on at once, in order; all on a GPU, and one part if n = 0."""
    n, size = stack.shape
    at_once = max(1, n if stack.is_cuda else CHUNK // max(1, size))
    return ((lo, min(n, lo + at_once)) for lo in range(0, max(1, n), at_once))


def flat(stack: Tensor) -> Tensor:
    """(n, ...) -> (n, size)."""
    return stack.reshape(len(stack), math.prod(stack.shape[1:]))


def layer_products(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """a_j·b_j of every layer j: pairs of (n, size) -> (n, pairs), in float64 on the host."""
    stacks = {id(t): t for pair in pairs for t in pair}
    sums = []
    for lo, hi in parts_of(pairs[0][0]):
        parts = {key: t[lo:hi].double() for key, t in stacks.items()}
        sums.append(torch.stack([row_sums(parts[id(a)] * parts[id(b)]) for a, b in pairs], dim=1))
    return torch.cat(sums).cpu()


def layer_squares(stack: Tensor) -> Tensor:
    """|θ_j|² of every layer of a stacked tensor, (n, ...) -> (n,), in float64 on the host."""
    rows = flat(stack)
    return layer_products([(rows, rows)])[:, 0]


def row_sums(rows: Tensor) -> Tensor:
    """(n, size) -> (n,): each the same bits for any n, where torch would sum a long single row in parts, by threads."""
    return rows.expand(2, -1).sum(1)[:1] if len(rows) == 1 else rows.sum(1)
