"""Laws of traces: alignment of clocks, which steps are traced, and what a training run writes."""

import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import SMALL
from tracing import check_format, end_of, events_of, rows_of

from lpnet import slab, train
from lpnet.log import RunLog
from lpnet.phases import phase
from lpnet.trace import Recorder
from lpnet.trace.__main__ import main as command
from lpnet.trace.alignment import offset_of
from lpnet.trace.profile import WARM, first_of


@given(
    offsets=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=4),
    delays=st.lists(st.floats(1e-6, 1e-2), min_size=5, max_size=5),
    shared=st.booleans(),
)
def test_offsets_are_found_within_their_error(offsets: list[float], delays: list[float], shared: bool) -> None:
    """All ranks send at the times t_k, and have heard of the last one a delay later."""
    offsets = [0.0, *(0.0 if shared else o for o in offsets)]
    true = np.cumsum([1.0] * len(delays))
    sent = np.array([[t + o + 1e-4 * r for t in true] for r, o in enumerate(offsets)])
    heard = np.array([[t + o + 1e-3 + d for t, d in zip(true, delays, strict=True)] for o in offsets])
    table = np.stack([sent, heard], axis=2)
    begin = offset_of(0, table).origin
    for rank, offset in enumerate(offsets):
        found = offset_of(rank, table)
        assert abs(found.origin - begin - offset) <= found.error + 1e-9
        assert found.error <= 1e-3 + min(delays) + 1e-9
        assert not shared or found.origin == begin


@given(st.integers(0, 9), st.integers(1, 30), st.integers(1, 20))
def test_traced_steps_are_those_of_the_last_level(begin: int, more: int, count: int) -> None:
    steps = begin + more
    first = first_of(begin, steps, count)
    assert begin <= first < steps
    assert first + count <= steps or first == begin
    assert first == begin + WARM or first + count >= steps


def test_phases_are_nested_and_timed_by_the_clock_given() -> None:
    comm, ticks = slab.Comm(), iter(range(100))
    comm.observer = recorder = Recorder(0, lambda: float(next(ticks)))
    with phase(comm, "outer"), phase(comm, "inner", 1):
        recorder.counted("residual", 0.5)
        recorder.counted("residual", float("nan"))
    outer, inner, number = recorder.events(0.0)
    assert (outer["ts"], outer["dur"]) == (0.0, 4e6)
    assert (inner["ts"], inner["dur"], inner["args"]) == (1e6, 2e6, {"level": 1})
    assert (number["ph"], number["ts"], number["args"]) == ("C", 2e6, {"residual": 0.5})


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunLog, "draw", lambda *_: None)


@pytest.mark.parametrize(
    ("more", "steps"),
    [(("--run.profile_steps=2",), 2), (("--run.profile_steps=30", "--multilevel.levels=2"), 3)],
)
def test_a_run_writes_a_trace(tmp_path: Path, more: tuple[str, ...], steps: int) -> None:
    """Of so many steps, those of the last level at most."""
    assert train.main([*SMALL, f"--run.dir={tmp_path / 'run'}", "--run.profile=true", *more]) == 0
    events = events_of(tmp_path / "run" / "trace.json")
    check_format(events, 1)
    (row,) = rows_of(events).values()
    count = Counter(event["name"] for event in row)
    assert count["optimizer"] == count["norm of the gradient"] == steps
    assert min(count[name] for name in ("forward", "adjoint", "weights", "loss", "loss and gradient", "sweep")) >= steps
    assert slab.world().observer is None


def test_a_trace_only_if_wanted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main([*SMALL, f"--run.dir={tmp_path / 'run'}"]) == 0
    assert not (tmp_path / "run" / "trace.json").exists()
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 6
    for given_, said in (("profile_steps=0", "profile_steps: 0 given"), ("profile=some", "run.profile: some given")):
        assert train.main([f"--run.{given_}"]) == 2
        assert said in capsys.readouterr().err


DOCS = Path(__file__).parent.parent / "docs" / "profiling.md"


def test_the_example_of_the_docs_and_its_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chains and sweeps of different ranks overlap, in modelled time."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), flags=re.S)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, DOCS.name, "exec"), {})
    events = events_of(tmp_path / "trace.json")
    check_format(events, 4)
    rows = rows_of(events)
    first, last = ([e for e in rows[r] if e["name"] in ("chain", "sweep")] for r in (0, 3))
    sweep = next(e for e in first if e["name"] == "sweep")
    chain = next(e for e in last if e["name"] == "chain" and e["dur"] > 0)
    assert sweep["ts"] < end_of(chain)
    assert command(["plot", "trace.json", "--out", "picture.png"]) == 0
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    assert "4 ranks, modelled time: picture.png" in capsys.readouterr().out
    (tmp_path / "other.json").write_text("[1]")
    for given_, said in (
        (["plot"], "FILE: nothing given"),
        (["draw"], "command: draw given, plot allowed"),
        (["plot", "no.json"], "FILE: 'no.json' given"),
        (["plot", "other.json"], "no trace of lpnet"),
        (["plot", "trace.json", "--from=3", "--to=2"], "from, to: 3 and 2 given"),
        (["plot", "trace.json", "--from=1e9"], "from, to: 1e+09 and inf given"),
        (["plot", "trace.json", "--out=no/where.png"], "--out: 'no/where.png' given"),
    ):
        assert command(given_) == 2
        error = capsys.readouterr().err
        assert said in error
        assert error.count("\n") == 1
