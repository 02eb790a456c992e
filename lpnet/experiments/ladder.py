"""The picture of a training from few layers to many: accuracy and objective of each level, regions, features at T."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from lpnet.experiments import style
from lpnet.experiments.course import Course, Problem, grid

MOST = 600  # points of a scatter plot


class View(NamedTuple):
    """What is drawn of the finest network.

    Attributes:
        frame: left, right, bottom, top of the plane.
        regions: (rows, columns) class of each cell.
        points: (n, 2) training examples.
        features: (n, 2) their y_N, first two components.
        labels: (n,) their classes.
        line: W and c of the classifier where y_N has two components; else None.
    """

    frame: tuple[float, float, float, float]
    regions: np.ndarray
    points: np.ndarray
    features: np.ndarray
    labels: np.ndarray
    line: tuple[np.ndarray, np.ndarray] | None


@torch.no_grad()
def view(problem: Problem, course: Course) -> View:
    """Regions and features of a trained network; collective."""
    frame, points, shape = grid(problem.data)
    classes = torch.cat([course.net(part).argmax(1) for part in points.split(8192)])
    x, label = problem.train
    some = np.unique(np.linspace(0, len(x) - 1, min(MOST, len(x))).astype(int))
    y = course.net[1](course.net[0](x[some]))
    classifier: Any = course.net[2]
    line = None
    if y.shape[1] == 2:
        line = classifier.weight.numpy().copy(), classifier.bias.numpy().copy()
    found = (x[some].numpy(), y[:, :2].numpy(), label[some].numpy())
    return View(frame, classes.reshape(shape).numpy(), *found, line)


def draw(
    title: str, courses: Mapping[str, Course], shown: tuple[str, View], baselines: Mapping[str, float]
) -> Figure:
    """The figure.

    Args:
        title: of the figure.
        courses: name -> course.
        shown: name and view of the network whose regions and features are drawn.
        baselines: name -> validation accuracy to compare with.
    """
    figure, axes = style.figure(title, (2, 2), (11.5, 9.0))
    _accuracies(axes[0, 0], courses, baselines)
    _objectives(axes[0, 1], courses)
    name, seen = shown
    regions(axes[1, 0], seen, f"Regions: {name}, {_finest(courses[name])} layers")
    _features(axes[1, 1], seen, f"Features at T: {name}")
    return figure


def _finest(course: Course) -> int:
    return course.levels[-1].layers


def _accuracies(ax: Axes, courses: Mapping[str, Course], baselines: Mapping[str, float]) -> None:
    style.axis(ax, "Validation accuracy on each level", "layers N", "correctly classified")
    for i, (name, course) in enumerate(courses.items()):
        n = [one.layers for one in course.levels]
        reached = [one.accuracy or 0.0 for one in course.levels]
        ax.plot(n, reached, label=name, **style.look(i))
        started = [one.accuracy_start or 0.0 for one in course.levels[1:]]
        more = style.look(i, linestyle=":", markerfacecolor="white", linewidth=1.0)
        ax.plot(n[1:], started, **more)
    for name, value in baselines.items():
        color = style.OKABE_ITO[list(courses).index(name)] if name in courses else style.GREY
        label = None if name in courses else f"published: {name}"
        ax.axhline(value, color=color, linewidth=1.0, linestyle="--", label=label)
    layers = sorted({one.layers for course in courses.values() for one in course.levels})
    ax.set_xscale("log", base=2)
    ax.set_xticks(layers, [str(n) for n in layers], fontsize=8)
    ax.minorticks_off()
    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1.0, decimals=0))
    published = "\ndashed: published" if set(baselines) <= set(courses) else ""
    style.legend(ax, title=f"filled: trained\nopen: prolongated, before training{published}", title_fontsize=9)


def _objectives(ax: Axes, courses: Mapping[str, Course]) -> None:
    unit = f"gradients of {_finest(next(iter(courses.values())))} layers"
    style.axis(ax, "Objective against work", f"work ({unit})", "cross entropy + regularisers")
    for i, (name, course) in enumerate(courses.items()):
        work, value = with_jumps(course)
        ax.plot(work, value, label=name, **style.look(i, marker=None))
        ends = np.cumsum([one.work for one in course.levels])
        ax.plot(ends, [one.end for one in course.levels], **style.look(i, linestyle="none"))
    smallest = min(course.levels[0].work for course in courses.values())
    style.log(ax, "y")
    ax.set_xscale("symlog", linthresh=max(1e-3, smallest))
    ax.set_xlim(left=0)
    style.legend(ax, title="markers: end of a level")


def with_jumps(course: Course) -> tuple[np.ndarray, np.ndarray]:
    """Work and objective after each outer step, and before the first of each level."""
    work, value = list(course.work), list(course.objective)
    starts = np.cumsum([one.work for one in course.levels])
    for one, at in reversed(list(zip(course.levels[1:], starts[:-1], strict=True))):
        place = int(np.searchsorted(np.array(work), at * (1 + 1e-12) + 1e-15, side="right"))
        work.insert(place, float(at))
        value.insert(place, one.start)
    return np.array(work), np.array(value)


def regions(ax: Axes, seen: View, title: str) -> None:
    """The class of each cell of the plane, and training points."""
    colors = np.array([_rgb(c) for c in range(int(max(seen.regions.max(), seen.labels.max())) + 1)])
    ax.imshow(0.42 * colors[seen.regions] + 0.58, origin="lower", extent=seen.frame, aspect="equal")
    for c in range(int(seen.labels.max()) + 1):
        ax.plot(*seen.points[seen.labels == c].T, **dots(c))
    ax.set_title(title, loc="left", fontsize=11)
    ax.set_xlabel("feature 1")
    ax.set_ylabel("feature 2")


def _features(ax: Axes, seen: View, title: str) -> None:
    style.axis(ax, title, "y₁(T)", "y₂(T)")
    for c in range(int(seen.labels.max()) + 1):
        ax.plot(*seen.features[seen.labels == c].T, label=f"class {c}", **dots(c))
    if seen.line is not None:
        W, shift = seen.line
        (a, b), d = W[1] - W[0], shift[1] - shift[0]
        limits = ax.get_xlim(), ax.get_ylim()
        x = np.array(limits[0])
        if abs(b) > 1e-12:
            ax.plot(x, -(a * x + d) / b, color="black", linewidth=1.2, linestyle="--", label="classifier")
        ax.set_xlim(*limits[0])
        ax.set_ylim(*limits[1])
    style.legend(ax)


def dots(c: int) -> dict[str, Any]:
    """Points of class c."""
    return {
        "linestyle": "none",
        "marker": style.MARKERS[c % 8],
        "color": style.OKABE_ITO[c % 8],
        "markersize": 3.5,
        "markeredgecolor": "white",
        "markeredgewidth": 0.3,
    }


def _rgb(c: int) -> tuple[float, float, float]:
    text = style.OKABE_ITO[c % 8]
    red, green, blue = (int(text[i : i + 2], 16) / 255 for i in (1, 3, 5))
    return red, green, blue
