"""4. Discretise, then differentiate; or differentiate, then discretise: the second gradient is wrong by O(h).

    discrete      z_j = z_{j+1} + h J(y_j)ᵀ z_{j+1}           the adjoint of the steps: the gradient of what is computed
    continuous    z_j = z_{j+1} + h J(y_{j+1})ᵀ z_{j+1}       forward Euler on dz/dt = −Jᵀz, backwards in time

for forward Euler; J is the Jacobian of the dynamics. Both tend to the gradient of the flow as h → 0.
Source: Gholami, Keutzer, Biros, ANODE: unconditionally accurate memory-efficient gradients for neural ODEs (2019).
"""

from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lpnet import LayerParallel, Serial, dynamics, steppers
from lpnet.data import DataOptions, load
from lpnet.experiments import style
from lpnet.experiments.base import Context, Result
from lpnet.experiments.models import F64, autograd_gradient, ends, exact_loss, gradient, relative, smooth, vectors
from lpnet.optim import vector

Gradient = Literal["discrete", "continuous"]
GRADIENTS: tuple[Gradient, ...] = ("discrete", "continuous")
T, WIDTH, COARSE = 4.0, 6, 16
EPSILONS = np.logspace(-1, -7, 13)


def run(context: Context) -> Result:
    """Errors of both gradients over h, and what they do to a Taylor test; collective."""
    data = load(DataOptions("peaks", train=context.pick(500, 100), validation=50), context.seed)
    x, label = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    layers = context.pick((8, 16, 32, 64, 128, 256, 512), (8, 16, 32, 64))
    errors: dict[str, list[float]] = {kind: [_error(context, n, kind, x, label) for n in layers] for kind in GRADIENTS}
    h = [T / n for n in layers]
    taylor: dict[str, np.ndarray] = {kind: _taylor(context, kind, x, label) for kind in GRADIENTS}
    numbers = {
        "h": h,
        "error": errors,
        "slope": {"continuous": float(np.polyfit(np.log(h[-4:]), np.log(errors["continuous"][-4:]), 1)[0])},
        "taylor": {"epsilon": EPSILONS, "layers": COARSE, **taylor},
        "taylor_slope": {kind: _slope(taylor[kind]) for kind in GRADIENTS},
    }
    settings = {"T": T, "width": WIDTH, "dynamics": "dense", "stepper": "Euler", "examples": len(label)}
    return Result(numbers, _see(numbers), lambda: _draw(numbers), settings)


def _net(context: Context, layers: int, kind: Gradient) -> nn.Sequential:
    module, exact = dynamics.Dense(WIDTH), Serial()
    comm, euler = context.comm, steppers.Euler()
    trunk = LayerParallel(module, layers, T, euler, exact, exact, 0, comm, dtype=F64, gradient=kind)
    smooth(trunk, context.rng("adjoints"), 1.5)
    opening, classifier = ends(2, WIDTH, 5, context.rng("adjoints/ends"))
    return nn.Sequential(opening, trunk, classifier)


def _error(context: Context, layers: int, kind: Gradient, x: Tensor, label: Tensor) -> float:
    """Relative error of the gradient of all weights."""
    net = _net(context, layers, kind)
    return relative(net, gradient(net, x, label), autograd_gradient(net, x, label))


def _taylor(context: Context, kind: Gradient, x: Tensor, label: Tensor) -> np.ndarray:
    """|E(θ + εv) − E(θ) − ε⟨g, v⟩| over ε, relative to |⟨g, v⟩|."""
    net = _net(context, COARSE, kind)
    theta, g = list(net.parameters()), gradient(net, x, label)
    v, start = vectors(net, context.rng("adjoints/v")), vector.copies(theta)
    slope, E, found = vector.dot(theta, g, v), exact_loss(net, x, label), []
    for epsilon in EPSILONS:
        vector.assign(theta, vector.axpy(float(epsilon), v, start))
        found.append(abs(exact_loss(net, x, label) - E - epsilon * slope) / abs(slope))
    return np.array(found)


def _slope(remainder: np.ndarray) -> float:
    part = slice(5, 12)
    return float(np.polyfit(np.log(EPSILONS[part]), np.log(remainder[part]), 1)[0])


def _see(numbers: dict[str, Any]) -> str:
    errors, slopes, h = numbers["error"], numbers["taylor_slope"], numbers["h"]
    return (
        "Left: relative error of both gradients of all weights of the same ResNets. The discrete adjoint is the "
        f"gradient of what is computed, to rounding (at most {max(errors['discrete']):.0e}); the continuous adjoint, "
        f"discretised on its own, is off by {errors['continuous'][0]:.0%} at h = {h[0]:g} and by "
        f"{errors['continuous'][-1]:.1e} at h = {h[-1]:.2g}, in proportion to h (slope "
        f"{numbers['slope']['continuous']:.2f}). Right: a Taylor test on {COARSE} layers; with the discrete gradient "
        f"the remainder falls with slope {slopes['discrete']:.2f}, with the continuous one only with "
        f"{slopes['continuous']:.2f}, so it is not the gradient of this objective, and a line search near a minimum "
        "cannot trust it."
    )


def _draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = style.figure("Differentiating before discretising costs O(h) in the gradient", (1, 2))
    left, right = axes[0]
    for i, kind in enumerate(GRADIENTS):
        left.plot(numbers["h"], numbers["error"][kind], **style.look((0, 5)[i]), label=f"{kind} adjoint")
        right.plot(EPSILONS, numbers["taylor"][kind], **style.look((0, 5)[i]), label=f"{kind} adjoint")
    style.slope(left, numbers["h"], (numbers["h"][-1], numbers["error"]["continuous"][-1]), 1)
    for kind, order in (("discrete", 2), ("continuous", 1)):
        at = (EPSILONS[6], numbers["taylor"][kind][6])
        style.slope(right, EPSILONS, at, order)
    style.log(left)
    style.log(right)
    right.set_ylim(bottom=min(numbers["taylor"]["discrete"]) / 3)
    style.axis(left, "Against autograd, float64", "layer step h = T/N", "relative error of the gradient")
    title = f"Taylor test, {COARSE} layers"
    style.axis(right, title, "ε", "|E(θ+εv) − E − ε⟨g,v⟩| / |⟨g,v⟩|")
    style.legend(left, title="dotted: slope 1", title_fontsize=9, loc="center right")
    style.legend(right, title="dotted: slopes 1 and 2", title_fontsize=9, loc="upper left")
    return figure
