"""Quadratic forms of stacked weights, their values and products, a part of the numbers at once.

No large memory is needed but for the product itself.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lpnet.sums import CHUNK, flat, parts_of, row_sums


@dataclass(frozen=True)
class Form:
    """A form vᵀQv, of which nothing is kept but v.

    Args:
        parts: what adds up to it, in float64 on the host, (rows,).
        product: s Qv for a number s, as v.
    """

    parts: Callable[[], Tensor]
    product: Callable[[Tensor | float], Tensor]


class Differences:
    """v_{j+1} − v_j of stacked rows (n, size) with their neighbours (1, size), of a part of the rows at once."""

    def __init__(self, v: Tensor, preceding: Tensor, following: Tensor) -> None:
        self._v, self._preceding, self._following = v, preceding, following

    def _parts(self) -> Iterator[tuple[int, int, Tensor]]:
        """Rows a, …, b − 1, and their differences from before the first to behind the last, (b − a + 1, size)."""
        v, n = self._v, len(self._v)
        for a, b in parts_of(v):
            d = v.new_empty(b - a + 1, v.shape[1])
            torch.sub(v[a], v[a - 1] if a else self._preceding[0], out=d[0])
            torch.sub(v[a + 1 : b], v[a : b - 1], out=d[1:-1])
            torch.sub(v[b] if b < n else self._following[0], v[b - 1], out=d[-1])
            yield a, b, d

    def squares(self) -> Tensor:
        """|v_{j+1} − v_j|², (n,), in float64 on the host."""
        return torch.cat([row_sums(d[1:].double().square()) for _, _, d in self._parts()]).cpu()

    def second(self, scale: Tensor | float, to: Tensor) -> None:
        """s (2 v_j − v_{j−1} − v_{j+1}), (n, size)."""
        for a, b, d in self._parts():
            torch.sub(d[:-1], d[1:], out=to[a:b]).mul_(scale)


def of_rows(L: Tensor, v: Tensor) -> Form:
    """|Lv|² and LᵀLv, of some columns at once."""
    L, columns = L.to(v.device), flat(v).split(max(1, CHUNK // len(v)), dim=1)

    def parts() -> Tensor:
        zero = torch.zeros(len(L), dtype=torch.float64, device=v.device)
        return sum(((L @ one.double()).square().sum(1) for one in columns), zero).cpu()

    def product(scale: Tensor | float) -> Tensor:
        found = torch.empty_like(v, memory_format=torch.contiguous_format)
        for one, to in zip(columns, flat(found).split(columns[0].shape[1], dim=1), strict=True):
            to.copy_(scale * (L.T @ (L @ one.double())))
        return found

    return Form(parts, product)
