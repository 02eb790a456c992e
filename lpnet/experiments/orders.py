"""1. A residual network is forward Euler, and every stepper has its order.

    y_{j+1} = y_j + h σ(K_j y_j + b_j)        is forward Euler for        dy/dt = σ(K(t)y + b(t))

Errors |y_N − y(T)| / |y(T)| of all steppers against exact linear flows, y' = Ky, y' = Kᵀz with z' = −Ky, or y'' = −Ky.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lpnet import dynamics, steppers
from lpnet.experiments import style
from lpnet.experiments.base import Context, Result
from lpnet.experiments.models import F64, Linear, chain, constant, states

T, WIDTH, BATCH = 2.0, 4, 8
FLOOR = 1e-11  # errors below are rounding, and say nothing on the order
CIRCLE = (16, 64, 256)  # layers of the networks whose features are drawn


def run(context: Context) -> Result:
    """Measure orders, and compare a residual network with a trunk by Euler; collective."""
    K = 0.5 * torch.from_numpy(context.rng("orders").standard_normal((WIDTH, WIDTH)))
    y = torch.from_numpy(context.rng("orders/y").standard_normal((BATCH, WIDTH)))
    layers = context.pick((8, 16, 32, 64, 128, 256, 512, 1024), (8, 16, 32, 64, 128))
    kinds = cases()
    curves = {name: [_error(context, one, n, K, y) for n in layers] for name, one in kinds.items()}
    h = [T / n for n in layers]
    found: dict[str, dict[str, Any]] = {
        name: {"order": one.order, "measured": _slope(h, curves[name]), "errors": curves[name]}
        for name, one in kinds.items()
    }
    spirals = {n: _spiral(context, n) for n in CIRCLE}
    difference = _against_resnet(context)
    numbers = {
        "resnet_difference": difference,
        "h": h,
        "steppers": found,
        "largest_deviation": max(abs(f["measured"] - f["order"]) for f in found.values()),
        "radius_after_one_turn": {n: float(np.hypot(*s[-1])) for n, s in spirals.items()},
    }
    settings = {"T": T, "width": WIDTH, "batch": BATCH, "layers": layers, "dtype": "float64"}
    return Result(numbers, _see(numbers), lambda: _draw(numbers, spirals), settings)


def cases() -> dict[str, steppers.Stepper]:
    """All steppers of the registry, the staggered ones by both starts."""
    found: dict[str, steppers.Stepper] = {}
    for one in steppers.REGISTRY.values():
        starts = ("zero", "half") if "start" in {field.name for field in dataclasses.fields(one)} else ()
        options: list[dict[str, Any]] = [{"start": start} for start in starts] or [{}]
        found |= {" from ".join((one.__name__, *given.values())): one(**given) for given in options}
    return found


def _error(context: Context, stepper: steppers.Stepper, layers: int, K: Tensor, y: Tensor) -> float:
    trunk = constant(chain(context, Linear(WIDTH, stepper.terms), layers, T, stepper), {"K": K})
    exact = _flow(stepper.terms, K, y)
    with torch.no_grad():
        return float((trunk(y) - exact).norm() / exact.norm())


def _flow(terms: Sequence[str], K: Tensor, y: Tensor) -> Tensor:
    """y(T) by the matrix exponential, with z(0) = 0 or y'(0) = 0 where there is one."""
    if tuple(terms) == ("f",):
        return y @ torch.linalg.matrix_exp(T * K).T
    zero = torch.zeros_like(K)
    drift = torch.eye(len(K), dtype=F64) if "drift" not in terms else K.T
    both = torch.cat([torch.cat([zero, drift], 1), torch.cat([-K, zero], 1)])
    return y @ torch.linalg.matrix_exp(T * both)[: len(K), : len(K)].T


def _slope(h: Sequence[float], errors: Sequence[float]) -> float:
    """Slope of the finest half of what is above rounding."""
    pairs = [(a, b) for a, b in zip(h, errors, strict=True) if b > FLOOR]
    part = np.log(np.array(pairs[len(pairs) // 2 - 1 :]))
    return float(np.polyfit(part[:, 0], part[:, 1], 1)[0])


def _spiral(context: Context, layers: int) -> Any:
    """Features of one example, once around the circle of y' = (y₂, −y₁)."""
    trunk = constant(chain(context, Linear(2), layers, 2 * np.pi), {"K": torch.tensor([[0.0, 1.0], [-1.0, 0.0]])})
    return states(trunk, torch.tensor([[0.0, 1.0]], dtype=F64))[:, 0].numpy()


def _against_resnet(context: Context) -> float:
    """Largest difference between a trunk by Euler and a residual network written out."""
    layers = 64
    trunk = chain(context, dynamics.Dense(WIDTH), layers, T)
    rng = context.rng("orders/resnet")
    K, b = (torch.from_numpy(rng.standard_normal(shape)) for shape in ((layers, WIDTH, WIDTH), (layers, WIDTH)))
    trunk.load_state_dict({"K": K, "b": b})
    y = x = torch.from_numpy(rng.standard_normal((BATCH, WIDTH)))
    for j in range(layers):
        x = x + T / layers * torch.tanh(x @ K[j].T + b[j])
    with torch.no_grad():
        return float((trunk(y) - x).abs().max())


def _see(numbers: dict[str, Any]) -> str:
    found = numbers["steppers"]
    orders = ", ".join(f"{name} {one['measured']:.2f} ({one['order']})" for name, one in found.items())
    radius = numbers["radius_after_one_turn"]
    return (
        "A trunk of 64 layers by `Euler` is the residual network y + h tanh(Ky + b) written out: they differ by "
        f"{numbers['resnet_difference']:.0e}. Left: its layers are the steps of forward Euler along the flow, here "
        f"once around a circle; few layers end far outside (radius {radius[CIRCLE[0]]:.2f} with {CIRCLE[0]} layers, "
        f"{radius[CIRCLE[-1]]:.2f} with {CIRCLE[-1]}). Right: errors against exact linear flows fall with the order "
        f"of each stepper; measured slopes, with the orders in brackets: {orders}."
    )


def _draw(numbers: dict[str, Any], spirals: dict[int, Any]) -> Figure:
    figure, axes = style.figure("A residual network is forward Euler; each stepper has its order", (1, 2), (12.0, 4.6))
    left, right = axes[0]
    turn = np.linspace(0, 2 * np.pi, 200)
    left.plot(np.sin(turn), np.cos(turn), color="0.3", linewidth=1.2, label="exact flow")
    for i, (n, path) in enumerate(spirals.items()):
        left.plot(*path.T, **style.look(i, markersize=3.0), label=f"{n} layers")
    style.axis(left, "Features move through a ResNet (Euler)", "feature 1", "feature 2").set_aspect("equal")
    style.legend(left, loc="upper right")
    h = numbers["h"]
    for i, (name, one) in enumerate(numbers["steppers"].items()):
        right.plot(h, one["errors"], **style.look(i), label=f"{name}: {one['measured']:.2f}")
        style.slope(right, h, (h[0], one["errors"][0]), one["order"])
    style.log(right)
    style.axis(right, "Error of the features at T against an exact linear flow", "layer step h = T/N", "relative error")
    title = "stepper: measured order\n(dotted: stated order)"
    style.legend(right, title=title, title_fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure
