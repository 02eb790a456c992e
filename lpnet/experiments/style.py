"""Pictures for a slide: one look for the whole gallery.

Colours are those of Okabe and Ito, curves differ by marker or line as well; panels of one picture share their scales
where they show the same quantity.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, PercentFormatter

from lpnet.plots import MARKERS, OKABE_ITO, canvas, regions

BLUE, ORANGE, GREEN, PINK, SKY, RED, YELLOW, GREY = OKABE_ITO
LINES = ("-", "--", "-.", ":")

__all__ = ["LINES", "MARKERS", "OKABE_ITO", "axis", "figure", "legend", "log", "look", "regions", "slope"]


def figure(title: str, panels: tuple[int, int] = (1, 1), size: tuple[float, float] = (10.0, 4.6), **keys: Any) -> Any:
    """A figure with a title and its axes, (rows, columns) in an array; more keys go to `Figure.subplots`."""
    made: Figure = canvas(*size)
    made.suptitle(title, fontsize=13, fontweight="bold")
    axes = made.subplots(*panels, squeeze=False, **keys)
    return made, axes


def mosaic(title: str, places: list[list[str]], size: tuple[float, float] = (10.0, 4.6), **keys: Any) -> Any:
    """The same with named axes, placed as in the rows of names."""
    made: Figure = canvas(*size)
    made.suptitle(title, fontsize=13, fontweight="bold")
    return made, made.subplot_mosaic(places, **keys)  # type: ignore[arg-type]


def axis(ax: Axes, title: str, x: str, y: str) -> Axes:
    """Title and labels of one panel, with a light grid."""
    ax.set_title(title, loc="left", fontsize=11)
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.grid(True, which="major", color="0.9", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def look(i: int, **more: Any) -> dict[str, Any]:
    """Colour, marker and line of curve i."""
    style = {"color": OKABE_ITO[i % 8], "marker": MARKERS[i % 8], "markersize": 4.5, "linewidth": 1.6}
    return style | more


def log(ax: Axes, which: str = "xy") -> None:
    """Logarithmic axes, after their curves are drawn: labels at decades, or at 1, 2, 5 if there are less than two."""
    for name in which:
        getattr(ax, f"set_{name}scale")("log")
        one = getattr(ax, f"{name}axis")
        low, high = one.get_view_interval()
        short = high < 100 * low
        one.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0) if short else (1.0,), numticks=9))
        if short:
            one.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        one.set_minor_formatter(NullFormatter())


def slope(ax: Axes, x: Iterable[float], at: tuple[float, float], order: float, **more: Any) -> None:
    """A dashed line of this slope through a point, on logarithmic axes."""
    ends = np.array([min(x := list(x)), max(x)])
    style: dict[str, Any] = {"color": "0.6", "linestyle": ":", "linewidth": 1.0, "zorder": 1} | more
    ax.plot(ends, at[1] * (ends / at[0]) ** order, **style)


def legend(ax: Axes, **more: Any) -> None:
    """A legend without a frame."""
    style: dict[str, Any] = {"frameon": False, "fontsize": 9} | more
    ax.legend(**style)


def percent(decimals: int = 0) -> PercentFormatter:
    """Fractions of 1 as percentages."""
    return PercentFormatter(xmax=1.0, decimals=decimals)
