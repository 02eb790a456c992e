"""What one rank did when, as events of the trace format.

Source: Trace Event Format, the Chromium project: complete events (X), counters (C), flows from s to f, metadata (M).
"""

import math
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

Event = dict[str, Any]

PROCESS = 1
"""All ranks are threads of one process in the trace, so that they stand below each other."""


class Recorder:
    """Observes one rank (see `lpnet.phases`); what it takes is a clock and a list.

    Args:
        rank: which one.
        clock: seconds.
    """

    wants_numbers = True

    def __init__(self, rank: int, clock: Callable[[], float]) -> None:
        self.rank, self.clock = rank, clock
        self.spans: list[tuple[str, int | None, float, float]] = []
        self.messages: list[tuple[str, str, float, int]] = []
        self.numbers: list[tuple[str, float, float]] = []
        self._sent: Counter[int] = Counter()
        self._received: Counter[int] = Counter()

    def phase(self, name: str, level: int | None = None) -> "_Span":
        return _Span(self, name, level)

    def sent(self, to: int, size: int) -> None:
        self._sent[to] += 1
        self.messages.append(("s", f"{self.rank} to {to}: {self._sent[to]}", self.clock(), size))

    def received(self, source: int) -> None:
        self._received[source] += 1
        self.messages.append(("f", f"{source} to {self.rank}: {self._received[source]}", self.clock(), 0))

    def counted(self, name: str, value: float) -> None:
        if math.isfinite(value):
            self.numbers.append((name, self.clock(), value))

    def events(self, origin: float) -> list[Event]:
        """All of it in the order of time, which is counted from `origin` on; numbers are those of rank 0."""
        row = {"pid": PROCESS, "tid": self.rank + 1}

        def at(time: float) -> float:
            return round((time - origin) * 1e6, 3)

        found: list[Event] = []
        for name, level, begin, end in self.spans:
            args = {} if level is None else {"level": level}
            ts = at(begin)
            found.append({"ph": "X", "name": name, "cat": "phase", "ts": ts, "dur": at(end) - ts, **row, "args": args})
        for kind, key, time, size in self.messages:
            event = {"ph": kind, "name": "message", "cat": "message", "id": key, "ts": at(time), **row}
            found.append(event | ({"args": {"bytes": size}} if kind == "s" else {"bp": "e"}))
        for name, time, value in self.numbers if self.rank == 0 else ():
            found.append({"ph": "C", "name": name, "ts": at(time), "pid": PROCESS, "args": {name: value}})
        return sorted(found, key=lambda event: (event["ts"], -event.get("dur", 0.0)))


class _Span:
    """A phase that is under way."""

    __slots__ = ("begin", "level", "name", "recorder")

    def __init__(self, recorder: Recorder, name: str, level: int | None) -> None:
        self.recorder, self.name, self.level = recorder, name, level

    def __enter__(self) -> None:
        self.begin = self.recorder.clock()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        recorder = self.recorder
        recorder.spans.append((self.name, self.level, self.begin, recorder.clock()))


def names(ranks: int, title: str) -> list[Event]:
    """What the rows are called."""
    rows: list[Event] = [{"ph": "M", "name": "process_name", "pid": PROCESS, "args": {"name": title}}]
    for rank in range(ranks):
        row = {"ph": "M", "pid": PROCESS, "tid": rank + 1}
        rows.append({**row, "name": "thread_name", "args": {"name": f"rank {rank}"}})
        rows.append({**row, "name": "thread_sort_index", "args": {"sort_index": rank}})
    return rows
