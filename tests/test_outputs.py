"""What standard output and error do not take is lost, and changes no exit code; but an answer that is lost is told."""

import io
import subprocess
import sys
from pathlib import Path

import pytest
from small_runs import SMALL

from lpnet import launch, outputs, slab

pytestmark = pytest.mark.skipif(slab.launcher() is not None, reason="starts its processes itself")

RUN = ("-m", "lpnet.train", *SMALL, "--training.steps=2", "--run.progress=true", "--run.dir=run")
BAD = ("-m", "lpnet.train", "--trunk.layers=-1")
HELP = ("-m", "lpnet.predict", "--help")
INFO = ("-m", "lpnet.info")
SCRIPT = ("-c", "import lpnet; lpnet.MGRIT(coarsening=1)")


class Refusing(io.StringIO):
    """A stream that takes nothing."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def code(arguments: tuple[str, ...], folder: Path, where: str) -> int:
    """How a command ends whose outputs go there."""
    command = f'exec "$@" {where}'
    if where == "|":  # the reader has gone before anything is said
        command = 'set -o pipefail; "$@" 2>&1 | true'
    words = ["bash", "-c", command, "bash", sys.executable, *arguments]
    return subprocess.run(words, cwd=folder, timeout=120, check=False, stderr=subprocess.DEVNULL).returncode


@pytest.mark.parametrize(
    ("arguments", "where", "expected"),
    [
        (BAD, "2>/dev/full", launch.BAD_INPUT),
        (SCRIPT, "2>/dev/full", launch.BAD_INPUT),
        (RUN, ">/dev/full 2>&1", launch.DONE),
        (RUN, ">&- 2>&-", launch.DONE),
        (RUN, "|", launch.DONE),
        (HELP, "|", launch.DONE),
        (HELP, ">/dev/full 2>&1", launch.UNWRITABLE),
        (INFO, "|", launch.DONE),
        (INFO, ">/dev/full", launch.UNWRITABLE),
    ],
)
def test_exit_codes_stay(arguments: tuple[str, ...], where: str, expected: int, tmp_path: Path) -> None:
    assert code(arguments, tmp_path, where) == expected
    assert (tmp_path / "run" / "summary.json").exists() == (arguments == RUN)


def test_only_what_the_system_refuses_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(OSError(28, "no room")))
    monkeypatch.setattr(sys, "stderr", Refusing(ValueError("closed")))
    before = sys.stdout, sys.stderr
    with outputs.lenient():
        print("lost", flush=True)
        with pytest.raises(ValueError, match="closed"):
            print("not lost", file=sys.stderr)
        with pytest.raises(OSError, match="no room"):
            outputs.tell("an answer")
    assert (sys.stdout, sys.stderr) == before


def test_an_answer_whose_reader_has_gone_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Refusing(BrokenPipeError()))
    outputs.tell("an answer")


def test_what_is_taken_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    with outputs.lenient():
        print("one")
        print("two", file=sys.stderr)
        outputs.tell("three")
    assert capsys.readouterr() == ("one\nthree\n", "two\n")
