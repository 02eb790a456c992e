"""12. A reversible network can be undone only as long as its recursion is stable.

    Z⁺ = Z − αY,  Y⁺ = Y + βZ⁺        multiplies by the roots ξ of  ξ² − 2aξ + 1 = 0,   a = 1 − αβ/2

Both roots lie on the unit circle for 0 < αβ < 4 (double ones, and linear growth, at the ends); outside one of them is
larger than 1, and N steps forward and back amplify rounding errors to about eps |ξ|^(2N).
Source: Chang et al., Reversible architectures for arbitrarily deep residual neural networks (2018).
"""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpnet.experiments import style
from lpnet.experiments.base import Context, Result

PRODUCTS = (1.0, 3.9, 4.0, 4.1, 5.0)
TABLE = (10, 50, 100, 200)
EPS = float(np.finfo(np.float64).eps)


def run(context: Context) -> Result:
    """Roots over αβ, and round trips of N steps forward and back."""
    start = context.rng("limits").standard_normal((2, 1000))
    steps = np.unique(np.round(np.geomspace(1, 200, context.pick(40, 12))).astype(int))
    steps = np.union1d(steps, TABLE)
    products = np.linspace(-1, 6, 701)
    errors = {c: np.array([_round_trip(start, c, n) for n in steps]) for c in PRODUCTS}
    numbers = {
        "root": {c: _root(np.array([c]))[0] for c in PRODUCTS},
        "steps": steps,
        "round_trip_error": errors,
        "table": {c: {n: float(errors[c][steps == n][0]) for n in TABLE} for c in PRODUCTS},
        "predicted": {c: {n: EPS * _root(np.array([c]))[0] ** (2 * n) for n in TABLE} for c in PRODUCTS},
    }
    settings = {"examples": start.shape[1], "alpha": "√(αβ)", "beta": "√(αβ)", "dtype": "float64"}
    return Result(numbers, _see(numbers), lambda: _draw(products, steps, errors), settings)


def _root(product: np.ndarray) -> np.ndarray:
    """|ξ| of the larger root."""
    a = (1 - product / 2).astype(complex)
    root = np.sqrt(a * a - 1)
    return np.maximum(np.abs(a + root), np.abs(a - root))


def _round_trip(start: np.ndarray, product: float, steps: int) -> float:
    """Relative error of (Y, Z) after so many steps forward and back."""
    alpha = beta = np.sqrt(product)
    y, z = start
    for _ in range(steps):
        z = z - alpha * y
        y = y + beta * z
    for _ in range(steps):
        y = y - beta * z
        z = z + alpha * y
    return float(np.linalg.norm(np.stack([y, z]) - start) / np.linalg.norm(start))


def _see(numbers: dict[str, Any]) -> str:
    table = numbers["table"]
    rows = "; ".join(f"αβ = {c:g}: " + ", ".join(f"{e:.0e}" for e in table[c].values()) for c in PRODUCTS[:-1])
    last = PRODUCTS[3]
    return (
        "Left: the larger root of the recursion Z⁺ = Z − αY, Y⁺ = Y + βZ⁺ has size 1 exactly for 0 ≤ αβ ≤ 4 (the "
        "half-trace is 1 − αβ/2). Right: relative error after N steps forward and N back. They are at N = "
        f"{', '.join(map(str, TABLE))}: {rows}. Inside the limits a network can be undone at any depth; at αβ = 4 "
        f"the double root costs digits in proportion to a power of N; just outside, at {last:g}, where |ξ| = "
        f"{numbers['root'][last]:.2f}, the error follows eps |ξ|^(2N) (dotted) and little is left after 50 layers."
    )


def _draw(products: np.ndarray, steps: np.ndarray, errors: dict[float, np.ndarray]) -> Figure:
    figure, axes = style.figure("Limits of reversibility: 0 < αβ < 4", (1, 2))
    left, right = axes[0]
    left.axvspan(0, 4, color=style.GREEN, alpha=0.12, linewidth=0, label="stable: 0 < αβ < 4")
    left.plot(products, _root(products), color="black", linewidth=1.8, label="larger root |ξ|")
    for i, c in enumerate(PRODUCTS):
        left.plot(c, _root(np.array([c]))[0], color=style.OKABE_ITO[i], marker=style.MARKERS[i], linestyle="none")
    style.axis(left, "Growth of a layer", "αβ", "|ξ| per layer")
    style.legend(left, loc="upper center")
    for i, (c, row) in enumerate(errors.items()):
        _curve(right, i, c, steps, row)
    style.log(right)
    right.set_ylim(1e-17, 1e10)
    style.axis(right, "Round trip in float64", "layers N, forward and back", "relative error of (Y, Z)")
    style.legend(right, title="dotted: eps |ξ|²ᴺ", title_fontsize=9, loc="upper left")
    return figure


def _curve(ax: Axes, i: int, product: float, steps: np.ndarray, row: np.ndarray) -> None:
    ax.plot(steps, row, **style.look(i, markersize=3.5), label=f"αβ = {product:g}")
    root = _root(np.array([product]))[0]
    if root > 1 + 1e-12:
        ax.plot(steps, EPS * root ** (2.0 * steps), ":", color=style.OKABE_ITO[i], linewidth=1.0)
