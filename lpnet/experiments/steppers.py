"""10. Stability of the discretisation: which steppers keep the size of features that the flow keeps.

    y' = ω(y₂, −y₁),    |y(t)| constant        forward Euler: |y_{j+1}| = √(1 + h²ω²) |y_j|, never stable

A stepper maps the state of this flow linearly; it is stable as long as the spectral radius ρ(hω) of that map is 1.
AB3 starts from f_{−1}, f_{−2} of two backward Heun steps with the weights of layer 0; Verlet and leapfrog half a step
back.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpnet.experiments import style
from lpnet.experiments.base import Context, Result
from lpnet.experiments.models import F64, Oscillator
from lpnet.plain import PlainLayer
from lpnet.steppers import REGISTRY, Stepper

TITLES = {"euler": "forward Euler", "ab3": "AB3", "rk4": "RK4", "verlet": "Verlet", "leapfrog": "leapfrog"}
KNOWN = {"euler": 0.0, "ab3": 0.72363, "rk4": 2.0 * np.sqrt(2.0), "verlet": 2.0, "leapfrog": 2.0}
SHOWN = (0.2, 1.0)  # hω of the two runs
ROUNDING = 1e-9


def run(context: Context) -> Result:
    """Run all steppers at two step sizes, and find the largest stable ones."""
    steps = 300
    grid = np.linspace(0.005, 3.2, context.pick(640, 160))
    names = [name for name in TITLES if name in REGISTRY]
    sizes = {w: {name: _sizes(REGISTRY[name](), w, steps) for name in names} for w in SHOWN}
    radii = {name: np.array([_radius(REGISTRY[name](), w) for w in grid]) for name in names}
    numbers = {
        "limit": {name: _limit(REGISTRY[name]()) for name in names},
        "known_limit": {name: KNOWN[name] for name in names},
        "size_at_end": {w: {name: float(row[-1]) for name, row in of.items()} for w, of in sizes.items()},
        "largest_size": {w: {name: float(row.max()) for name, row in of.items()} for w, of in sizes.items()},
    }
    settings = {"steps": steps, "h_omega": SHOWN, "start": "(1, 0)", "rounding": ROUNDING}
    return Result(numbers, _see(numbers, steps), lambda: _draw(sizes, grid, radii, numbers), settings)


def _layer(stepper: Stepper, w: float) -> PlainLayer:
    return PlainLayer(Oscillator(stepper.terms, w), stepper.stages(1.0), stepper.memory)


@torch.no_grad()
def _sizes(stepper: Stepper, w: float, steps: int) -> np.ndarray:
    """|y_j|, or |(y_j, z_j)| of partitioned methods, over the steps; h = 1, ω = w."""
    x = torch.zeros(stepper.memory, 1, 2, dtype=F64)
    x[0, 0, 0] = 1.0
    x = PlainLayer(Oscillator(stepper.terms, w), stepper.lift(1.0), stepper.memory)(x)
    layer, found = _layer(stepper, w), []
    for _ in range(steps + 1):
        moving = x[:2].clone() if "kick" in stepper.terms else x[:1].clone()
        if stepper.terms == ("kick",):
            moving[1] /= w  # y' = ω z
        found.append(float(moving.norm()))
        x = layer(x)
    return np.array(found)


@torch.no_grad()
def _radius(stepper: Stepper, w: float) -> float:
    """Spectral radius of one step on the whole state."""
    n = stepper.memory
    basis = torch.eye(2 * n, dtype=F64).view(2 * n, n, 2).transpose(0, 1)
    matrix = _layer(stepper, w)(basis).transpose(0, 1).reshape(2 * n, 2 * n)
    return float(torch.linalg.eigvals(matrix).abs().max())


def _limit(stepper: Stepper) -> float:
    """The largest hω up to which the radius is 1 (or less), by bisection; 0 where there is none."""
    low, high = 1e-2, 4.0
    if _radius(stepper, low) > 1 + ROUNDING:
        return 0.0
    while high - low > 1e-7:
        middle = (low + high) / 2
        low, high = (middle, high) if _radius(stepper, middle) <= 1 + ROUNDING else (low, middle)
    return low


def _see(numbers: dict[str, Any], steps: int) -> str:
    limits, sizes = numbers["limit"], numbers["size_at_end"]
    first, second = SHOWN
    measured = ", ".join(f"{TITLES[name]} {limits[name]:.5f}" for name in limits if limits[name])
    bounded = ", ".join(f"{TITLES[name]} {sizes[first][name]:.3f}" for name in sizes[first] if name != "euler")
    largest = max(numbers["largest_size"][second][name] for name in ("verlet", "leapfrog"))
    return (
        f"The features of y' = ω(y₂, −y₁) keep their size. At hω = {first:g} (left) forward Euler multiplies it by "
        f"{np.hypot(1, first):.3f} in each layer, to {sizes[first]['euler']:.0e} after {steps}; the others stay: "
        f"{bounded}. At hω = {second:g} (middle) AB3 is beyond its limit too and reaches {sizes[second]['ab3']:.0e}, "
        f"RK4 decays to {sizes[second]['rk4']:.0e}, and Verlet and leapfrog stay below {largest:.2f}. Right: the "
        f"spectral radius of a step; measured limits of hω: {measured}, forward Euler none. AB3 takes its history "
        "from two backward Heun steps with the weights of layer 0."
    )


def _draw(sizes: dict[float, Any], grid: np.ndarray, radii: dict[str, Any], numbers: dict[str, Any]) -> Figure:
    figure, axes = style.figure("Stability of the discretisation of an antisymmetric flow", (1, 3), (14.5, 4.6))
    for ax, (w, of) in zip(axes[0], sizes.items(), strict=False):
        _draw_sizes(ax, of)
        style.axis(ax, f"hω = {w:g}", "layer", "|y| (flow: 1)")
        ax.sharey(axes[0][0])
    right = axes[0][2]
    right.axhline(1, color="0.4", linewidth=0.8)
    for i, (name, row) in enumerate(radii.items()):
        limit = numbers["limit"][name]
        said = f"{TITLES[name]}: {f'{limit:.4g}' if limit else 'never'}"
        right.plot(grid, row, **_line(i, name), label=said)
    right.set_ylim(0.6, 1.6)
    style.axis(right, "Growth of a layer", "hω", "spectral radius ρ of a step")
    style.legend(right, title="stable up to hω =", title_fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _draw_sizes(ax: Axes, of: dict[str, np.ndarray]) -> None:
    for i, (name, row) in enumerate(of.items()):
        ax.plot(np.clip(row, 1e-3, 1e9), **_line(i, name))
    ax.set_yscale("log")
    ax.set_ylim(1e-2, 1e4)


def _line(i: int, name: str) -> dict[str, Any]:
    """Verlet as a broad band, since leapfrog lies on it."""
    broad = name == "verlet"
    look: dict[str, Any] = {"color": style.OKABE_ITO[i], "linestyle": "-" if broad else style.LINES[i % 4]}
    return look | {"linewidth": 5.0 if broad else 1.6, "alpha": 0.5 if broad else 1.0, "zorder": 2 if broad else 3}
