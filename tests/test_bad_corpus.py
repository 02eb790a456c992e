"""Everything in `bad`: one clear line, exit code 2, nothing written, within seconds; on several ranks see mpi."""

import time
from pathlib import Path

import pytest
from bad.corpus import Case, cases, judged

ALL = list(cases())


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_it_is_refused(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    case.prepare(tmp_path)
    capfd.readouterr()

    def outcome() -> tuple[int, str, str]:
        code = case.main()
        return (code, *capfd.readouterr())

    # Of the processor, since other tests may be at work: what hangs is ended by the timeout of all tests.
    assert judged(case, tmp_path, outcome, time.process_time) == []


def test_there_are_as_many_as_were_promised() -> None:
    assert len(ALL) >= 300
    assert len({case.name for case in ALL}) == len(ALL)
