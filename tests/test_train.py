"""The main job from end to end: what it writes, what it says, and how it ends."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_runs import SMALL, WILD

import lpnet
from lpnet import commandline, launch, modelfile, plots, slab, train
from lpnet.data import load
from lpnet.log import RunLog
from lpnet.phases import observe
from lpnet.watchdog import Beat


def strict(text: str) -> Any:
    """JSON without NaN and Infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in JSON")

    return json.loads(text, parse_constant=refuse)


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [strict(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run(folder: Path, *arguments: str) -> int:
    return train.main([*SMALL, "--run.dir", str(folder), *arguments])


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunLog, "draw", lambda *_: None)


# ---- the run folder ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "deep" / "run"  # made with its parents
    assert run(folder) == 0
    return folder


def test_run_folder_holds_what_it_should_and_no_leftovers(folder: Path) -> None:
    names = {"config.yaml", "metrics.jsonl", "summary.json", "model.h5", "history.png", "regions.png", "checkpoints"}
    assert {path.name for path in folder.iterdir()} == names
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in ("history.png", "regions.png"))


def test_metrics_have_a_line_a_step(folder: Path) -> None:
    records = metrics(folder)
    assert [r["step"] for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r["epoch"] for r in records] == [1, 1, 1, 2, 2, 2]  # 40 examples: 16, 16, 8
    for r in records:
        assert {"loss", "cross_entropy", "grad_norm", "lr", "seconds"} <= set(r)
        assert r["cycles_forward"] == r["cycles_adjoint"] == 1
        assert len(r["residuals_forward"]) == len(r["residuals_adjoint"]) == 2
        assert r["seconds"] > 0
        assert r["loss"] > r["cross_entropy"] > 0  # the regularisers are part of the loss
    assert [r["step"] for r in records if "val_accuracy" in r] == [4, 6]


def test_summary_is_that_of_the_last_record(folder: Path) -> None:
    found, last = strict((folder / "summary.json").read_text()), metrics(folder)[-1]
    for key in ("loss", "train_accuracy", "val_accuracy", "train_loss", "val_loss"):
        assert found[key] == last[key]
    expected = {"steps": 6, "layers": 8, "ranks": 1, "evaluation": "serial", "preset": "peaks", "seed": 0}
    assert {key: found[key] for key in expected} == expected
    assert found["wall_s"] > 0
    assert found["lpnet"] == lpnet.__version__


def test_config_of_the_run_folder_gives_the_same_run(folder: Path, tmp_path: Path, no_pictures: None) -> None:
    again = tmp_path / "again"
    assert train.main(["--config", str(folder / "config.yaml"), "--run.dir", str(again)]) == 0
    first, second = (yaml.safe_load((f / "config.yaml").read_text()) for f in (folder, again))
    assert first["run"].pop("dir") == str(folder)
    assert second["run"].pop("dir") == str(again)
    assert first == second
    for one, other in zip(metrics(folder), metrics(again), strict=True):
        assert one | {"seconds": 0} == other | {"seconds": 0}  # bit for bit


def test_default_folders_are_fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        assert train.main([*SMALL, "--training.steps=1"]) == 0
    made = sorted((tmp_path / "runs").iterdir())
    assert len(made) == 3
    assert all(path.name.startswith("peaks-") and (path / "summary.json").exists() for path in made)


def test_data_with_other_than_two_features_have_no_regions(tmp_path: Path) -> None:
    assert train.main(["digits", *SMALL, "--training.steps=1", "--run.dir", str(tmp_path / "d")]) == 0
    assert not (tmp_path / "d" / "regions.png").exists()
    assert (tmp_path / "d" / "history.png").exists()


def test_standard_output_says_where_and_how_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], no_pictures: None
) -> None:
    run(tmp_path / "a", "--run.progress=true")
    said = capsys.readouterr()
    assert str(tmp_path / "a") in said.out
    assert "exact evaluation" in said.out
    assert "6/6" in said.err
    run(tmp_path / "b", "--run.progress=false")
    assert capsys.readouterr().err == ""


