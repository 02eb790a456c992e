"""The two pictures of a run: its history, and for data in the plane the regions that it assigns to the classes.

Drawn with matplotlib's objects on the Agg canvas: no display, no pyplot, no global state. The colours are those of
Okabe and Ito (Color universal design, 2008), which colour-blind readers can tell apart; classes differ by marker too.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter, PercentFormatter
from numpy.typing import NDArray

from lpnet import folders
from lpnet.data import DataSet

OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#666666")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
CELLS = 320  # of the longer side of a picture of regions
CHUNK = 8192  # points that a network sees at once, so that a picture needs no more memory than training
MOST_POINTS = 1500  # more would hide the regions
SMOOTHED_FROM = 200  # steps from which on a running mean is drawn too
MOST_LEGEND = 20
DRAWN = ("step", "loss", "train_accuracy", "val_accuracy", "layers")
"""What of the records of a run its history shows."""

Predict = Callable[[NDArray[np.float64]], NDArray[Any]]


def history(records: Sequence[Mapping[str, Any]], path: str | Path) -> None:
    """Draw the loss and, where there are any, the accuracies over the steps.

    Args:
        records: one a step, as in ``metrics.jsonl``: `step`, `loss`, and in some or all of them `train_accuracy` and
            `val_accuracy`, fractions of 1. Values that are missing, None or not finite are left out. Where `layers`
            changes, the network was prolongated.
        path: the PNG file to write.
    """
    accuracies = {key: _series(records, key) for key in ("train_accuracy", "val_accuracy")}
    accuracies = {key: series for key, series in accuracies.items() if len(series)}
    figure = canvas(10.0 if accuracies else 6.0, 4.0)
    axes = figure.subplots(1, 2 if accuracies else 1, squeeze=False, sharex=True)[0]
    _draw_loss(axes[0], _series(records, "loss"))
    if accuracies:
        _draw_accuracies(axes[1], accuracies)
    for ax in axes:
        _draw_levels(ax, records)
        ax.set_xlabel("optimisation step")
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
        ax.grid(True, which="major", color="0.9", linewidth=0.8)
        ax.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def decision_regions(predict: Predict, dataset: DataSet, path: str | Path, title: str = "") -> None:
    """Draw which class each point of the plane is assigned to, and the training points.

    Args:
        predict: maps (n, 2) float64 points, scaled as the examples of `dataset` are, to (n,) class numbers. It is
            called on at most `CHUNK` points at once, equally often for equal data sets.
        dataset: the two-dimensional data that the network was trained on.
        path: the PNG file to write.
        title: the title of the picture.

    Raises:
        ValueError: the data are not two-dimensional, or `predict` returns no class numbers.
    """
    if dataset.features != 2:
        raise ValueError(f"decision_regions draws data with 2 features, {dataset.features} given")
    (left, right), (bottom, top) = _extent(dataset)
    height = 5.0 * min(max((top - bottom) / (right - left), 0.3), 1.6) + 1.0
    figure = canvas(7.2, height)
    ax = figure.subplots()
    shown = regions(ax, predict, dataset)
    ax.set_title(title)
    total = len(dataset.train_y)
    points = f"all {total}" if shown == total else f"{shown} of {total}"
    _draw_legend(figure, _colors(dataset.classes), f"class: region and\ntraining points\n({points})")
    save(figure, path)


def regions(ax: Axes, predict: Predict, dataset: DataSet) -> int:
    """The same in one panel of a figure, without title and legend; returns how many training points are shown."""
    extent, classes = _regions(predict, dataset)
    (left, right), (bottom, top) = extent
    colors = _colors(dataset.classes)
    # Colours are interpolated, not class numbers: a smooth edge between two classes never runs through a third.
    image = _tint(colors)[classes]
    ax.imshow(image, origin="lower", extent=(left, right, bottom, top), interpolation="bilinear", aspect="equal")
    shown = _draw_points(ax, dataset, colors)
    ax.set_xlim(left, right)
    ax.set_ylim(bottom, top)
    ax.set_xlabel("feature 1")
    ax.set_ylabel("feature 2")
    return shown


def canvas(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), dpi=150, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def save(figure: Figure, path: str | Path) -> None:
    """Write the PNG file, at once or not at all."""
    with folders.replaced(Path(path)) as part:
        figure.savefig(part, format="png", bbox_inches="tight", pad_inches=0.1, metadata={"Software": None})


def _series(records: Iterable[Mapping[str, Any]], key: str) -> NDArray[np.float64]:
    """The (n, 2) steps and values of the records that have a finite one."""
    pairs = [(r["step"], r[key]) for r in records if r.get(key) is not None and math.isfinite(r[key])]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def _draw_levels(ax: Axes, records: Sequence[Mapping[str, Any]]) -> None:
    """A line where a level of multilevel training begins, and its number of layers."""
    for before, record in pairwise(records):
        if record.get("layers") != before.get("layers"):
            at = record["step"] - 0.5
            ax.axvline(at, color="0.55", linewidth=0.9, linestyle=(0, (4, 3)), zorder=0)
            words: dict[str, Any] = {"fontsize": 8, "color": "0.35", "rotation": 90, "va": "bottom", "ha": "left"}
            ax.annotate(f"{record['layers']} layers", (at, 0.02), xycoords=ax.get_xaxis_transform(), **words)


def _draw_loss(ax: Axes, loss: NDArray[np.float64]) -> None:
    ax.set_title("Loss", loc="left")
    ax.set_ylabel("training loss (dimensionless)")
    if not len(loss):
        ax.text(0.5, 0.5, "no steps recorded", ha="center", va="center", transform=ax.transAxes)
        return
    steps, values = loss.T
    window = len(values) // 50
    smoothed = len(values) >= SMOOTHED_FROM
    style: dict[str, Any] = {"color": OKABE_ITO[0], "marker": "o" if len(values) == 1 else None}
    ax.plot(
        steps, values, label="each step", linewidth=1.0 if smoothed else 1.6, alpha=0.35 if smoothed else 1, **style
    )
    if smoothed:
        mean = np.convolve(values, np.full(window, 1 / window), mode="valid")
        at = np.convolve(steps, np.full(window, 1 / window), mode="valid")
        ax.plot(at, mean, label=f"mean of {window} steps", linewidth=1.8, color=OKABE_ITO[0])
    if values.min() > 0:
        ax.set_yscale("log")
        plain = FuncFormatter(lambda value, _: f"{value:g}")
        ax.yaxis.set_major_formatter(plain)
        ax.yaxis.set_minor_formatter(plain if values.max() < 8 * values.min() else NullFormatter())
    if len(values) == 1:
        ax.set_xlim(steps[0] - 1, steps[0] + 1)
    ax.legend(frameon=False)


def _draw_accuracies(ax: Axes, accuracies: Mapping[str, NDArray[np.float64]]) -> None:
    styles = {
        "train_accuracy": ("training", OKABE_ITO[0], "-", "o"),
        "val_accuracy": ("validation", OKABE_ITO[5], "--", "s"),
    }
    for key, series in accuracies.items():
        name, color, line, marker = styles[key]
        few = marker if len(series) <= 40 else None
        label = f"{name} (last: {series[-1, 1]:.1%})"
        ax.plot(*series.T, color=color, linestyle=line, marker=few, markersize=4, linewidth=1.6, label=label)
    lowest = min(0.95, *(series[:, 1].min() for series in accuracies.values()))
    ax.set_ylim(lowest - 0.05 * (1.02 - lowest) - 0.005, 1 + 0.03 * (1.02 - lowest))
    ax.yaxis.set_major_formatter(PercentFormatter(xmax=1.0))
    ax.set_title("Accuracy", loc="left")
    ax.set_ylabel("correctly classified")
    ax.legend(frameon=False, loc="best")


def _colors(classes: int) -> NDArray[np.float64]:
    """(classes, 3) colours between 0 and 1; for more classes than eight, steps of a colour-blind safe map."""
    if classes <= len(OKABE_ITO):
        return np.array([to_rgb(color) for color in OKABE_ITO[:classes]])
    return np.asarray(colormaps["viridis"](np.linspace(0, 1, classes)))[:, :3]


def _tint(color: NDArray[np.float64]) -> NDArray[np.float64]:
    """The colour of a region, on which points of the full colour stand out."""
    return 0.42 * color + 0.58


def _extent(dataset: DataSet) -> tuple[tuple[float, float], tuple[float, float]]:
    """The frame: the data set's own, else its training points with a margin."""
    if dataset.bounds is not None:
        return dataset.bounds
    low, high = dataset.train_x.min(axis=0), dataset.train_x.max(axis=0)
    margin = np.where(high > low, 0.06 * (high - low), 0.5)
    (left, bottom), (right, top) = low - margin, high + margin
    return (float(left), float(right)), (float(bottom), float(top))


