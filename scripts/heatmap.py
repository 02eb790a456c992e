"""The heat map of `bench.py peers`: how many times faster lpnet is than the fastest peer, and by which engine."""

import math
from pathlib import Path

import numpy as np
from matplotlib.colors import TwoSlopeNorm

from lpnet.experiments import style
from lpnet.plots import save

Key = tuple[float | None, int, int, int]
"""Allowed error (None: exact), layers, width, batch."""
LIMIT = 4.0
"""Factors beyond have the colour of this one."""

Verdict = tuple[float, str, str]
"""Gain, lpnet's engine, the fastest peer."""


def drawn(gains: dict[Key, Verdict], ranks: int, path: Path) -> None:
    """One row for exact gradients and one for an allowed error, one column for each depth; grey: left out."""
    tols, depths, widths, batches = (list(dict.fromkeys(key[i] for key in gains)) for i in range(4))
    for values in (depths, widths, batches):
        values.sort()
    size = (1.6 + 1.05 * len(batches) * len(depths) + 1.2, 1.0 + (0.75 * len(widths) + 0.8) * len(tols))
    figure, axes = style.figure(title(gains, ranks), (len(tols), len(depths)), size)
    for row, tol in enumerate(tols):
        for column, layers in enumerate(depths):
            ax = axes[row, column]
            kind = "exact gradient" if tol is None else f"gradient error ≤ {tol:g}"
            ax.set_title(f"{layers} layers, {kind}", loc="left", fontsize=10)
            found = {key[2:]: value for key, value in gains.items() if key[:2] == (tol, layers)}
            image = panel(ax, found, widths, batches)
            ax.set_xlabel("batch" if row == len(tols) - 1 else "")
            ax.set_ylabel("width" if column == 0 else "")
    ticks = [-math.log2(LIMIT), -1, -0.5, 0, 0.5, 1, math.log2(LIMIT)]
    bar = figure.colorbar(image, ax=axes, ticks=ticks, shrink=0.8, extend="both")
    bar.ax.set_yticklabels([f"{2**tick:.2g}" for tick in ticks])
    bar.set_label("time of the fastest peer / time of lpnet's fastest engine")
    words = "named: lpnet's fastest engine (all: all cores), and the peer that is faster; grey: left out"
    figure.supxlabel(words, fontsize=9)
    save(figure, path)


def panel(ax, found: dict[tuple[int, int], Verdict], widths: list[int], batches: list[int]):
    """Width × batch for one depth; grey: left out."""
    values = np.full((len(widths), len(batches)), np.nan)
    ax.set_facecolor("0.85")
    for (width, batch), (gain, *names) in found.items():
        i, j = widths.index(width), batches.index(batch)
        values[i, j] = math.log2(gain)
        color = "white" if abs(values[i, j]) > 0.6 * math.log2(LIMIT) else "black"
        ours, peer = (name.replace(", all cores", ", all") for name in names)
        words = ours if gain >= 1 else f"{ours}\n< {peer}"  # who wins, where lpnet does not
        ax.text(j, i, f"{gain:.2f}\n{words}", ha="center", va="center", fontsize=7.5, color=color)
    norm = TwoSlopeNorm(0.0, -math.log2(LIMIT), math.log2(LIMIT))
    image = ax.imshow(values, cmap="PuOr", norm=norm, origin="lower", aspect="auto")
    ax.set_xticks(range(len(batches)), batches)
    ax.set_yticks(range(len(widths)), widths)
    return image


def title(gains: dict[Key, Verdict], ranks: int) -> str:
    """What the picture says."""
    loose = max(key[0] for key in gains if key[0] is not None)
    exact, all_ = ([gain for (tol, *_), (gain, *_) in gains.items() if tol == which] for which in (None, loose))
    won = [sum(gain > 1 for gain in part) for part in (exact, all_)]
    found = f"Faster than every peer on {ranks} rank{'s' if ranks > 1 else ''}"
    return f"{found}: lpnet at {won[0]} of {len(exact)} sizes (exact), at {won[1]} (gradient error ≤ {loose:g})"