def test_the_batch_of_a_preset_gives_way_to_fewer_examples(tmp_path: Path, no_pictures: None) -> None:
    few = ["digits", "--data.train=20", "--data.validation=20", "--trunk.layers=4", "--run.dir", str(tmp_path / "few")]
    assert train.main([*few, "--training.epochs=3"]) == 0
    assert yaml.safe_load((tmp_path / "few" / "config.yaml").read_text())["training"]["batch"] is None
    assert [r["epoch"] for r in metrics(tmp_path / "few")] == [1, 2, 3]
    assert train.main([*few, "--training.batch=21"]) == launch.BAD_INPUT


# ---- ends ----------------------------------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", *WILD) == launch.NON_FINITE
    said = capsys.readouterr().err.splitlines()
    records = metrics(tmp_path / "run")
    assert len(said) == 1
    assert f"step {len(records)}" in said[0]
    assert str(tmp_path / "run" / "model.h5") in said[0]
    assert records[-1]["loss"] is None or records[-1]["grad_norm"] is None
    assert all(r["loss"] is not None for r in records[:-1])
    assert not (tmp_path / "run" / "summary.json").exists()
    modelfile.load(tmp_path / "run" / "model.h5")  # which refuses weights that are not finite


def test_an_interrupted_run_ends_with_130(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunLog, "step", interrupt)
    assert run(tmp_path / "run") == launch.INTERRUPTED


def test_an_exception_shows_its_traceback_and_ends_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunLog, "step", fail)
    assert run(tmp_path / "run") == launch.FAILED
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert "No space left on device" in said


def test_metrics_are_there_after_each_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_pictures: None) -> None:
    counts = []
    real = RunLog.step

    def step(self: RunLog, record: dict[str, Any]) -> None:
        real(self, record)
        counts.append(len(metrics(tmp_path / "run")))

    monkeypatch.setattr(RunLog, "step", step)
    assert run(tmp_path / "run") == 0
    assert counts == [1, 2, 3, 4, 5, 6]


def test_a_run_is_finished_before_its_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunLog, "_draw", full)
    assert run(tmp_path / "run") == launch.UNWRITABLE
    assert strict((tmp_path / "run" / "summary.json").read_text())["steps"] == 6
    assert train.main(["--resume", str(tmp_path / "run")]) == launch.DONE
    assert "this run is finished" in capsys.readouterr().out


def test_pictures_are_seen_to_go_on(folder: Path, tmp_path: Path) -> None:
    """By a watchdog: there are more beats than layers, for each of the parts of a picture."""
    shutil.copy(folder / "metrics.jsonl", tmp_path)
    comm, beat, net = slab.Comm(), Beat(), modelfile.load(folder / "model.h5")
    observe(comm, beat)
    config = commandline.parse([*SMALL])
    log, data = RunLog(comm, tmp_path, config, 6, 6), load(config.data, config.run.seed)
    log.draw(net.as_sequential(), data, net.classifier.weight)
    assert (tmp_path / "regions.png").exists()
    assert beat.count > 8 * (320 * 320 // plots.CHUNK)
    assert beat.doing() == "before the first step"


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_alone_ends_all_within_seconds(tmp_path: Path, rank: int) -> None:
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpirun is None or slab.launcher():
        pytest.skip("needs mpirun, and not to run under it")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom lpnet import slab, train\nimport lpnet.training.loop as loop\nreal = loop.solves\n"
        f"def solves(*given):\n    if slab.world().rank == {rank}:\n        raise KeyError('boom')\n"
        "    return real(*given)\n"
        "loop.solves = solves\nsys.exit(train.main(sys.argv[1:]))\n"
    )
    command = [mpirun, "-n", "2", sys.executable, str(script), *SMALL, "--run.dir", str(tmp_path / "run")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(lpnet.__file__).parents[1])}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert f"[rank {rank} of 2] Traceback" in done.stderr
    assert "KeyError: 'boom'" in done.stderr
