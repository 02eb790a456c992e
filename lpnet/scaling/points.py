"""One measured or modelled time, and what may be made of several: curves, ratios and crossovers of one kind of time.

    speed-up(P) = t_serial / t(P),    efficiency = speed-up / P  (strong),  t(P₀) / t(P)  (weak)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from lpnet.errors import InputError, shown

KINDS = {
    "wall": "wall time, measured",
    "virtual": "modelled time, virtual clocks of real ranks",
    "simulated": "modelled time, simulated from measured costs",
}
SERIAL, AUTOGRAD = "serial", "autograd"
"""Series of one rank that works alone: lpnet's exact engine, and PyTorch's autograd on the plain network."""
SAME = ("study", "series", "width", "batch", "dtype", "fabric")
"""In all points of a curve; of a strong study also layers and T."""


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool)


def _is_size(value: Any) -> bool:
    return _is_number(value) and 0 < value < math.inf


_TEXT = (lambda v: isinstance(v, str), "a text")
_WHOLE = (lambda v: isinstance(v, int) and _is_size(v), "a whole number of at least 1")
_SIZE = (_is_size, "a finite number above 0")
_FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("study", "series", "solver", "by", "dtype"), _TEXT),
    **dict.fromkeys(("ranks", "layers", "width", "batch", "rounds"), _WHOLE),
    **dict.fromkeys(("T", "seconds"), _SIZE),
    "kind": (lambda v: isinstance(v, str) and v in KINDS, f"one of {', '.join(KINDS)}"),
    "quartiles": (lambda v: isinstance(v, list | tuple) and [*map(_is_number, v)] == [True, True], "two numbers"),
    "gradient_error": (lambda v: v is None or _is_number(v), "a number or null"),
    "memory_mib": (lambda v: v is None or _is_number(v), "a number or null"),
    "fabric": (lambda v: v is None or isinstance(v, str), "a text or null"),
    "origin": (lambda v: isinstance(v, dict) and all(isinstance(one, str) for one in v.values()), "texts"),
}
"""What the attributes of a point may be, in words too: points are read from files."""


@dataclass(frozen=True)
class Point:
    """The time of one gradient (forward, adjoint, weight gradients).

    Attributes:
        study: "strong", "weak" or "validate".
        series: which curve it belongs to.
        solver: as `solvers.parse` reads it; empty for autograd.
        kind: of time, one of `KINDS`.
        by: what the ranks were: "processes", "threads" of one process, or "counters" (simulated).
        ranks, layers, T, width, batch, dtype: the problem.
        seconds: the median; of a simulated point, over repeated measurements of the costs.
        quartiles: the lower and the upper one.
        rounds: how many times were taken.
        gradient_error: the larger of the relative errors of weights and input; None: not known.
        memory_mib: weights and what is kept between forward and backward, of the largest rank; None: not known.
        fabric: the interconnect that was modelled; None: the one that there is.
        origin: commit, versions, processor.
    """

    study: str
    series: str
    solver: str
    kind: str
    by: str
    ranks: int
    layers: int
    T: float
    width: int
    batch: int
    dtype: str
    seconds: float
    quartiles: tuple[float, float]
    rounds: int
    gradient_error: float | None = None
    memory_mib: float | None = None
    fabric: str | None = None
    origin: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, (ok, allowed) in _FORMS.items():
            if not ok(getattr(self, key)):
                raise InputError(f"{key}: {shown(getattr(self, key))} given, {allowed} allowed")
        object.__setattr__(self, "quartiles", tuple(self.quartiles))

    def as_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @staticmethod
    def of(given: Any) -> "Point":
        """A point from what JSON holds.

        Raises:
            InputError: something is missing or unknown.
        """
        names = {one.name for one in fields(Point)}
        if not isinstance(given, dict) or set(given) != names:
            raise InputError(f"point: {shown(given)} given, {', '.join(sorted(names))} allowed")
        return Point(**given)


def ratio(a: Point, b: Point) -> float:
    """a.seconds / b.seconds.

    Raises:
        InputError: their times are of two kinds, which are never divided by each other.
    """
    _one_kind([a, b], "one ratio")
    return a.seconds / b.seconds


def curve(points: Sequence[Point]) -> list[Point]:
    """The points of one series and one kind of time in the order of ranks; of the same ranks the last one counts.

    Raises:
        InputError: several kinds of time, studies, series or problems.
    """
    _one_kind(points, "one curve")
    for key in SAME if points and points[0].study == "weak" else (*SAME, "layers", "T"):
        found = sorted({repr(getattr(point, key)) for point in points})
        if len(found) > 1:
            raise InputError(f"{key}: {', '.join(found)} given in one curve, one allowed")
    return sorted({point.ranks: point for point in points}.values(), key=lambda point: point.ranks)


def curves(points: Sequence[Point]) -> dict[tuple[str, str], list[Point]]:
    """(series, kind) -> its curve, in the order in which they come."""
    keys = dict.fromkeys((point.series, point.kind) for point in points)
    return {key: curve([point for point in points if (point.series, point.kind) == key]) for key in keys}


def crossover(mine: Sequence[Point], theirs: Sequence[Point]) -> int | None:
    """The smallest number of ranks from which on `mine` is always faster, of those that both have; None: never.

    Raises:
        InputError: their times are of two kinds.
    """
    _one_kind([*mine, *theirs], "one crossover")
    other = {point.ranks: point for point in theirs}
    found = None
    for point in mine:
        if point.ranks in other:
            faster = ratio(point, other[point.ranks]) < 1
            found = (found or point.ranks) if faster else None
    return found


def speedup(point: Point, points: Sequence[Point]) -> float | None:
    """t_serial / t: over the exact serial engine of the same kind of time and problem; None where it is not there.

    Its time from the same launch counts where there is one (the same ranks), else that of the fewest ranks.
    """
    same = [p for p in points if p.series == SERIAL and (p.kind, p.layers) == (point.kind, point.layers)]
    beside = [p for p in same if p.ranks == point.ranks and p.by == point.by] or sorted(same, key=lambda p: p.ranks)
    return ratio(beside[0], point) if beside else None


def efficiency(point: Point, points: Sequence[Point]) -> float | None:
    """Strong: speed-up over ranks. Weak: the time on the fewest ranks over this one's. None: not known, or one rank."""
    if point.series in (SERIAL, AUTOGRAD):
        return None
    if point.study != "weak":
        found = speedup(point, points)
        return None if found is None else found / point.ranks
    own = [p for p in points if (p.series, p.kind) == (point.series, point.kind)]
    return ratio(curve(own)[0], point)


def _one_kind(points: Sequence[Point], where: str) -> None:
    kinds = sorted({point.kind for point in points})
    if len(kinds) > 1:
        raise InputError(f"kind: {' and '.join(kinds)} given in {where}, one kind of time allowed")
