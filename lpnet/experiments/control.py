"""3. Supervised learning is optimal control: steer the features so that a linear classifier can tell the classes.

    min over θ, W   E(W y(T), c) + ½α ∫|θ|² dt + ½β ∫|θ'|² dt        subject to   y' = tanh(K(t)y + b(t)),  y(0) = Lx

θ(t) = (K, b)(t) is the control, the examples x are the initial values of as many trajectories; validation examples are
steered by the same control without having had a say in it.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lpnet
from lpnet import regularizers
from lpnet.data import DataOptions, DataSet, load
from lpnet.experiments import style
from lpnet.experiments.base import Context, Result
from lpnet.experiments.models import F64, accuracy, classes_of, ends, exact_loss
from lpnet.oneshot import Descent
from lpnet.optim import LBFGS

LAYERS, T, WIDTH = 32, 5.0, 8
ALPHA, BETA = 1e-6, 1e-4


def run(context: Context) -> Result:
    """Train by L-BFGS, and keep losses, accuracies and the control; collective."""
    steps, every = context.pick(300, 60), context.pick(5, 5)
    data = load(DataOptions("peaks", train=context.pick(2000, 400), validation=context.pick(2000, 400)), context.seed)
    net, trunk = _net(context, data.classes)
    penalties = (regularizers.Tikhonov(trunk, ALPHA), regularizers.TimeDerivative(trunk, BETA))
    first = trunk.gather_state_dict()["K"].numpy()
    curves = _train(net, penalties, data, steps, every)
    last = trunk.gather_state_dict()["K"].numpy()
    found = {key: row[-1] for key, row in curves.items()}
    sizes = {"largest_start": float(np.abs(first).max()), "largest": float(np.abs(last).max())}
    numbers = {**found, **sizes, "curves": curves}
    settings = {"layers": LAYERS, "T": T, "width": WIDTH, "alpha": ALPHA, "beta": BETA, "optimizer": "L-BFGS"}
    settings |= {"data": "peaks", "train": len(data.train_y), "validation": len(data.val_y), "steps": steps}
    twin = net[0], trunk.as_sequential(), net[2]
    predict = classes_of(nn.Sequential(*twin))
    return Result(numbers, _see(numbers), lambda: _draw(curves, (first, last), predict, data), settings)


def _net(context: Context, classes: int) -> tuple[nn.Sequential, lpnet.LayerParallel]:
    exact = lpnet.Serial()
    trunk = lpnet.LayerParallel(
        lpnet.dynamics.Dense(WIDTH), LAYERS, T, None, exact, exact, context.seed, context.comm, dtype=F64
    )
    opening, classifier = ends(2, WIDTH, classes, context.rng("control/ends"))
    return nn.Sequential(opening, trunk, classifier), trunk


def _train(
    net: nn.Sequential, penalties: tuple[Any, ...], data: DataSet, steps: int, every: int
) -> dict[str, list[float]]:
    x, label = torch.from_numpy(data.train_x), torch.from_numpy(data.train_y)
    others = torch.from_numpy(data.val_x), torch.from_numpy(data.val_y)

    def objective(logits: Tensor, label: Tensor) -> Tensor:
        return sum((penalty() for penalty in penalties), cross_entropy(logits, label))

    descent = Descent(net, LBFGS(net.parameters(), memory=20), objective)
    curves: dict[str, list[float]] = {key: [] for key in ("step", "train_loss", "val_loss", "regularisation")}
    curves |= {"train_accuracy": [], "val_accuracy": []}
    for step in range(steps + 1):
        if step % every == 0:
            curves["step"].append(step)
            curves["regularisation"].append(sum(penalty().item() for penalty in penalties))
            for key, pair in (("train", (x, label)), ("val", others)):
                curves[f"{key}_loss"].append(exact_loss(net, *pair))
                curves[f"{key}_accuracy"].append(accuracy(net, *pair))
        if step < steps:
            descent.step(x, label)
    return curves


def _see(numbers: dict[str, Any]) -> str:
    curves = numbers["curves"]
    return (
        f"A network of {LAYERS} layers on peaks, trained by L-BFGS as the optimal control problem that it is: the "
        f"objective is cross entropy plus the cost of the control, ½α∫|θ|² + ½β∫|θ'|². In {numbers['step']} steps "
        f"the cross entropy falls from {curves['train_loss'][0]:.2f} to {numbers['train_loss']:.3f} on training and "
        f"{numbers['val_loss']:.3f} on validation examples, at a cost of the control of "
        f"{numbers['regularisation']:.4f}; {numbers['train_accuracy']:.1%} and {numbers['val_accuracy']:.1%} are "
        f"correctly classified. Below left: the control itself, all {WIDTH * WIDTH} entries of K(t); constant at the "
        f"start (at most {numbers['largest_start']:.1f}), it ends as smooth curves of size up to "
        f"{numbers['largest']:.1f}, since rough ones would be expensive."
    )


def _draw(curves: dict[str, list[float]], K: tuple[np.ndarray, np.ndarray], predict: Any, data: DataSet) -> Figure:
    figure, axes = style.mosaic(
        "Supervised learning as optimal control (peaks)", [["loss", "accuracy"], ["control", "regions"]], (11.0, 8.2)
    )
    step = curves["step"]
    rows = (("train_loss", "cross entropy, training", 0), ("val_loss", "cross entropy, validation", 5))
    for key, label, i in (*rows, ("regularisation", "cost of the control", 2)):
        axes["loss"].plot(step, curves[key], color=style.OKABE_ITO[i], linestyle=style.LINES[i % 4], label=label)
    for key, label, i in (("train_accuracy", "training", 0), ("val_accuracy", "validation", 5)):
        said = f"{label}: {curves[key][-1]:.1%}"
        axes["accuracy"].plot(step, curves[key], color=style.OKABE_ITO[i], linestyle=style.LINES[i % 4], label=said)
    axes["accuracy"].yaxis.set_major_formatter(style.percent())
    style.axis(axes["loss"], "Objective: fit and cost of the control", "step of L-BFGS", "value (dimensionless)")
    style.log(axes["loss"], "y")
    style.axis(axes["accuracy"], "Accuracy", "step of L-BFGS", "correctly classified")
    t = (np.arange(LAYERS) + 0.5) * T / LAYERS
    for i in range(WIDTH * WIDTH):
        axes["control"].plot(t, K[1].reshape(LAYERS, -1)[:, i], color=style.OKABE_ITO[i // WIDTH], linewidth=0.8)
    style.axis(axes["control"], "The control K(t), a colour a row", "time t", "entries of K (1/time)")
    style.regions(axes["regions"], predict, data)
    axes["regions"].set_title("Classes of the plane, and training points", loc="left", fontsize=11)
    for key in ("loss", "accuracy"):
        style.legend(axes[key])
    return figure
