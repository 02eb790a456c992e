"""The main job from end to end: what it writes, that it learns, repeats itself, and stops in good order."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lpnet
from lpnet import data, launch, modelfile, slab, train
from lpnet.commandline import parse
from lpnet.errors import NonFiniteError
from lpnet.log import RunLog
from lpnet.network import Examples, Network, build
from lpnet.training.loop import Tensors, evaluate, fit

SMALL = (
    "--data.train=40", "--data.validation=20", "--trunk.layers=8", "--trunk.width=3", "--solver.forward.coarsening=3",
    "--solver.adjoint.coarsening=3", "--training.steps=6", "--training.batch=16", "--training.validate_every=4",
)  # fmt: skip


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


class Silent:
    """A log that keeps the records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def step(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def warn(self, message: str) -> None:
        raise AssertionError(message)


def network(*arguments: str) -> tuple[Network, Tensors]:
    config = parse([*SMALL, "--run.dtype=float64", *arguments])
    dataset = data.load(config.data, config.run.seed)
    net = build(config, Examples(dataset.features, dataset.classes, dataset.shift, dataset.scale), slab.Comm())
    return net, Tensors.of(dataset, net.classifier.weight)


# ---- the run folder ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "deep" / "run"  # made with its parents
    assert run(folder) == 0
    return folder


def test_run_folder_holds_what_it_should_and_no_leftovers(folder: Path) -> None:
    names = {"config.yaml", "metrics.jsonl", "summary.json", "model.h5", "history.png", "regions.png"}
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


# ---- learning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", ["null", "100"])
def test_it_learns(batch: str) -> None:
    net, examples = network(
        "ellipses", "--data.train=300", "--data.validation=300", "--trunk.dynamics=dense", "--trunk.T=3", "--trunk.width=6",
        "--trunk.layers=32", "--optimizer.lr=0.05",
        "--training.steps=120", f"--training.batch={batch}",
    )  # fmt: skip
    before = evaluate(net, examples)
    log = Silent()
    after = fit(net, examples, log)
    assert after["val_accuracy"] > 0.9 > before["val_accuracy"]
    assert after["train_loss"] < 0.5 * before["train_loss"]
    assert log.records[-1]["step"] == 120
    assert after["val_accuracy"] == evaluate(net, examples)["val_accuracy"]


def test_losses_of_converged_solves_are_those_of_plain_autograd() -> None:
    """The slow, obvious twin: torch's own modules, autograd and optimizer."""
    exact = tuple(f"--solver.{way}.{key}" for way in ("forward", "adjoint") for key in ("kind=serial", "coarsening=null"))
    given = ("--regularizer.tikhonov=0.01", "--regularizer.ddt=0.02", "--regularizer.classifier=0.03")
    steady = ("--training.batch=null", "--optimizer.clip=0.5", "--schedule.name=constant", "--schedule.warmup=0")
    net, examples = network(*exact, *given, *steady)
    plain, config = net.as_sequential(), net.config
    log = Silent()
    fit(net, examples, log)
    h = config.trunk.T / config.trunk.layers
    optimizer = torch.optim.Adam(plain.parameters(), lr=config.optimizer.lr)
    for record in log.records:
        layers = [torch.cat([p.flatten() for p in layer.parameters()]) for layer in plain[1]]  # type: ignore[arg-type]
        theta = torch.stack(layers)
        loss = torch.nn.functional.cross_entropy(plain(examples.train_x), examples.train_y)
        loss = loss + 0.01 * 0.5 * h * theta.square().sum() + 0.02 * 0.5 / h * theta.diff(dim=0).square().sum()
        loss = loss + 0.03 * 0.5 * plain[2].weight.square().sum()  # type: ignore[union-attr]
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.step()
        assert record["loss"] == pytest.approx(loss.item(), rel=1e-9)
        assert record["grad_norm"] == pytest.approx(norm.item(), rel=1e-7)


def test_evaluation_is_exact_whatever_the_solver() -> None:
    net, examples = network("--solver.forward.cycles=0", "--trunk.T=20", "--trunk.init=random", "--trunk.width=8")
    plain = net.as_sequential()
    with torch.no_grad():
        logits, inexact = plain(examples.val_x), net(examples.val_x)
    found = evaluate(net, examples)
    assert found["val_loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, examples.val_y).item(), rel=1e-12)
    assert found["val_accuracy"] == (logits.argmax(1) == examples.val_y).double().mean().item()
    assert not torch.allclose(logits, inexact, rtol=1e-6)  # so the solver would have made a difference
    assert net.training


def test_every_epoch_sees_every_example_once_in_an_order_of_its_own() -> None:
    net, examples = network("--training.batch=16")
    seen: list[torch.Tensor] = []
    net.opening.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]) if net.training else None)
    fit(net, examples, Silent())
    epochs = [torch.cat(seen[:3]), torch.cat(seen[3:])]
    for epoch in epochs:
        assert sorted(epoch.tolist()) == sorted(examples.train_x.tolist())
    assert not torch.equal(*epochs)
    assert not torch.equal(epochs[0], examples.train_x)


