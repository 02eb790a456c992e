"""Preconditioned conjugate gradients for B p = −g, stopped as Steihaug does; B and M are symmetric, M positive:

    p = 0,  r = −g,  z = M⁻¹ r,  d = z
    a = r·z / d·B d,    p ← p + a d,    r ← r − a B d,    z ← M⁻¹ r,    d ← z + (r·z / r·z before) d

until |r| ≤ tol |g|. Each p minimises the model g·p + ½ p·B p over a space that grows, so all are steps of descent.
Where the curvature d·B d is not positive, or |p|_M would leave the radius, the step ends on that boundary; without a
radius it ends where it is (in the first iteration with d, along which the model has no minimum).

Residuals are made orthogonal (in M⁻¹) to all earlier ones, which they are but for rounding. Without that a solve whose
largest eigenvalues have converged amplifies rounding up to the first digits, and would differ between numbers of ranks.
Memory: two vectors for each iteration.

Source: Steihaug, The conjugate gradient method and trust regions in large scale optimization (1983); |p|_M without
products with M: Conn, Gould, Toint, Trust-region methods (2000), section 7.5.1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lpnet.optim import vector
from lpnet.optim.linesearch import is_number, is_whole, require
from lpnet.optim.vector import Vector

Operator = Callable[[Vector], Vector]
Stop = Literal["tol", "iterations", "radius", "curvature"]


@dataclass(frozen=True)
class Report:
    """How a solve ended.

    Args:
        iterations: number of products with B.
        stop: the residual is below tol; all iterations are spent; the radius; a direction without curvature.
        residuals: |r|/|g|, at the start and after each full iteration.
    """

    iterations: int
    stop: Stop
    residuals: tuple[float, ...]


@dataclass(frozen=True)
class PCG:
    """Options of the solve.

    Args:
        iterations: at most so many.
        tol: on |B p + g|/|g|.
        radius: bound on |p|_M = (p·M p)^½ (|p| without a preconditioner); None: no bound.

    Raises:
        InputError: a value is not allowed.
    """

    iterations: int = 20
    tol: float = 1e-2
    radius: float | None = None

    def __post_init__(self) -> None:
        most, tol, radius = self.iterations, self.tol, self.radius
        require(is_whole(most) and most >= 1, "iterations", most, "a whole number of at least 1")
        require(is_number(tol) and 0 <= tol < 1, "tol", tol, "a number from 0 to below 1")
        right = radius is None or (is_number(radius) and 0 < radius < math.inf)
        require(right, "radius", radius, "a positive number or None")

    @torch.no_grad()
    def solve(
        self, B: Operator, g: Vector, parameters: Sequence[Tensor], M: Operator | None = None
    ) -> tuple[Vector, Report]:
        """p with B p ≈ −g; collective.

        Args:
            B: v → B v.
            g: the right-hand side, negated.
            parameters: say which parts of a vector are sharded.
            M: v → M⁻¹ v, the preconditioner; None: the identity.

        Returns:
            p, one of descent (p·g < 0) unless g = 0, and how the solve ended.
        """
        run = _Run(B, M or vector.copies, parameters, [-t for t in g])
        stop = self._stop(run)
        while stop is None:
            stop = run.iterate(self.radius) or self._stop(run)
        return run.p, Report(run.iterations, stop, tuple(run.residuals))

    def _stop(self, run: "_Run") -> Stop | None:
        if run.residuals[-1] <= self.tol:
            return "tol"
        return "iterations" if run.iterations == self.iterations else None


class _Run:
    """The vectors of the iteration; all numbers are those of rank 0."""

    def __init__(self, B: Operator, M: Operator, parameters: Sequence[Tensor], r: Vector) -> None:
        self.B, self.M, self.parameters, self.r = B, M, parameters, r
        self.p = [torch.zeros_like(t) for t in r]
        self.d = self.z = M(r)
        rr, self.rz = self.dots((r, r), (r, self.z))
        self.size, self.iterations = math.sqrt(rr), 0
        self.residuals = [1.0 if rr else 0.0]
        self.pp, self.pd, self.dd = 0.0, 0.0, self.rz  # |p|²_M, p·M d and |d|²_M
        self.earlier: list[tuple[Vector, Vector, float]] = []  # r, M⁻¹ r and r·M⁻¹ r of all iterations

    def dots(self, *pairs: tuple[Vector, Vector]) -> list[float]:
        return vector.of_rank_0(self.parameters, vector.dots(self.parameters, pairs)).tolist()

    def iterate(self, radius: float | None) -> Stop | None:
        """One step along d, and the next d; or why there is none."""
        self.iterations += 1
        Bd = self.B(self.d)
        curvature, d_size, Bd_size = self.dots((self.d, Bd), (self.d, self.d), (Bd, Bd))
        rounding = torch.finfo(self.d[0].dtype).eps * math.sqrt(d_size * Bd_size)
        if not curvature > rounding:
            if radius is not None:
                self._move(self._boundary(radius))
            elif self.iterations == 1:
                self._move(1.0)
            return "curvature"
        a = self.rz / curvature
        pp = self.pp + 2 * a * self.pd + a * a * self.dd
        if radius is not None and not pp < radius**2:
            self._move(self._boundary(radius))
            return "radius"
        self._move(a)
        self._turn(a, pp, Bd)
        return None

    def _move(self, a: float) -> None:
        self.p = vector.axpy(a, self.d, self.p)

    def _boundary(self, radius: float) -> float:
        """The length a ≥ 0 with |p + a d|_M = radius."""
        gap = radius**2 - self.pp
        root = math.sqrt(self.pd**2 + self.dd * gap)
        return gap / (root + self.pd) if self.pd > 0 else (root - self.pd) / self.dd

    def _turn(self, a: float, pp: float, Bd: Vector) -> None:
        """Residual and direction after a step of length a."""
        self.earlier.append((self.r, self.z, self.rz))
        self._orthogonal(vector.axpy(-a, Bd, self.r))
        rr, rz = self.dots((self.r, self.r), (self.r, self.z))
        b = rz / self.rz if self.rz else 0.0
        self.pp, self.pd, self.dd = pp, b * (self.pd + a * self.dd), rz + b * b * self.dd
        self.d, self.rz = vector.axpy(b, self.d, self.z), rz
        self.residuals.append(math.sqrt(rr) / self.size)

    def _orthogonal(self, r: Vector) -> None:
        """r and z of a new residual, without what rounding has brought back of earlier ones."""
        z = self.M(r)
        back = self.dots(*((r, z_i) for _, z_i, _ in self.earlier))
        shares = [-b / rz if rz else 0.0 for b, (_, _, rz) in zip(back, self.earlier, strict=True)]
        self.r = vector.combination([1.0, *shares], [r, *(r_i for r_i, _, _ in self.earlier)])
        self.z = vector.combination([1.0, *shares], [z, *(z_i for _, z_i, _ in self.earlier)])
