"""7. The loss surface of a network is smooth where h resolves its dynamics, and rough where it does not.

    E(θ₁, θ₂) = ½ |Y_N − C|²,   Y_{j+1} = Y_j + (10/N) tanh(K Y_j),   C = Y_200 of θ = (1, 1)

with K the circulant 3 × 3 matrix of first row (−θ₁ − θ₂, θ₁, θ₂), the same in all layers, and Y_0 normal.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lpnet.experiments import style
from lpnet.experiments.base import Context, Result
from lpnet.experiments.models import F64, chain, constant

T, FINE, EXAMPLES = 10.0, 200, 3
LAYERS = (5, 100)
TRUTH = (1.0, 1.0)


class Circulant(nn.Module):
    """f(y) = tanh(Ky) with two weights, as a user would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2))

    def forward(self, y: Tensor) -> Tensor:
        return torch.tanh(y @ matrix(self.weights).T)


def matrix(theta: Tensor) -> Tensor:
    """K (…, 3, 3) of θ (…, 2)."""
    a, b = theta.unbind(-1)
    d = -a - b
    return torch.stack([d, a, b, b, d, a, a, b, d], dim=-1).unflatten(-1, (3, 3))


def run(context: Context) -> Result:
    """Evaluate the surface on a grid, for few and many layers and several inputs; collective."""
    axis = torch.linspace(-2, 2, context.pick(81, 41), dtype=F64)
    theta = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1)
    draws = [torch.from_numpy(context.rng(f"surface/{i}").standard_normal((EXAMPLES, 3))) for i in range(3)]
    surfaces = {n: [_surface(theta, y, n) for y in draws] for n in LAYERS}
    places = {n: [_minima(surface) for surface in surfaces[n]] for n in LAYERS}
    numbers: dict[str, Any] = {
        "trunk_difference": _check(context, draws[0]),
        "grid_step": float(axis[1] - axis[0]),
        "local_minima": {n: [len(rows) for rows, _ in places[n]] for n in LAYERS},
        "local_minima_of_stable_flows": {n: [_stable(axis.numpy(), *place) for place in places[n]] for n in LAYERS},
        "lowest_at": {n: [_lowest(surface, theta) for surface in surfaces[n]] for n in LAYERS},
        "lowest": {n: [float(surface.min()) for surface in surfaces[n]] for n in LAYERS},
    }
    settings = {"T": T, "layers": LAYERS, "examples": EXAMPLES, "layers_of_C": FINE, "theta_of_C": TRUTH}
    return Result(numbers, _see(numbers), lambda: _draw(axis.numpy(), surfaces, places), settings)


def _propagate(theta: Tensor, y: Tensor, layers: int) -> Tensor:
    """Y_N of all θ at once: (…, 2) and (examples, 3) to (…, examples, 3)."""
    K = matrix(theta).transpose(-1, -2)
    x = y.expand(*theta.shape[:-1], *y.shape)
    for _ in range(layers):
        x = x + T / layers * torch.tanh(x @ K)
    return x


def _surface(theta: Tensor, y: Tensor, layers: int) -> np.ndarray:
    C = _propagate(torch.tensor(TRUTH, dtype=F64), y, FINE)
    found: np.ndarray = (0.5 * (_propagate(theta, y, layers) - C).square().sum(dim=(-1, -2))).numpy()
    return found


def _minima(E: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of the inner grid points that are below their eight neighbours."""
    inner = E[1:-1, 1:-1]
    below = np.ones(inner.shape, dtype=bool)
    n, m = E.shape
    for i, j in ((i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)):
        below &= inner < E[i : n - 2 + i, j : m - 2 + j]
    rows, columns = np.nonzero(below)
    return rows + 1, columns + 1


def _stable(axis: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> int:
    """How many of these places belong to flows that do not grow: K + Kᵀ has the eigenvalues 0 and −3 (θ₁ + θ₂)."""
    return int((axis[columns] + axis[rows] > 0).sum())


def _lowest(E: np.ndarray, theta: Tensor) -> list[float]:
    found: list[float] = theta.reshape(-1, 2)[int(E.argmin())].tolist()
    return found


def _check(context: Context, y: Tensor) -> float:
    """Largest difference of the vectorised recursion and a trunk, at the true weights."""
    theta = torch.tensor(TRUTH, dtype=F64)
    trunk = constant(chain(context, Circulant(), LAYERS[0], T), {"weights": theta})
    with torch.no_grad():
        return float((trunk(y) - _propagate(theta, y, LAYERS[0])).abs().max())


def _see(numbers: dict[str, Any]) -> str:
    few, many = LAYERS
    minima, at = numbers["local_minima"], numbers["lowest_at"]
    stable = numbers["local_minima_of_stable_flows"]
    places = ", ".join(f"({a:.2f}, {b:.2f})" for a, b in at[many])
    return (
        f"The same objective seen through {few} layers (above) and {many} layers (below), for three draws of the "
        f"inputs, on a grid of step {numbers['grid_step']:g}. With {few} layers (h = {T / few:g}) it has "
        f"{_listed(minima[few])} local minima, {_listed(stable[few])} of them above the diagonal θ₁ + θ₂ = 0, where "
        f"the flow does not grow, and the lowest is far from the weights (1, 1) that made the target. With {many} "
        f"layers (h = {T / many:g}) that half has {_listed(stable[many])}, at {places}, next to (1, 1): a flow that "
        "is resolved and stable gives an easy problem, whatever the inputs are. Below the diagonal features grow, "
        f"and there the surface stays rough with any number of layers ({_listed(minima[many])} local minima in all)."
    )


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:-1])) + f" and {numbers[-1]}"


def _draw(axis: np.ndarray, surfaces: dict[int, list[np.ndarray]], places: dict[int, Any]) -> Figure:
    title = "The loss surface is rough with few layers and smooth with many"
    figure, axes = style.figure(title, (2, 3), (10.5, 7.0), sharex=True, sharey=True)
    logs = {n: [np.log10(np.maximum(E, 1e-12)) for E in surfaces[n]] for n in LAYERS}
    low, high = -3.0, max(E.max() for E in logs[LAYERS[0]])
    image = None
    for row, n in zip(axes, LAYERS, strict=True):
        for i, ax in enumerate(row):
            extent = (axis[0], axis[-1], axis[0], axis[-1])
            image = ax.imshow(logs[n][i], origin="lower", extent=extent, vmin=low, vmax=high, cmap="viridis")
            rows, columns = places[n][i]
            ax.plot(axis[columns], axis[rows], ".", color="white", markersize=4)
            ax.plot(*TRUTH, "+", color=style.RED, markersize=12, markeredgewidth=2)
            above = _stable(axis, rows, columns)
            ax.axline((0, 0), slope=-1, color="white", linewidth=0.8, linestyle="--")
            counts = f"local minima: {above} above, {len(rows) - above} below"
            ax.set_title(f"N = {n}, inputs {i + 1}\n{counts}", fontsize=10)
    for ax in axes[:, 0]:
        ax.set_ylabel("θ₂")
    for ax in axes[-1]:
        ax.set_xlabel("θ₁")
    bar = figure.colorbar(image, ax=axes, shrink=0.8, extend="min")
    bar.set_label("log₁₀ E(θ₁, θ₂)\nwhite: local minima; + the weights of the target; dashed: stable above")
    return figure
