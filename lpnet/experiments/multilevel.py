"""6. Multilevel training: from few layers to many, and when it pays.

    N → 2N,  h → h/2,  θ linear in time

Left and middle: a network whose steps resolve its dynamics, against the same network from scratch at equal work.
Right: one whose first steps (h = 1.25) do not; what it has learnt belongs to the steps and not to the flow.
"""

import dataclasses
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lpnet.experiments import style
from lpnet.experiments.base import Context, Result
from lpnet.experiments.course import Course, Problem, Task, percent
from lpnet.experiments.ladder import with_jumps
from lpnet.steppers import Verlet

TITLE = "Multilevel training: a good start for the price of few layers"


def tasks(context: Context) -> tuple[Task, Task]:
    """The network that is resolved, and the one that is not at first."""
    resolved = Task(
        "antisymmetric",
        width=8,
        T=1.5,
        layers=context.pick((32, 64, 128, 256), (16, 32)),
        steps=context.pick((30, 8, 5, 3), (8, 3)),
        ddt=1e-2,
        tikhonov=1e-4,
        opening="linear",
    )
    coarse = Task(
        "hamiltonian",
        width=2,
        T=20.0,
        layers=context.pick((16, 32, 64, 128, 256, 512), (16, 32)),
        steps=context.pick((40, 15, 12, 8, 5, 3), (25, 5)),
        stepper=Verlet(),
        ddt=5e-4,
        start=1.0,
    )
    return resolved, coarse


def run(context: Context) -> Result:
    """Train both, and the first from scratch too; collective."""
    resolved, coarse = tasks(context)
    peaks = Problem(context, "peaks", train=context.pick(1000, 250), validation=2000)
    multilevel = peaks.course(resolved)
    scratch = _scratch(peaks, resolved, multilevel.work[-1])
    lost = Problem(context, "swissroll").course(coarse)
    numbers: dict[str, Any] = {
        "multilevel": {
            "objective": multilevel.objective[-1],
            "work": multilevel.work[-1],
            "accuracy": peaks.accuracy(multilevel.net),
            "levels": multilevel.rows(),
            "largest_jump": max(abs(one.jump or 0.0) for one in multilevel.levels),
        },
        "scratch": {
            "objective": scratch.objective[-1],
            "work": scratch.work[-1],
            "accuracy": peaks.accuracy(scratch.net),
            "steps": len(scratch.reports),
        },
        "unresolved": [
            row | {"h": coarse.T / one.layers, "accuracy": one.accuracy, "accuracy_prolongated": one.accuracy_start}
            for row, one in zip(lost.rows(), lost.levels, strict=True)
        ],
    }
    settings = {"resolved": str(resolved), "unresolved": str(coarse), "examples": len(peaks.data.train_y)}
    return Result(numbers, _see(numbers), lambda: _draw(multilevel, scratch, lost, resolved.T, coarse.T), settings)


def _scratch(problem: Problem, task: Task, work: float) -> Course:
    """The finest network from the first weights, for at least as much work."""
    task = dataclasses.replace(task, layers=task.layers[-1:], steps=(1,))
    net = problem.net(task)
    found = Course(net, work=[0.0], objective=[problem.objective(net, task)], level=[task.layers[0]])
    while found.work[-1] < work:
        problem.descend(net, task, 1, found)
    return found


def _see(numbers: dict[str, Any]) -> str:
    multilevel, scratch, lost = numbers["multilevel"], numbers["scratch"], numbers["unresolved"]
    levels = multilevel["levels"]
    jumps = ", ".join(f"{100 * row['jump']:.1f} %" for row in levels[1:])
    first, second = lost[0], lost[1]
    finest, last = levels[-1]["layers"], lost[-1]
    later = f"; after that to {last['layers']} layers it is {percent(last['accuracy_prolongated'])}" if lost[2:] else ""
    return (
        f"Left: with the work of {multilevel['work']:.0f} gradients of {finest} layers training from level to level "
        f"brings the objective to {multilevel['objective']:.3f} (validation {percent(multilevel['accuracy'])}); "
        f"from scratch the same work reaches {scratch['objective']:.3f} ({percent(scratch['accuracy'])}). Middle: the "
        f"steps resolve the dynamics, so that the objective jumps by {jumps} at the refinements, of order h. Right: on "
        f"the swiss roll with T = 20 and {first['layers']} layers, h = {first['h']:g}, a Hamiltonian network reaches "
        f"{percent(first['accuracy'])}, of which {percent(second['accuracy_prolongated'])} are left after the first "
        f"prolongation{later}. "
        "Prolongation pays once h resolves the dynamics."
    )


def _draw(multilevel: Course, scratch: Course, lost: Course, T: float, T_lost: float) -> Figure:
    figure, axes = style.figure(TITLE, (1, 3), (14.5, 4.8))
    _curves(axes[0, 0], multilevel, scratch)
    _jumps(axes[0, 1], multilevel, lost, T, T_lost)
    _accuracy(axes[0, 2], lost, T_lost)
    return figure


def _curves(ax: Axes, multilevel: Course, scratch: Course) -> None:
    n = multilevel.levels[-1].layers
    style.axis(ax, "Peaks: objective against work", f"work (gradients of {n} layers)", "cross entropy + regularisers")
    work, value = with_jumps(multilevel)
    layers = ", ".join(str(one.layers) for one in multilevel.levels)
    ax.plot(work, value, label=f"multilevel: {layers} layers", **style.look(0, marker=None))
    ends = np.cumsum([one.work for one in multilevel.levels])
    ax.plot(ends, [one.end for one in multilevel.levels], **style.look(0, linestyle="none"))
    ax.plot(scratch.work, scratch.objective, label=f"from scratch: {n} layers", **style.look(5, marker=None))
    style.log(ax, "y")
    ax.set_xlim(left=0)
    style.legend(ax, title="markers: end of a level")


def _jumps(ax: Axes, multilevel: Course, lost: Course, T: float, T_lost: float) -> None:
    style.axis(ax, "Jump of the objective at a prolongation", "h before it", "|jump| / objective")
    for i, (name, course, time) in enumerate((("peaks", multilevel, T), ("swiss roll", lost, T_lost))):
        h = [2 * time / one.layers for one in course.levels[1:]]
        ax.plot(h, [abs(one.jump or 0.0) for one in course.levels[1:]], label=name, **style.look(i))
    ax.axhline(0.1, color=style.GREY, linewidth=1.0, linestyle="--", label="10 %")
    style.log(ax)
    style.legend(ax)


def _accuracy(ax: Axes, lost: Course, T: float) -> None:
    style.axis(ax, "Swiss roll, T = 20: what a prolongation leaves", "layers N, and step h", "validation accuracy")
    n = [one.layers for one in lost.levels]
    ax.plot(n, [one.accuracy or 0.0 for one in lost.levels], label="trained with N layers", **style.look(0))
    kept = [one.accuracy_start or 0.0 for one in lost.levels[1:]]
    ax.plot(n[:-1], kept, label="prolongated to 2N, before training", **style.look(5, linestyle="--"))
    ax.set_xscale("log", base=2)
    ax.set_xticks(n, [f"{one}\nh = {T / one:.3g}" for one in n], fontsize=8)
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    style.legend(ax, loc="lower right")
