"""Checkpoints whose check sums are right, but not what they say: the one before is used, or nothing is changed."""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_train import metrics, run

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
        given = "--control.gradient_tol=0.01", "--run.checkpoint_every=3", "--training.on_nan=rollback"
        assert run(folder, *given) == 0
    (folder / "summary.json").unlink()
    return folder


def said(part: str, key: str, value: Any) -> Change:
    """Something else in the meta data; Ellipsis: nothing."""

    def change(content: Content) -> None:
        told = {k: v for k, v in content.meta[part].items() if k != key or value is not ...}
        content.meta[part] = told if value is ... else told | {key: value}

    return change


NO_RUN: dict[str, Change] = {
    "no run": lambda content: content.meta.pop("run"),
    "no number of steps": said("course", "done", math.inf),
    "resumed without end": said("run", "resumed", math.inf),
    "no layers": said("run", "layers", ...),
    "no history": lambda content: content.whole.pop("history"),
}


def good(content: Content) -> dict[str, Any]:
    found: dict[str, Any] = content.meta["good"]["optimizer"]
    return found


MOMENT, GOOD = "optimizer/exp_avg/classifier/weight", "good/trunk/K"
FORGED: dict[str, Change] = {
    "a configuration with an unknown key": lambda content: content.meta["run"]["config"]["run"].update(other=1),
    "a key less": said("course", "factor", ...),
    "a factor that is a text": said("course", "factor", "x"),
    "no totals": said("course", "totals", None),
    "empty totals": said("course", "totals", {}),
    "an empty record": said("course", "last", {}),
    "a draw without end": said("trunk", "drawn", math.inf),
    "control of another form": said("trunk", "control", {}),
    "a moment of another shape": lambda content: content.whole.update({MOMENT: torch.zeros(3)}),
    "a moment of another type": lambda content: content.whole.update({MOMENT: content.whole[MOMENT].long()}),
    "good weights of another shape": lambda content: content.whole.update({"good/classifier/bias": torch.zeros(1)}),
    "good weights of another type": lambda content: content.whole.update({GOOD: content.whole[GOOD].int()}),
    "a good moment of another shape": lambda content: content.whole.update({f"good/{MOMENT}": torch.zeros(3)}),
    "a good moment less": lambda content: good(content)["state"]["opening.bias"]["tensors"].remove("exp_avg"),
    "a good optimizer of another kind": lambda content: good(content).update(kind="SGD"),
    "good options of another type": lambda content: good(content)["groups"][0].update(betas="x"),
    "nothing good": said("good", "optimizer", ...),
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
    if name == "a configuration with an unknown key":
        assert line.startswith("lpnet.train: error: run.other: unknown key")
    else:
        assert line.startswith(f"lpnet.train: error: checkpoint: '{folder / 'checkpoints' / 'step-00000006.h5'}")
    if name == "a key less":
        assert f"(it is of another training, or lpnet {__version__} wrote another form)" in line
    assert [path.read_bytes() for path in kept] == before
    assert not list(folder.glob("**/*.damaged"))


@pytest.mark.parametrize("name", NO_RUN)
def test_the_one_before_is_used_where_the_newest_is_of_no_run(name: str, base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(base, folder)
    forge(folder, NO_RUN[name])
    forged = (folder / "checkpoints" / "step-00000006.h5").read_bytes()
    with pytest.warns(UserWarning, match=r"step-00000006.h5' given \(.*; the one before is tried"):
        assert train.main(["--resume", str(folder), "--run.threads=1"]) == 0
    assert metrics(folder)[-1]["step"] == 6
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == [
        "step-00000003.h5",
        "step-00000006.h5",
        "step-00000006.h5.damaged",
    ]
    assert (folder / "checkpoints" / "step-00000006.h5.damaged").read_bytes() == forged


def test_what_was_kept_of_an_optimizer_under_its_earlier_name_is_taken_up(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(base, folder)
    forge(folder, lambda content: good(content).update(kind="Good"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "draw", lambda *_: None)
        assert train.main(["--resume", str(folder)]) == launch.DONE
