"""How the weights θ_j of the N layers follow from the parameters of a trunk: one each, or from a control grid in time.

    θ_j = Σ_c B_jc θ^c,    B_jc = β_c(t_j / T),    t_j = (j + ½) h,    c = 0, …, C − 1

The β_c are the B-splines of degree 0, 1 or 3 on C − degree equal cells of [0, T] with clamped ends, so the rows of B
sum to 1. Gradients are g^c = Σ_j B_jc g_j. A grid also says what ∫|θ|² and ∫|θ'|² are, for the regularisers.

Source of the splines: de Boor, A Practical Guide to Splines (1978).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from scipy.interpolate import BSpline
from torch import Tensor

from lpnet.errors import InputError
from lpnet.forms import Differences, Form, of_rows
from lpnet.slab import Slab
from lpnet.sums import flat, layer_squares

_DEGREES = {"constant": 0, "linear": 1, "spline": 3}


@dataclass(frozen=True)
class Controls:
    """A control grid of the weights, which is coarser than the layers.

    Args:
        points: number C of control points, at most the number of layers.
        basis: "constant" on C cells, "linear" between C nodes (the ends are nodes), or cubic "spline".
    """

    points: int = 32
    basis: Literal["constant", "linear", "spline"] = "linear"

    def __post_init__(self) -> None:
        if isinstance(self.points, bool) or not isinstance(self.points, int) or self.points < 1:
            raise InputError(f"controls.points: {self.points!r} given, a whole number of at least 1 allowed")
        if self.basis not in _DEGREES:
            raise InputError(f"controls.basis: {self.basis!r} given, one of {', '.join(_DEGREES)} allowed")

    @property
    def degree(self) -> int:
        """Degree of the splines, less where there are too few points for it."""
        return min(_DEGREES[self.basis], self.points - 1)

    @property
    def cells(self) -> int:
        """Number of equal cells that [0, T] has."""
        return self.points - self.degree

    def values(self, t: np.ndarray, derivative: int = 0) -> np.ndarray:
        """All β_c, or their derivatives, at the times t in [0, 1): (t, C)."""
        inner = np.arange(self.cells + 1) / self.cells
        knots = np.concatenate([np.zeros(self.degree), inner, np.ones(self.degree)])
        spline = BSpline(knots, np.eye(self.points), self.degree)
        return np.asarray(spline(t, nu=derivative))

    def derivative(self, T: float) -> np.ndarray:
        """L with ∫|θ'|² dt = Σ|Lθ|², (rows, C); for constant cells the line through their middles."""
        if self.degree == 0:
            return np.diff(np.eye(self.points), axis=0) * (self.points / T) ** 0.5
        nodes, weights = np.polynomial.legendre.leggauss(self.degree)  # exact: |θ'|² has degree 2 · degree − 2
        t = (np.arange(self.cells)[:, None] + (nodes + 1) / 2) / self.cells
        scale = np.tile(np.sqrt(weights / 2 / self.cells / T), self.cells)
        return self.values(t.ravel(), 1) * scale[:, None]


