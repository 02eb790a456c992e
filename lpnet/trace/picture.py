"""A trace as a picture: a row for each rank, time to the right, a colour for each kind of work, messages as lines.

Of nested phases the innermost one is seen. The line above a row says of which solve it is.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.patches import Patch

from lpnet.errors import InputError
from lpnet.plots import OKABE_ITO, canvas, save
from lpnet.trace.recorder import Event

_BLUE, _ORANGE, _GREEN, _PURPLE, _SKY, _RED, _YELLOW, _GREY = OKABE_ITO
_WAITS = ("wait", "broadcast", "gather", "barrier")
_WORK: Mapping[str, str] = {
    "layers": _BLUE,
    "sweep 0": _BLUE,
    "pull": _BLUE,
    "pull, gradients": _GREEN,
    "gradients": _GREEN,
    "sweep, coarser": _SKY,
    "chain": _ORANGE,
    "linearize": _YELLOW,
    "coarse weights": _PURPLE,
    "weights": _PURPLE,
    "residual": "black",
    "optimizer": _RED,
    "waiting": "0.85",
    "other": _GREY,
}
_LABELS = {
    "sweep 0": "layers",
    "pull": "layers",
    "gradients": "layers with weight gradients",
    "pull, gradients": "layers with weight gradients",
    "coarse weights": "weights",
    "chain": "coarsest chain",
    "sweep, coarser": "sweeps of coarser levels",
    "linearize": "coarse linearisation",
}
_FRAMES = {"forward": "0.5", "adjoint": _RED}
_TALL, _LINE = 0.62, 0.08
MOST = 512
"""Ranks of a picture, at most, which is then 48,000 pixels high."""


@dataclass(frozen=True)
class Trace:
    """What is in a file: its events, and `about`, what else it says of itself."""

    events: Sequence[Event]
    about: Mapping[str, Any]

    @property
    def ranks(self) -> int:
        """How many rows there are."""
        return max((e["tid"] for e in self.events if e["ph"] == "X"), default=0)


def read(path: str | Path) -> Trace:
    """The trace in a file.

    Raises:
        InputError: there is no such file, or it is no trace of lpnet.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        found = Trace(content["traceEvents"], content["otherData"])
        good = all(map(_is_event, found.events)) and isinstance(found.about["time"], str) and found.ranks > 0
    except OSError as error:
        raise InputError(f"FILE: {str(path)!r} given ({error.strerror}), a trace.json allowed") from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        good = False
    if not good:
        raise InputError(f"FILE: {str(path)!r} given, which is no trace of lpnet; a trace.json allowed")
    return found


def _is_event(event: Event) -> bool:
    """Whether it has what is drawn of it; a KeyError or TypeError says no, too."""
    if event["ph"] == "X":
        good = isinstance(event["name"], str) and isinstance(event["args"], dict) and _is_time(event["dur"])
    elif event["ph"] in ("s", "f"):
        good = isinstance(event["id"], str | int)
    else:
        return True
    return good and _is_time(event["ts"]) and isinstance(event["tid"], int) and event["tid"] > 0


def _is_time(value: Any) -> bool:
    return math.isfinite(value) and not isinstance(value, bool)


def draw(trace: Trace, path: str | Path, begin: float = -math.inf, end: float = math.inf) -> None:
    """Draw a trace.

    Args:
        trace: what to draw.
        path: of the PNG file.
        begin, end: milliseconds between which it is drawn.

    Raises:
        InputError: nothing happened in between, as where the end is before the begin; or too many ranks.
    """
    spans = [e for e in trace.events if e["ph"] == "X" and e["ts"] / 1e3 < end and (e["ts"] + e["dur"]) / 1e3 > begin]
    if trace.ranks > MOST:
        raise InputError(f"FILE: a trace of {trace.ranks} ranks given, at most {MOST} allowed")
    if not spans or end <= begin:
        raise InputError(f"from, to: {begin:g} and {end:g} given, milliseconds with phases in between allowed")
    begin = max(begin, min(e["ts"] for e in spans) / 1e3)
    end = min(end, max(e["ts"] + e["dur"] for e in spans) / 1e3)
    figure = canvas(11.0, 1.3 + 0.62 * trace.ranks)
    ax = figure.subplots()
    shown = _draw_spans(ax, spans)
    _draw_messages(ax, trace.events)
    ax.set_xlim(begin, end)
    ax.set_ylim(trace.ranks - 0.4, -0.6)
    ax.set_yticks(range(trace.ranks), [f"rank {rank}" for rank in range(trace.ranks)])
    ax.set_xlabel(f"{trace.about['time']} time in ms")
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    patches = [Patch(color=color, label=label) for label, color in shown.items()]
    figure.legend(handles=patches, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    save(figure, path)


def _kind(event: Event) -> str:
    name = event["name"]
    if name in _WAITS:
        return "waiting"
    if name == "sweep":
        return "sweep 0" if event["args"].get("level") == 0 else "sweep, coarser"
    return name if name in _WORK else "other"


def _draw_spans(ax: Axes, spans: Sequence[Event]) -> dict[str, str]:
    """Boxes for phases, lines for solves; the colours that occur, by what they mean."""
    boxes, colors, shown = [], [], {}
    for event in spans:  # outer ones come first, and inner ones are drawn over them
        left, right, row = event["ts"] / 1e3, (event["ts"] + event["dur"]) / 1e3, event["tid"] - 1
        name, top, bottom = event["name"], row - _TALL / 2, row + _TALL / 2
        if name in _FRAMES:
            bottom, color, label = top - 0.02, _FRAMES[name], f"{name} (line above)"
            top = bottom - _LINE
        elif name == "cycle":
            continue
        else:
            kind = _kind(event)
            color, label = _WORK[kind], _LABELS.get(kind, kind)
        boxes.append([(left, top), (right, top), (right, bottom), (left, bottom)])
        colors.append(color)
        shown[label] = color
    ax.add_collection(PolyCollection(boxes, facecolors=colors, edgecolors="white", linewidths=0.2))
    order = [_LABELS.get(kind, kind) for kind in _WORK] + [f"{name} (line above)" for name in _FRAMES]
    return {label: shown[label] for label in dict.fromkeys(order) if label in shown}


def _draw_messages(ax: Axes, events: Sequence[Event]) -> None:
    begins = {e["id"]: (e["ts"] / 1e3, e["tid"] - 1) for e in events if e["ph"] == "s"}
    lines = [[begins[e["id"]], (e["ts"] / 1e3, e["tid"] - 1)] for e in events if e["ph"] == "f" and e["id"] in begins]
    ax.add_collection(LineCollection(lines, colors="black", linewidths=0.5, alpha=0.6))