def _regions(
    predict: Predict, dataset: DataSet
) -> tuple[tuple[tuple[float, float], tuple[float, float]], NDArray[Any]]:
    """The frame, and the classes (rows, columns) at the centres of its cells."""
    extent = _extent(dataset)
    sides = np.array([high - low for low, high in extent])
    columns, rows = np.maximum(np.rint(CELLS * sides / sides.max()).astype(int), 16)
    x, y = (np.linspace(low, high, 2 * n + 1)[1::2] for (low, high), n in zip(extent, (columns, rows), strict=True))
    grid = np.column_stack([g.ravel() for g in np.meshgrid(x, y)])
    chunks = [np.asarray(predict(grid[i : i + CHUNK])) for i in range(0, len(grid), CHUNK)]
    regions = np.concatenate(chunks)
    possible = regions.shape == (len(grid),) and regions.dtype.kind in "iu"
    if not possible or regions.min() < 0 or regions.max() >= dataset.classes:
        raise ValueError(
            f"predict returned {regions.dtype} of shape {regions.shape} for {len(grid)} points, "
            f"allowed: as many whole numbers 0...{dataset.classes - 1}"
        )
    return extent, regions.reshape(rows, columns)


def _draw_points(ax: Axes, dataset: DataSet, colors: NDArray[np.float64]) -> int:
    """Draw (evenly spaced, if they are many) training points, class by class; return how many."""
    total = len(dataset.train_y)
    part = np.unique(np.linspace(0, total - 1, min(total, MOST_POINTS)).astype(int))
    x, y = dataset.train_x[part], dataset.train_y[part]
    size = float(np.clip(9000 / len(part), 9, 30))
    for c in range(dataset.classes):
        first, second = x[y == c].T
        marker = MARKERS[c % len(MARKERS)]
        ax.scatter(first, second, s=size, color=[colors[c]], marker=marker, edgecolors="white", linewidths=0.4)
    return len(part)


def _draw_legend(figure: Figure, colors: NDArray[np.float64], title: str) -> None:
    """One entry a class, beside the picture: its marker on the colour of its region."""
    handles: list[Any] = []
    for c, color in enumerate(colors[:MOST_LEGEND]):
        r, g, b = _tint(color)
        marker = Line2D([], [], color=color, marker=MARKERS[c % len(MARKERS)], linestyle="none", markersize=6)
        handles.append((Patch(facecolor=(float(r), float(g), float(b)), edgecolor="none"), marker))
    names = [str(c) for c in range(len(handles))]
    if len(colors) > MOST_LEGEND:
        handles.append(Line2D([], [], linestyle="none"))
        names.append(f"... {len(colors) - 1}")
    style: dict[str, Any] = {"frameon": False, "handlelength": 1.8, "handleheight": 1.4}
    figure.legend(handles, names, title=title, loc="outside right center", ncols=1 + (len(names) > 10), **style)
