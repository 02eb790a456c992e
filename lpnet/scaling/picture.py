"""The picture of a study: times over ranks, the two kinds in panels of their own.

Lines: the ideal, that of the exact serial engine over P (weak: the first time), the serial engine, autograd. Vertical
lines mark the numbers of ranks from which on a solver is faster than the exact chain, and than one rank.
"""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from lpnet import plots
from lpnet.scaling.points import AUTOGRAD, SERIAL, Point, crossover, curves
from lpnet.scaling.solvers import AUTO, EXACT

PANELS = {"wall": ("wall",), "modelled": ("virtual", "simulated")}
LOOK: dict[str, dict[str, Any]] = {
    "wall": {"linestyle": "-", "marker": "o", "markersize": 6},
    "virtual": {"linestyle": "none", "marker": "D", "markersize": 7, "markerfacecolor": "none"},
    "simulated": {"linestyle": "--", "marker": ".", "markersize": 5},
}
LABELS = {"wall": "wall", "virtual": "virtual clocks", "simulated": "simulated"}
GREY = {SERIAL: "0.15", AUTOGRAD: "0.55"}
NAMES = {
    SERIAL: "exact engine, one rank",
    AUTOGRAD: "autograd, one rank",
    EXACT: "exact chain, best Q",
    AUTO: "MGRIT, best options",
}


def draw(points: Sequence[Point], title: str = "") -> Figure:
    """Draw the points of one study."""
    panels = {name: [p for p in points if p.kind in kinds] for name, kinds in PANELS.items()}
    panels = {name: own for name, own in panels.items() if own}
    figure = plots.canvas(6.2 * len(panels) + 0.4, 5.8)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    series = [s for s in dict.fromkeys(p.series for p in points) if s not in GREY]
    colors = dict(zip(series, plots.OKABE_ITO * (1 + len(series) // len(plots.OKABE_ITO)), strict=False))
    for ax, (name, own) in zip(axes, panels.items(), strict=True):
        _panel(ax, own, colors)
        heading, word = ("Wall time, measured", "wall") if name == "wall" else ("Modelled time", "modelled")
        ax.set_title(heading, loc="left")
        ax.set_ylabel(f"{word} seconds of one gradient")
    figure.suptitle(title or _title(points), fontsize=10)
    return figure


def _title(points: Sequence[Point]) -> str:
    one = points[0]
    layers = sorted({p.layers for p in points})
    counted = f"{layers[0]} layers" if len(layers) == 1 else f"{layers[0]} to {layers[-1]} layers"
    fabrics = sorted({p.fabric for p in points if p.fabric})
    modelled = f", fabric {', '.join(fabrics)}" if fabrics else ""
    return f"{one.study} scaling: {counted}, width {one.width}, batch {one.batch}, {one.dtype}{modelled}"


def _panel(ax: Axes, points: list[Point], colors: dict[str, str]) -> None:
    found = curves(points)
    for (series, kind), own in found.items():
        label = f"{NAMES.get(series, series)}: {LABELS[kind]}{_error(own)}"
        color = colors.get(series, GREY.get(series))
        spread = [[p.seconds - p.quartiles[0] for p in own], [p.quartiles[1] - p.seconds for p in own]]
        style = LOOK[kind] | ({"marker": "none"} if series in GREY and kind == "simulated" else {})
        ax.errorbar([p.ranks for p in own], [p.seconds for p in own], spread, color=color, label=label,
                    linewidth=1.4, capsize=2, elinewidth=0.8, **style)  # fmt: skip
    _ideal(ax, found)
    _crossovers(ax, found, colors)
    ranks = sorted({p.ranks for p in points})
    ax.set_xscale("log", base=2)
    ax.set_yscale("log")
    ax.xaxis.set_major_locator(FixedLocator(ranks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_xticks(ranks, [str(r) for r in ranks])
    ax.set_xlabel("ranks P")
    ax.grid(True, which="major", color="0.9", linewidth=0.8)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False)


def _error(points: Sequence[Point]) -> str:
    errors = [p.gradient_error for p in points if p.gradient_error is not None]
    if not errors or points[0].series in (SERIAL, AUTOGRAD, EXACT):
        return ""
    return f", gradient error ≤ {max(errors):.0e}"


def _ideal(ax: Axes, found: dict[tuple[str, str], list[Point]]) -> None:
    """Of the first kind of time in the panel that has what it takes."""
    for kind in ("wall", "simulated", "virtual"):
        serial = found.get((SERIAL, kind))
        if serial is None:
            continue
        if serial[0].study == "weak":
            first = min((own[0] for (s, k), own in found.items() if k == kind and s not in GREY),
                        key=lambda p: (p.ranks, p.seconds), default=serial[0])  # fmt: skip
            xs, ys = [p.ranks for p in serial], [first.seconds for _ in serial]
        else:
            xs, ys = [p.ranks for p in serial], [serial[0].seconds / p.ranks for p in serial]
        ax.plot(xs, ys, color="0.4", linestyle=":", linewidth=1.2, label=f"ideal: {LABELS[kind]}", zorder=1)
        return


def _crossovers(ax: Axes, found: dict[tuple[str, str], list[Point]], colors: dict[str, str]) -> None:
    ranks = sorted({p.ranks for own in found.values() for p in own})
    upper = any(p.study == "weak" for own in found.values() for p in own)  # where a study leaves room
    height = 0.98 if upper else 0.02
    for (series, kind), own in found.items():
        if series in (*GREY, EXACT) or kind == "virtual":
            continue
        places = {name: crossover(own, found[name, kind]) for name in (SERIAL, EXACT) if (name, kind) in found}
        told = [f"{NAMES[name]} from P = {at}" for name, at in places.items() if at is not None]
        for at in {at for at in places.values() if at is not None}:
            ax.axvline(at, color=colors[series], linewidth=0.9, linestyle=(0, (1, 3)), zorder=0)
        if told:
            words = f"{NAMES.get(series, series)} ({LABELS[kind]}) beats\n" + "\n".join(told)
            ax.annotate(words, (ranks[0], height), xycoords=ax.get_xaxis_transform(), fontsize=7,
                        color=colors[series], ha="left", va="top" if upper else "bottom")  # fmt: skip
            height += (-0.04 if upper else 0.04) * (1 + len(told))
