"""What `lpnet.train` cannot use: one line that names key, value and way out, code 2, no traceback, nothing left."""

import os
from pathlib import Path

import pytest

from lpnet import launch, slab, train
from lpnet.commandline import parse
from lpnet.errors import InputError, NonFiniteError
from lpnet.keys import leaves

SMALL = ("--data.train=30", "--data.validation=20", "--trunk.layers=6", "--trunk.width=3", "--training.steps=1")


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that these arguments bring."""
    assert train.main(arguments) == launch.BAD_INPUT
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith("\n")
    assert said.err.count("\n") == 1
    assert said.err.startswith("lpnet.train: error: ")
    assert not {"Traceback", "usage:"} & set(said.err.split())
    return said.err


@pytest.mark.parametrize("key", leaves())
@pytest.mark.parametrize("value", ["[[]]", "\0é\n{"])
def test_no_argument_brings_a_traceback(key: str, value: str) -> None:
    """Every key with values that hardly a key can have: each is refused in one line, or it is a text."""
    try:
        parse([f"--{key}={value}"])
    except InputError as error:
        said = str(error)
    else:
        said = ""
    if said:
        assert "\n" not in said
        assert key.rpartition(".")[2] in said
    else:
        assert leaves()[key] in (str, str | None)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_folders_without_permission(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    assert "run.dir" in refused(capsys, *SMALL, "--run.dir", str(closed))
    assert "run.dir" in refused(capsys, *SMALL, "--run.dir", str(closed / "below"))


# ---- launch --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (None, 0, ""),
        (InputError("trunk.x: 3 given"), 2, "name: error: trunk.x: 3 given\n"),
        (NonFiniteError("step 3"), 3, "name: step 3\n"),
        (KeyboardInterrupt(), 130, "name: interrupted\n"),
    ],
)
def test_outcomes_have_codes_and_words(
    error: BaseException | None, code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(comm: slab.Comm) -> None:
        if error is not None:
            raise error

    assert launch.run("name", job) == code
    assert capsys.readouterr().err == words


def test_answers_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    def job(comm: slab.Comm) -> None:
        raise launch.Answer("what was asked for\n")

    assert launch.run("name", job) == 0
    assert capsys.readouterr() == ("what was asked for\n", "")
