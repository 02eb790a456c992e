"""13. Peaks with an unstable, a medium and a stable network, 32 and then 64 layers.

    unstable    dy/dt = σ(Ky + b)                                      AB3,     T = 10
    medium      dz/dt = −σ(Ky + b),  dy/dt = σ(Kᵀz + b)                Verlet,  T = 5
    stable      dy/dt = σ(Ky + b)                                      AB3,     T = 0.2

How much the flow may move the features is a question of T; how well it can be trained, too.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from torch import nn

from lpnet.experiments import style
from lpnet.experiments.base import Context, Result
from lpnet.experiments.course import Course, Net, Problem, Task, percent
from lpnet.experiments.ladder import dots
from lpnet.experiments.models import states
from lpnet.multilevel.prolong import only_trunk
from lpnet.steppers import AB3, Verlet

TITLE = "Peaks: how long a flow should last"
BASELINE = 0.969  # validation, after 36 steps of Newton–PCG, width 8, 8 layers
TIMES = (0.0, 1 / 3, 2 / 3, 1.0)
POINTS = 400


@dataclasses.dataclass
class Trained:
    """A course, what was measured on the way, and states at some times.

    Attributes:
        course: of the training.
        accuracy: on the validation points, after each outer step.
        frames: (times, points, 2) principal components of the states.
        moved: |y_N − y_0| / |y_0|.
    """

    course: Course
    accuracy: list[float]
    frames: np.ndarray
    moved: float


def tasks(context: Context) -> dict[str, Task]:
    """Name -> task."""
    stable = Task(
        "dense",
        width=8,
        T=0.2,
        layers=context.pick((32, 64), (8, 16)),
        steps=context.pick((20, 8), (5, 2)),
        stepper=AB3(),
        ddt=1e-4,
        opening="linear",
        pcg=(context.pick(15, 8), 1e-2),
    )
    return {
        "unstable: AB3, T = 10": dataclasses.replace(stable, T=10.0),
        "medium: Verlet, T = 5": dataclasses.replace(stable, kind="hamiltonian", T=5.0, stepper=Verlet()),
        "stable: AB3, T = 0.2": stable,
    }


def run(context: Context) -> Result:
    """Train the three on two levels; collective."""
    problem = Problem(context, "peaks", train=context.pick(2000, 500), validation=2000)
    made = tasks(context)
    found = {name: _trained(problem, task) for name, task in made.items()}
    numbers: dict[str, Any] = {
        name: {
            "validation_accuracy": one.accuracy[-1],
            "train_accuracy": problem.accuracy(one.course.net, "train"),
            "objective": one.course.objective[-1],
            "levels": one.course.rows(),
            "features_moved": one.moved,
            "outer_steps": len(one.course.reports),
        }
        for name, one in found.items()
    }
    labels = problem.train[1][_some(problem)].numpy()
    settings = {"tasks": {name: str(task) for name, task in made.items()}, "train": len(problem.data.train_y)}
    return Result(numbers, _see(numbers), lambda: _draw(found, labels), settings)


def _trained(problem: Problem, task: Task) -> Trained:
    accuracy: list[float] = []

    def watch(net: nn.Module, layers: int, step: int) -> None:
        accuracy.append(problem.accuracy(net))

    course = problem.course(task, watch)
    frames, moved = _frames(problem, course.net)
    return Trained(course, [problem.accuracy(problem.net(task)), *accuracy], frames, moved)


def _some(problem: Problem) -> np.ndarray:
    n = len(problem.train[0])
    return np.unique(np.linspace(0, n - 1, min(n, POINTS)).astype(int))


@torch.no_grad()
def _frames(problem: Problem, net: Net) -> tuple[np.ndarray, float]:
    """States in the plane of the two principal components of all of them; collective."""
    opening, trunk = net[0], only_trunk(net)
    x = states(trunk, opening(problem.train[0][_some(problem)]))
    shown = torch.stack([x[round(t * (len(x) - 1))] for t in TIMES])
    flat = shown.flatten(0, 1)
    _, _, axes = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    return ((shown - flat.mean(0)) @ axes[:2].T).numpy(), float((x[-1] - x[0]).norm() / x[0].norm())


def _see(numbers: dict[str, Any]) -> str:
    parts = [
        f"{name} ends at objective {one['objective']:.3f} after {one['outer_steps']} outer steps with "
        f"{percent(one['validation_accuracy'])} validation accuracy, its features having moved by "
        f"{one['features_moved']:.2g} times their size"
        for name, one in numbers.items()
    ]
    jumps = ", ".join(f"{100 * one['levels'][1]['jump']:.1f} %" for one in numbers.values())
    layers = [row["layers"] for row in next(iter(numbers.values()))["levels"]]
    return (
        f"Convergence on {layers[0]} and then {layers[1]} layers: {'; '.join(parts)} (published: "
        f"{percent(BASELINE)} after 36 steps, width 8, 8 layers). A long flow can fold the "
        "five classes apart, a short one hardly moves them. The price is seen at the prolongation, where the objective "
        f"jumps by {jumps}: the longer the flow, the finer the steps that it needs. Below, the features on their way "
        "through the layers, in the plane of their two principal components."
    )


def _draw(found: dict[str, Trained], labels: np.ndarray) -> Figure:
    figure, axes = style.figure(TITLE, (4, 4), (13.0, 13.5))
    grid = axes[0, 0].get_gridspec()
    for ax in axes[0]:
        ax.remove()
    _curves(figure.add_subplot(grid[0, :2]), figure.add_subplot(grid[0, 2:]), found)
    for row, (name, one) in zip(axes[1:], found.items(), strict=True):
        reach = np.abs(one.frames).reshape(-1, 2).max(0) * 1.05
        for ax, t, frame in zip(row, TIMES, one.frames, strict=True):
            for c in range(int(labels.max()) + 1):
                ax.plot(*frame[labels == c].T, label=f"class {c}", **dots(c))
            ax.set_xlim(-reach[0], reach[0])
            ax.set_ylim(-reach[1], reach[1])
            style.axis(ax, "" if t else name, "component 1", "component 2" if not t else "")
            ax.text(0.97, 0.97, f"t = {t:.2g} T", transform=ax.transAxes, ha="right", va="top", fontsize=9)
    figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _curves(left: Axes, right: Axes, found: dict[str, Trained]) -> None:
    style.axis(left, "Objective", "outer step of Newton–PCG", "cross entropy + regularisers")
    style.axis(right, "Validation accuracy", "outer step of Newton–PCG", "correctly classified")
    for i, (name, one) in enumerate(found.items()):
        first = one.course.level.count(one.course.levels[0].layers) - 1
        value, jump = one.course.objective, one.course.levels[1].start
        steps = [*range(first + 1), first, *range(first + 1, len(value))]
        left.plot(steps, [*value[: first + 1], jump, *value[first + 1 :]], label=name, **style.look(i, marker=None))
        left.plot(first, jump, **style.look(i))
        right.plot(range(len(one.accuracy)), one.accuracy, label=name, **style.look(i, marker=None))
    layers = next(iter(found.values())).course.levels
    style.log(left, "y")
    style.legend(left, title=f"markers: prolongated from {layers[0].layers} to {layers[1].layers} layers")
    right.axhline(BASELINE, color=style.GREY, linewidth=1.0, linestyle="--", label="published, 8 layers: 96.9 %")
    right.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    style.legend(right, loc="lower right")
