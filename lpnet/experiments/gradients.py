"""5. The adjoint is the gradient: against finite differences, autograd, and on the way of an iterative solve.

    z_j = (∂Φ_j/∂x)ᵀ z_{j+1},  g_j = (∂Φ_j/∂θ)ᵀ z_{j+1}          E(θ + εv) = E(θ) + ε⟨g, v⟩ + O(ε²)

E is the cross entropy of a network with a trunk between two linear layers, v a random direction of all weights.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, LayerParallel, dynamics, steppers
from lpnet.data import DataOptions, load
from lpnet.experiments import style
from lpnet.experiments.base import Context, Result
from lpnet.experiments.models import F64, autograd_gradient, ends, exact_loss, gradient, relative, smooth, vectors
from lpnet.optim import vector

T, WIDTH = 2.0, 6
EPSILONS = np.logspace(-1, -11, 21)


def run(context: Context) -> Result:
    """Taylor test, comparison with autograd for all pairs of dynamics and stepper, and MGRIT by cycles; collective."""
    data = load(DataOptions("peaks", train=context.pick(200, 50), validation=50), context.seed)
    x, label = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    taylor = _taylor(_net(context, "antisymmetric", "euler", 64), x, label, context)
    layers = context.pick(64, 16)
    pairs = {
        f"{kind.__name__} / {one.__name__}": _difference(_net(context, name, by, layers), x, label)
        for name, kind in dynamics.REGISTRY.items()
        for by, one in steppers.REGISTRY.items()
        if set(one.terms) == set(kind.terms)
    }
    cycles = list(range(context.pick(9, 5)))
    mgrit = {m: [_by_mgrit(context, m, k, x, label) for k in cycles] for m in (8, 32)}
    numbers = {
        "taylor": {"epsilon": EPSILONS, **taylor},
        "slopes": {key: _slope(taylor[key]) for key in ("value", "gradient")},
        "best_central_difference": float(np.min(taylor["central"])),
        "against_autograd": pairs,
        "largest_against_autograd": max(pairs.values()),
        "mgrit": {"cycles": cycles, "error": mgrit},
    }
    settings = {"T": T, "width": WIDTH, "examples": len(label), "dtype": "float64", "mgrit_layers": 256, "mgrit_T": 5}
    return Result(numbers, _see(numbers), lambda: _draw(numbers), settings)


def _net(context: Context, name: str, by: str, layers: int, T: float = T, solver: Any = None) -> nn.Sequential:
    solver = solver or lpnet.Serial()
    module, stepper = dynamics.REGISTRY[name](width=WIDTH), steppers.REGISTRY[by]()
    trunk = LayerParallel(module, layers, T, stepper, solver, solver, context.seed, context.comm, dtype=F64)
    smooth(trunk, context.rng(f"gradients/{name}"))
    opening, classifier = ends(2, WIDTH, 5, context.rng("gradients/ends"))
    return nn.Sequential(opening, trunk, classifier)


def _taylor(net: nn.Sequential, x: Tensor, label: Tensor, context: Context) -> dict[str, Any]:
    """Remainders of the Taylor series, and the error of central differences, over ε; relative to |⟨g, v⟩|."""
    theta, g = list(net.parameters()), gradient(net, x, label)
    v, start = vectors(net, context.rng("gradients/v")), vector.copies(theta)
    slope = vector.dot(theta, g, v)

    def at(epsilon: float) -> float:
        vector.assign(theta, vector.axpy(epsilon, v, start))
        return exact_loss(net, x, label)

    E = at(0.0)
    plus, minus = (np.array([at(sign * e) for e in EPSILONS]) for sign in (1, -1))
    vector.assign(theta, start)
    scale = abs(slope)
    return {
        "value": np.abs(plus - E) / scale,
        "gradient": np.abs(plus - E - EPSILONS * slope) / scale,
        "central": np.abs((plus - minus) / (2 * EPSILONS) - slope) / scale,
    }


def _slope(remainder: np.ndarray) -> float:
    part = slice(2, 7)  # small enough for the series, too large for rounding
    return float(np.polyfit(np.log(EPSILONS[part]), np.log(remainder[part]), 1)[0])


def _difference(net: nn.Sequential, x: Tensor, label: Tensor) -> float:
    """Relative difference of the gradient of all weights from autograd's; collective."""
    return relative(net, gradient(net, x, label), autograd_gradient(net, x, label))


def _by_mgrit(context: Context, m: int, cycles: int, x: Tensor, label: Tensor) -> float:
    """Relative error of the gradient after so many cycles each way."""
    net = _net(context, "dense", "euler", 256, 5.0, MGRIT(coarsening=m, cycles=cycles))
    g = gradient(net, x, label)
    with lpnet.exact(net):
        return relative(net, g, gradient(net, x, label))


def _see(numbers: dict[str, Any]) -> str:
    slopes, mgrit = numbers["slopes"], numbers["mgrit"]["error"]
    last = numbers["mgrit"]["cycles"][-1]
    return (
        f"Left: along a random direction of all weights, E(θ + εv) − E(θ) falls with slope {slopes['value']:.2f} in "
        f"ε, and what is left after the gradient is taken off with slope {slopes['gradient']:.2f}, until rounding; "
        f"central differences agree with the adjoint to {numbers['best_central_difference']:.0e} at their best. "
        "Middle: for every pair of dynamics and stepper the gradient of all weights equals autograd's to rounding, "
        f"at most {numbers['largest_against_autograd']:.0e}. Right: solved by MGRIT the gradient of 256 layers "
        f"converges to the same numbers, from {mgrit[32][0]:.0e} without a cycle to {mgrit[32][last]:.0e} after "
        f"{last} cycles with intervals of 32 layers, and to {mgrit[8][last]:.0e} with 8."
    )


def _draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = style.figure("The adjoint is the gradient", (1, 3), (13.5, 4.8), width_ratios=(1, 1, 1))
    _draw_taylor(axes[0][0], numbers["taylor"])
    pairs = numbers["against_autograd"]
    middle, right = axes[0][1:]
    middle.plot(list(pairs.values()), range(len(pairs)), "o", color=style.BLUE)
    middle.set_yticks(range(len(pairs)), list(pairs), fontsize=8)
    middle.invert_yaxis()
    middle.set_xscale("log")
    middle.set_xlim(1e-17, 1e-13)
    style.axis(middle, "Against autograd, float64", "relative difference of the gradients", "")
    for i, (m, errors) in enumerate(numbers["mgrit"]["error"].items()):
        right.plot(numbers["mgrit"]["cycles"], errors, **style.look(i), label=f"intervals of {m} layers")
    style.log(right, "y")
    style.axis(right, "By MGRIT, 256 layers, T = 5", "cycles, forward and adjoint", "relative error of the gradient")
    style.legend(right)
    return figure


def _draw_taylor(ax: Axes, taylor: dict[str, Any]) -> None:
    labels = {"value": "|E(θ+εv) − E|", "gradient": "|E(θ+εv) − E − ε⟨g,v⟩|", "central": "error of central difference"}
    for i, (key, label) in enumerate(labels.items()):
        ax.plot(taylor["epsilon"], np.maximum(taylor[key], 1e-18), **style.look(i, markersize=3.5), label=label)
    for key, order in (("value", 1), ("gradient", 2)):
        style.slope(ax, taylor["epsilon"], (taylor["epsilon"][2], taylor[key][2]), order)
    style.log(ax)
    style.axis(ax, "Against finite differences", "ε", "relative to |⟨g, v⟩|")
    style.legend(ax, title="dotted: slopes 1 and 2", title_fontsize=9, fontsize=8, loc="lower right")
