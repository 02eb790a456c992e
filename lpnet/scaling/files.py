"""The files of a study: points as JSON, one file a launch; the table of all of them as CSV and JSON."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lpnet.errors import InputError
from lpnet.scaling.points import Point, efficiency, speedup

POINTS = "points"
COLUMNS = (
    "study", "series", "kind", "by", "ranks", "layers", "T", "width", "batch", "dtype", "seconds", "lower_quartile",
    "upper_quartile", "rounds", "speedup", "efficiency", "gradient_error", "memory_mib", "fabric", "solver", "commit",
)  # fmt: skip


def write_points(folder: Path, name: str, points: Sequence[Point]) -> Path:
    """Write points to FOLDER/points/NAME.json."""
    path = folder / POINTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([point.as_dict() for point in points], indent=1, ensure_ascii=False) + "\n", "utf-8")
    return path


def clear(folder: Path, study: str) -> None:
    """Remove the points of an earlier study of this name."""
    for file in (folder / POINTS).glob(f"{study}-*.json"):
        file.unlink()


def read_points(folders: Sequence[Path]) -> list[Point]:
    """The points of these folders.

    Raises:
        InputError: there are none, a file holds something else, or two folders hold the same launch.
    """
    found: list[Point] = []
    seen: dict[str, Path] = {}
    for folder in folders:
        files = sorted((folder / POINTS).glob("*.json"))
        if not files:
            raise InputError(f"folder: {str(folder)!r} given, a folder with {POINTS}/*.json allowed")
        for file in files:
            if file.name in seen:  # times of two launches would be divided by each other
                raise InputError(f"file: {str(file)!r} given beside {str(seen[file.name])!r}, one of this name allowed")
            seen[file.name] = file
            found += _read(file)
    return found


def _read(file: Path) -> list[Point]:
    try:
        given = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"file: {str(file)!r} given ({error}), JSON allowed") from None
    if not isinstance(given, list):
        raise InputError(f"file: {str(file)!r} given, a list of points allowed")
    try:
        return [Point.of(one) for one in given]
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def row(point: Point, points: Sequence[Point]) -> dict[str, Any]:
    """A row of the table, with what follows from the other points."""
    lower, upper = point.quartiles
    found = point.as_dict() | {
        "lower_quartile": lower,
        "upper_quartile": upper,
        "speedup": speedup(point, points),
        "efficiency": efficiency(point, points),
        "commit": point.origin.get("commit"),
    }
    return {key: found[key] for key in COLUMNS}


def write_table(folder: Path, points: Sequence[Point]) -> None:
    """Write scaling.csv and scaling.json."""
    rows = [row(point, points) for point in points]
    with (folder / "scaling.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    origins = [dict(pairs) for pairs in dict.fromkeys(tuple(point.origin.items()) for point in points)]
    text = json.dumps({"origins": origins, "points": rows}, indent=1, ensure_ascii=False)
    (folder / "scaling.json").write_text(text + "\n", encoding="utf-8")


def lines(points: Sequence[Point]) -> list[str]:
    """A table of each kind of time by itself."""
    said: list[str] = []
    for kind in dict.fromkeys(point.kind for point in points):
        own = [point for point in points if point.kind == kind]
        width = max(len(point.series) for point in own)
        said.append(f"{kind}: {'series':{width}} ranks layers         ms  speed-up  efficiency  gradient error  solver")
        for point in sorted(own, key=lambda point: (point.ranks, point.seconds)):
            said.append(f"{'':{len(kind) + 1}} {_line(row(point, points), width)}")
    return said


def _line(found: dict[str, Any], width: int) -> str:
    def shown(key: str, form: str, size: int) -> str:
        return f"{'' if found[key] is None else format(found[key], form):>{size}}"

    return (
        f"{found['series']:{width}} {found['ranks']:5d} {found['layers']:6d} {1e3 * found['seconds']:10.2f} "
        f"{shown('speedup', '.2f', 9)} {shown('efficiency', '.2f', 11)} {shown('gradient_error', '.1e', 15)}  "
        f"{found['solver']}"
    ).rstrip()