def records_of(arguments: Iterable[str]) -> list[dict[str, Any]]:
    net, examples = network(*arguments)
    log = Silent()
    fit(net, examples, log)
    return [record | {"seconds": 0} for record in log.records]


def test_a_run_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = records_of(["--run.seed=3"])
    torch.manual_seed(2)
    assert records_of(["--run.seed=3"]) == first
    assert records_of(["--run.seed=4"]) != first


def test_training_leaves_torchs_random_state_alone() -> None:
    before = torch.get_rng_state()
    records_of([])
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["peaks", "ellipses", "swissroll", "digits"])
@pytest.mark.parametrize("opening", ["linear", "pad", "auto"])
def test_every_preset_and_opening_builds_a_network_of_the_right_shapes(name: str, opening: str) -> None:
    width = "64" if name == "digits" else "2"
    config = parse([name, "--trunk.layers=5", f"--trunk.width={width}", f"--trunk.opening={opening}"])
    net = build(config, Examples(int(width), 4), slab.Comm())
    x = torch.randn(3, int(width), generator=torch.Generator().manual_seed(0))
    assert net(x).shape == (3, 4)
    if opening != "linear":
        assert torch.equal(net.opening(x), x)


# ---- ends ----------------------------------------------------------------------------------------------------------


WILD = (
    "--optimizer.name=sgd", "--optimizer.lr=1e25", "--schedule.name=constant", "--schedule.warmup=0",
    "--regularizer.tikhonov=1.0",
)  # fmt: skip


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


@pytest.mark.parametrize("lr", ["1e25", "1e120"])
def test_the_last_weights_with_a_finite_loss_are_kept(lr: str) -> None:
    net, examples = network(*WILD, f"--optimizer.lr={lr}", "--training.steps=40")
    states = [[p.detach().clone() for p in net.parameters()]]

    class Keeping(Silent):
        def step(self, record: dict[str, Any]) -> None:
            super().step(record)
            states.append([p.detach().clone() for p in net.parameters()])

    log = Keeping()
    with pytest.raises(NonFiniteError, match=r"step \d+: the (loss|norm of the gradient) is (nan|inf)"):
        fit(net, examples, log)
    count = len(log.records)
    assert 2 <= count < 40
    # states[k] are the weights after step k; step k + 1 found their loss.
    for kept, good in zip(net.parameters(), states[count - 2], strict=True):
        assert torch.equal(kept, good)
    assert math.isfinite(evaluate(net, examples)["train_loss"])


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


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_fails_alone_ends_all_within_seconds(tmp_path: Path, rank: int) -> None:
    mpirun = shutil.which("mpirun", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if mpirun is None or slab.launcher():
        pytest.skip("needs mpirun, and not to run under it")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom lpnet import slab, train\nimport lpnet.training.loop as loop\nreal = loop._solves\n"
        f"def solves(net):\n    if slab.world().rank == {rank}:\n        raise KeyError('boom')\n    return real(net)\n"
        "loop._solves = solves\nsys.exit(train.main(sys.argv[1:]))\n"
    )
    command = [mpirun, "-n", "2", sys.executable, str(script), *SMALL, "--run.dir", str(tmp_path / "run")]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(lpnet.__file__).parents[1])}
    start = time.monotonic()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert time.monotonic() - start < 40
    assert done.returncode != 0
    assert f"[rank {rank} of 2] Traceback" in done.stderr
    assert "KeyError: 'boom'" in done.stderr
