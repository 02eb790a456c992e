"""The bases of control grids, written down a second time: B-splines by their recursion, one value after the other."""

import numpy as np
import torch
from torch import Tensor

DEGREES = {"constant": 0, "linear": 1, "spline": 3}


def knots(points: int, degree: int) -> list[float]:
    """Equal cells of [0, 1], each end repeated."""
    cells = points - degree
    return [0.0] * degree + [i / cells for i in range(cells + 1)] + [1.0] * degree


def beta(c: int, k: int, u: list[float], t: float) -> float:
    """β_c of degree k at t (Cox, de Boor)."""
    if k == 0:
        return float(u[c] <= t < u[c + 1])
    left, right = u[c + k] - u[c], u[c + k + 1] - u[c + 1]
    found = (t - u[c]) / left * beta(c, k - 1, u, t) if left else 0.0
    return found + ((u[c + k + 1] - t) / right * beta(c + 1, k - 1, u, t) if right else 0.0)


def slope(c: int, k: int, u: list[float], t: float) -> float:
    """β_c′ of degree k ≥ 1 at t."""
    left, right = u[c + k] - u[c], u[c + k + 1] - u[c + 1]
    found = k * beta(c, k - 1, u, t) / left if left else 0.0
    return found - (k * beta(c + 1, k - 1, u, t) / right if right else 0.0)


def matrix(basis: str, points: int, layers: int) -> Tensor:
    """B of all layers, (N, C)."""
    k = min(DEGREES[basis], points - 1)
    times = [(2 * j + 1) / (2 * layers) for j in range(layers)]
    rows = [[beta(c, k, knots(points, k), t) for c in range(points)] for t in times]
    return torch.tensor(rows, dtype=torch.float64)


def energy(basis: str, points: int, T: float) -> Tensor:
    """Q with θᵀQθ = ∫|θ′|² dt, (C, C), by quadrature."""
    k = min(DEGREES[basis], points - 1)
    if k == 0:
        d = torch.eye(points, dtype=torch.float64).diff(dim=0)
        return points / T * d.T @ d
    nodes, weights = np.polynomial.legendre.leggauss(5)
    cells, total = points - k, torch.zeros(points, points, dtype=torch.float64)
    for cell in range(cells):
        for x, w in zip(nodes, weights, strict=True):
            t = (cell + (x + 1) / 2) / cells
            row = torch.tensor([slope(c, k, knots(points, k), t) / T for c in range(points)], dtype=torch.float64)
            total += w / 2 * T / cells * torch.outer(row, row)
    return total