class Grid(ABC):
    """What there is to know of a trunk's parameters, name -> (rows, …), and how they become weights of layers.

    Attributes:
        count: number R of rows in all: layers, or control points.
        rows: numbers of those that this rank holds.
        slab: over which the rows are spread; None: every rank holds them all.
        spacing: time between two rows.
        axis: what a row belongs to.
        kind: what the rows are in all, which state dicts say too.
    """

    count: int
    rows: range
    slab: Slab | None
    spacing: float
    axis: str
    kind: str

    @abstractmethod
    def expand(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of this rank's layers, name -> (n, …), detached."""

    @abstractmethod
    def reduce(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Gradients of the parameters from those of this rank's layers, the transpose of `expand`; collective."""

    @abstractmethod
    def every_layer(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Weights of all layers on every rank, name -> (N, …); collective."""

    @abstractmethod
    def gather(self, row: Tensor) -> Tensor:
        """All rows of a parameter on every rank; collective."""

    @abstractmethod
    def own(self, value: Tensor) -> Tensor:
        """This rank's rows of a parameter that has all of them, or these rows already."""

    @abstractmethod
    def sums(self, parts: Tensor) -> Tensor:
        """Sum (rows, k) over the rows of all ranks, in float64 and in their order: (k,); collective."""

    @abstractmethod
    def to_columns(self, rows: Tensor) -> Tensor:
        """All rows of some columns, which are this rank's to work on: (rows, c) -> (R, c_r); collective."""

    @abstractmethod
    def to_rows(self, columns: Tensor, c: int) -> Tensor:
        """The inverse of `to_columns`, of c columns in all; collective."""

    @abstractmethod
    def square(self, v: Tensor) -> Form:
        """h Σ_j |v_j|² over the layers."""

    @abstractmethod
    def derivative(self, v: Tensor) -> Form:
        """∫|v'|² dt; collective (its parts and products are not)."""


def squares(grid: Grid, lists: Sequence[Sequence[Tensor]]) -> Tensor:
    """Σ|w|² of several lists of tensors like the parameters, over all ranks: (lists,), float64; collective."""
    n = len(grid.rows)
    parts = [sum((layer_squares(w) for w in one), torch.zeros(n, dtype=torch.float64)) for one in lists]
    return grid.sums(torch.stack(parts, dim=1))


class LayerGrid(Grid):
    """Every layer has weights of its own, on the rank that owns it."""

    axis = "layer"
    kind = "layers"

    def __init__(self, slab: Slab, T: float) -> None:
        self.slab: Slab = slab
        self.count, self.rows, self.spacing = slab.layers, range(slab.lo, slab.hi), T / slab.layers

    def expand(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: p.detach() for name, p in theta.items()}

    def reduce(self, grads: Sequence[Tensor]) -> list[Tensor]:
        return list(grads)

    def every_layer(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: self.gather(p) for name, p in theta.items()}

    def gather(self, row: Tensor) -> Tensor:
        return self.slab.gather(row)

    def own(self, value: Tensor) -> Tensor:
        whole = value.ndim > 0 and len(value) == self.slab.layers != len(self.rows)
        return value[self.slab.lo : self.slab.hi] if whole else value

    def sums(self, parts: Tensor) -> Tensor:
        return self.slab.sums(parts)

    def to_columns(self, rows: Tensor) -> Tensor:
        return self.slab.to_columns(rows)

    def to_rows(self, columns: Tensor, c: int) -> Tensor:
        return self.slab.to_layers(columns, c)

    def square(self, v: Tensor) -> Form:
        def product(scale: Tensor | float) -> Tensor:
            return torch.mul(v, self.spacing * scale, out=torch.empty_like(v, memory_format=torch.contiguous_format))

        return Form(lambda: self.spacing * layer_squares(v), product)

    def derivative(self, v: Tensor) -> Form:
        """Σ_j |v_{j+1} − v_j|² / h."""
        if not len(v):
            return Form(lambda: layer_squares(v), lambda scale: scale * v)
        before, after = self.slab.beside
        comm = self.slab.comm
        if before is not None:
            comm.send(v[0], before)
        if after is not None:
            comm.send(v[-1], after)
        following = comm.recv(v[0], after) if after is not None else v[-1]
        preceding = comm.recv(v[0], before) if before is not None else v[0]
        steps = Differences(flat(v), preceding.reshape(1, -1), following.reshape(1, -1))

        def product(scale: Tensor | float) -> Tensor:
            found = torch.empty_like(v, memory_format=torch.contiguous_format)
            steps.second(scale / self.spacing, flat(found))
            return found

        return Form(lambda: steps.squares() / self.spacing, product)


class ControlGrid(Grid):
    """All layers share a few control points, which every rank holds."""

    slab = None
    axis = "control point"

    def __init__(self, options: Controls, slab: Slab, T: float) -> None:
        if options.points > slab.layers:
            raise InputError(
                f"controls.points: {options.points} given for {slab.layers} layers, at most {slab.layers} allowed"
            )
        self._options, self._layers, self._T = options, slab, T
        self.kind = f"control points of splines of degree {options.degree}"
        self.count, self.rows = options.points, range(options.points)
        self.spacing = T / max(1, options.points - (options.degree > 0))
        B = options.values((np.arange(slab.layers) + 0.5) / slab.layers)
        self._B = torch.from_numpy(B)
        self._columns = [_columns(B[a:b]) for a, b in pairwise(slab.starts)]
        self._mine = self._columns[slab.comm.rank]
        lasts = [slab.owner(int(np.flatnonzero(column)[-1])) for column in B.T]
        self._done = np.bincount(lasts, minlength=slab.comm.size).tolist()  # rows that no later rank has
        self._cast: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def _matrix(self, like: Tensor) -> Tensor:
        """B of this rank's layers and the control points that they have, as dtype and device of a tensor."""
        key = like.dtype, like.device
        if key not in self._cast:
            own = self._B[self._layers.lo : self._layers.hi, slice(*self._mine)]
            self._cast[key] = own.to(like)
        return self._cast[key]

    def expand(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own = slice(*self._mine)
        return {name: torch.tensordot(self._matrix(p), p.detach()[own], 1) for name, p in theta.items()}

    def reduce(self, grads: Sequence[Tensor]) -> list[Tensor]:
        """Each row goes through the ranks whose layers have it, and then from the last of them to all."""
        comm = self._layers.comm
        flat = torch.cat([g.reshape(len(g), math.prod(g.shape[1:])) for g in grads], dim=1)
        before, after = self._layers.beside if len(flat) else (None, None)
        g = self._matrix(flat).T @ flat
        if before is not None and (shared := self._columns[before][1] - self._mine[0]):
            g[:shared] += comm.recv(g[:shared], before)
        if after is not None and (shared := self._mine[1] - self._columns[after][0]):
            comm.send(g[-shared:], after)
        whole = comm.allgather(g[: self._done[comm.rank]].cpu().numpy(), self._done)
        parts = torch.from_numpy(whole).to(flat).split([math.prod(p.shape[1:]) for p in grads], dim=1)
        return [part.reshape(-1, *p.shape[1:]) for part, p in zip(parts, grads, strict=True)]

    def every_layer(self, theta: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: torch.tensordot(self._B.to(p), p.detach(), 1) for name, p in theta.items()}

    def gather(self, row: Tensor) -> Tensor:
        return row.detach().clone()

    def own(self, value: Tensor) -> Tensor:
        return value

    def sums(self, parts: Tensor) -> Tensor:
        return parts.detach().to("cpu", torch.float64).sum(0)

    def to_columns(self, rows: Tensor) -> Tensor:
        return rows

    def to_rows(self, columns: Tensor, c: int) -> Tensor:
        return columns

    def square(self, v: Tensor) -> Form:
        return of_rows(self._square, v)

    def derivative(self, v: Tensor) -> Form:
        return of_rows(self._derivative, v)

    @cached_property
    def _square(self) -> Tensor:
        """R with RᵀR = h BᵀB."""
        h = self._T / self._layers.layers
        return torch.from_numpy(np.linalg.qr(h**0.5 * self._B.numpy(), mode="r"))

    @cached_property
    def _derivative(self) -> Tensor:
        return torch.from_numpy(self._options.derivative(self._T))


def grid_of(options: Controls | None, slab: Slab, T: float) -> Grid:
    """The control grid of these options; None: every layer has weights of its own.

    Raises:
        InputError: more control points than layers.
    """
    return LayerGrid(slab, T) if options is None else ControlGrid(options, slab, T)


def _columns(B: np.ndarray) -> tuple[int, int]:
    """The control points that some layers have: first, and end."""
    if not len(B):
        return 0, 0
    return int(np.flatnonzero(B[0])[0]), int(np.flatnonzero(B[-1])[-1]) + 1
