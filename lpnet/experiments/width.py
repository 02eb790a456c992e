"""2. Width: in the plane a continuous map cannot unlink what is linked.

    y_{j+1} = tanh(K_j y_j + b_j),  j = 0, …, 8,       logits = W y_9 + c

on ellipses, a disc inside a ring. With width 2 and regular K_j the network is a homeomorphism of the plane onto its
image: the image of the disc stays inside that of the ring, and no line separates them. A third dimension is enough.
Features start padded with zeros; the networks of all seeds are trained at once.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import cross_entropy, pad

from lpnet.data import DataOptions, DataSet, load
from lpnet.experiments import style
from lpnet.experiments.base import Context, Result

LAYERS, RATE = 9, 1e-2

Weights = tuple[Tensor, Tensor, Tensor, Tensor]  # K (layers, seeds, w, w), b (…, 1, w), W (seeds, w, classes), c


def run(context: Context) -> Result:
    """Train networks of several widths and seeds; every rank does the same."""
    widths = context.pick((2, 3, 4, 6, 8), (2, 3, 4))
    seeds, steps = context.pick(10, 5), context.pick(1200, 300)
    data = load(DataOptions("ellipses", train=context.pick(1000, 300)), context.seed)
    x, label = torch.from_numpy(data.train_x).float(), torch.from_numpy(data.train_y)
    nets = {w: _trained(_initial(w, seeds, data.classes, context), x, label, steps) for w in widths}
    accuracy = {w: _accuracy(net, data.val_x, data.val_y) for w, net in nets.items()}
    train = {w: _accuracy(net, data.train_x, data.train_y) for w, net in nets.items()}
    numbers = {
        "validation_accuracy": accuracy,
        "training_accuracy": train,
        "best": {w: float(row.max()) for w, row in accuracy.items()},
        "median": {w: float(np.median(row)) for w, row in accuracy.items()},
        "spread": {w: float(row.std()) for w, row in accuracy.items()},
    }
    settings = {"layers": LAYERS, "widths": widths, "seeds": seeds, "steps": steps, "optimizer": "Adam", "lr": RATE}
    settings |= {"data": "ellipses", "train": len(data.train_y), "validation": len(data.val_y)}
    best = {w: int(accuracy[w].argmax()) for w in widths}
    return Result(numbers, _see(numbers, seeds), lambda: _draw(numbers, nets, best, data), settings)


def _initial(width: int, seeds: int, classes: int, context: Context) -> Weights:
    rng = context.rng(f"width/{width}")
    K = rng.standard_normal((LAYERS, seeds, width, width)) * np.sqrt(1.5 / width)
    W = rng.standard_normal((seeds, width, classes)) / np.sqrt(width)
    found = (K, np.zeros((LAYERS, seeds, 1, width)), W, np.zeros((seeds, 1, classes)))
    tensors = [torch.from_numpy(a).float().requires_grad_() for a in found]
    return tensors[0], tensors[1], tensors[2], tensors[3]


def _logits(net: Weights, x: Tensor) -> Tensor:
    """(examples, 2) to (seeds, examples, classes)."""
    K, b, W, c = net
    y = pad(x, (0, K.shape[-1] - 2)).expand(K.shape[1], -1, -1)
    for j in range(LAYERS):
        y = torch.tanh(torch.baddbmm(b[j], y, K[j]))
    return torch.baddbmm(c, y, W)


def _trained(net: Weights, x: Tensor, label: Tensor, steps: int) -> Weights:
    optimizer = torch.optim.Adam(net, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    seeds = net[0].shape[1]
    for _ in range(steps):
        optimizer.zero_grad()
        logits = _logits(net, x)
        (seeds * cross_entropy(logits.flatten(0, 1), label.repeat(seeds))).backward()
        optimizer.step()
        schedule.step()
    return net


@torch.no_grad()
def _accuracy(net: Weights, x: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Of each seed."""
    found: np.ndarray = (_logits(net, torch.from_numpy(x).float()).argmax(2).numpy() == label).mean(axis=1)
    return found


def _see(numbers: dict[str, Any], seeds: int) -> str:
    best, median, spread = numbers["best"], numbers["median"], numbers["spread"]
    rows = "; ".join(f"width {w}: {best[w]:.1%} ({median[w]:.1%}, {spread[w]:.1%})" for w in best)
    return (
        f"Nine fully connected tanh layers on ellipses, a disc inside a ring, from {seeds} random starts for each "
        f"width. Validation accuracy of the best start, with median and standard deviation in brackets: {rows}. With "
        "width 2 every network is a deformation of the plane and has to cut the ring open somewhere (above right: "
        "the best one); a third dimension lets the disc be lifted out of the ring (below right)."
    )


def _draw(numbers: dict[str, Any], nets: dict[int, Weights], best: dict[int, int], data: DataSet) -> Figure:
    title = "Width: a deformation of the plane cannot take a disc out of a ring"
    figure, axes = style.mosaic(title, [["all", "2"], ["all", "3"]], (11.0, 5.6), width_ratios=(1, 1.2))
    left = axes["all"]
    accuracy = numbers["validation_accuracy"]
    for i, row in enumerate(accuracy.values()):
        left.plot(np.full(len(row), i), row, "o", color=style.BLUE, alpha=0.45, markersize=5, linewidth=0)
    left.plot([numbers["median"][w] for w in accuracy], color=style.RED, marker="_", markersize=16, label="median")
    left.plot([], [], "o", color=style.BLUE, alpha=0.45, label="one start")
    left.set_xticks(range(len(accuracy)), list(accuracy))
    left.yaxis.set_major_formatter(style.percent(1))
    style.axis(left, "Validation accuracy", "width", "correctly classified")
    style.legend(left, loc="lower right")
    for w in (2, 3):
        ax = axes[str(w)]
        _draw_regions(ax, nets[w], best[w], data)
        ax.set_title(f"Width {w}, best start: {numbers['best'][w]:.1%}", loc="left", fontsize=11)
    return figure


def _draw_regions(ax: Axes, net: Weights, seed: int, data: DataSet) -> None:
    @torch.no_grad()
    def predict(points: np.ndarray) -> np.ndarray:
        found: np.ndarray = _logits(net, torch.from_numpy(points).float())[seed].argmax(1).numpy()
        return found

    style.regions(ax, predict, data)
