"""Laws of a trace: what is in a file can be looked at, and is what the ranks did."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Event = dict[str, Any]


def events_of(path: Path) -> list[Event]:
    return list(json.loads(path.read_text(encoding="utf-8"))["traceEvents"])


def rows_of(events: list[Event]) -> dict[int, list[Event]]:
    """The phases of each rank."""
    rows = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[event["tid"] - 1].append(event)
    return dict(rows)


def end_of(event: Event) -> float:
    return float(event["ts"] + event["dur"])


def check_format(events: list[Event], ranks: int) -> None:
    """Rows are ranks, phases of a row are nested and do not overlap, arrows have both ends and go forward."""
    assert {event["ph"] for event in events} <= set("XMCsf")
    assert {e["args"]["name"] for e in events if e["name"] == "thread_name"} == {f"rank {r}" for r in range(ranks)}
    rows = rows_of(events)
    assert set(rows) == set(range(ranks))
    for row in rows.values():
        check_nested(row)
    for event in events:
        if event["ph"] != "M":
            assert isinstance(event["ts"], float)
            assert isinstance(event["pid"], int)
        if event["ph"] == "C":
            assert all(isinstance(value, float) for value in event["args"].values())
    ends = [{e["id"]: e for e in events if e["ph"] == kind} for kind in "sf"]
    assert ends[0].keys() == ends[1].keys()
    for key, begin in ends[0].items():
        source, to = key.split(":")[0].split(" to ")
        assert begin["tid"] - 1 == int(source)
        assert ends[1][key]["tid"] - 1 == int(to)


def check_nested(row: Sequence[Event], slack: float = 0.0021) -> None:
    """Each phase lies within the one in which it begins (times are rounded to a thousandth of a microsecond)."""
    open_until: list[float] = []
    for event in row:
        assert event["dur"] >= 0
        while open_until and open_until[-1] <= event["ts"] + slack:
            open_until.pop()
        assert not open_until or end_of(event) <= open_until[-1] + slack, event
        open_until.append(end_of(event))
