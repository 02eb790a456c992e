"""Checkpoints whose check sums are right, but not what they say: the run folder stays as it was."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import run

from lpnet import launch, train
from lpnet.checkpoint import file
from lpnet.checkpoint.content import Content
from lpnet.log import RunLog
from lpnet.slab import Comm
from lpnet.version import __version__

Change = Callable[[Content], None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "draw", lambda *_: None)
        assert run(folder, "--control.gradient_tol=0.01") == 0
    (folder / "summary.json").unlink()
    (folder / "checkpoints" / "step-00000000.h5").unlink()
    return folder


def said(part: str, key: str, value: Any) -> Change:
    """Something else in the meta data; Ellipsis: nothing."""

    def change(content: Content) -> None:
        told = {k: v for k, v in content.meta[part].items() if k != key or value is not ...}
        content.meta[part] = told if value is ... else told | {key: value}

    return change


MOMENT = "optimizer/exp_avg/classifier/weight"
FORGED: dict[str, Change] = {
    "a key less": said("course", "factor", ...),
    "no number of steps": said("course", "done", math.inf),
    "a factor that is a text": said("course", "factor", "x"),
    "no totals": said("course", "totals", None),
    "empty totals": said("course", "totals", {}),
    "an empty record": said("course", "last", {}),
    "resumed without end": said("run", "resumed", math.inf),
    "calls without end": said("trunk", "calls", math.inf),
    "control of another form": said("trunk", "control", {}),
    "a moment of another shape": lambda content: content.whole.update({MOMENT: torch.zeros(3)}),
    "a moment of another type": lambda content: content.whole.update({MOMENT: content.whole[MOMENT].long()}),
    "a moment less": lambda content: content.meta["optimizer"]["state"]["opening.bias"]["tensors"].remove("exp_avg"),
}


def forge(folder: Path, change: Change) -> None:
    path = folder / "checkpoints" / "step-00000006.h5"
    stored = file.read(path, Comm())
    content = Content(dict(stored.meta), {name: stored.whole(name) for name in stored.names()})
    stored.close()
    change(content)
    file.write(path, Comm(), content)


@pytest.mark.parametrize("name", FORGED)
def test_what_is_refused_leaves_the_folder_alone(
    name: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(base, folder)
    forge(folder, FORGED[name])
    kept = [folder / "metrics.jsonl", folder / "config.yaml"]
    kept[0].write_text(kept[0].read_text() + "{}\n")  # steps behind the checkpoint
    before = [path.read_bytes() for path in kept]
    assert train.main(["--resume", str(folder), "--run.threads=1"]) == launch.BAD_INPUT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"lpnet.train: error: checkpoint: '{folder / 'checkpoints'}")
    if name == "a key less":
        assert f"(it is of another training, or lpnet {__version__} wrote another form)" in line
    assert [path.read_bytes() for path in kept] == before
