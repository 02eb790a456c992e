"""Laws of training on several levels: one course of steps, rates and examples, whatever the layers."""

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import SMALL, WILD, Silent, network
from test_train import metrics

import lpnet
from lpnet import InputError, launch, modelfile, train
from lpnet.commandline import parse
from lpnet.errors import NonFiniteError
from lpnet.log import RunLog
from lpnet.training.evaluation import evaluate
from lpnet.training.levels import Training, described
from lpnet.training.loop import fit

THREE = ("--multilevel.levels=3", "--training.steps=9")


def trained(*arguments: str) -> tuple[Training, Silent, dict[str, Any]]:
    net, data = network(*arguments)
    log = Silent()
    training = Training(net, data, log)
    return training, log, training.run()


@pytest.mark.parametrize(
    "more",
    [
        ("--schedule.name=cosine", "--optimizer.name=adamw"),
        ("--schedule.name=onecycle", "--optimizer.name=sgd", "--optimizer.momentum=0.9", "--schedule.warmup=0"),
        ("--schedule.name=linear", "--optimizer.name=lbfgs", "--training.batch=null"),
        ("--training.method=simultaneous",),
        ("--optimizer.name=gauss_newton", "--training.batch=null", "--schedule.name=step"),
        ("--optimizer.name=ncg", "--training.batch=null"),
    ],
)
def test_steps_rates_and_epochs_are_those_of_one_network(more: tuple[str, ...]) -> None:
    training, log, record = trained(*THREE, *more)
    one, data = network(*more, "--training.steps=9")
    single = Silent()
    fit(one, data, single)
    for key in ("step", "epoch", "lr"):
        assert [r[key] for r in log.records] == pytest.approx([r[key] for r in single.records])
    assert [(r["level"], r["layers"]) for r in log.records] == [(1, 2)] * 3 + [(2, 4)] * 3 + [(3, 8)] * 3
    assert record["val_accuracy"] == evaluate(training.net, data)["val_accuracy"]
    assert [r["step"] for r in log.records if "val_accuracy" in r] == [3, 4, 6, 8, 9]


def test_levels_are_reported_with_what_exact_evaluations_give() -> None:
    _, log, record = trained(*THREE, "--multilevel.shares=[1, 1, 7]", "--training.batch=null")
    levels = record["levels"]
    assert [level["layers"] for level in levels] == [2, 4, 8]
    assert [r["level"] for r in log.records] == [1, 2, *[3] * 7]
    for a, b in pairwise(levels):
        assert b["before"] == a["end"]
        assert b["jump"] == pytest.approx((b["start"] - b["before"]) / b["before"])
    assert levels[0]["start"] == pytest.approx(log.records[0]["loss"])  # no iteration on two layers
    assert levels[-1]["accuracy"] == record["val_accuracy"]
    work = sum(level["work"] * 2 * 8 for level in levels)
    assert work == pytest.approx(record["layer_evaluations"])
    lines = described(levels)
    assert lines[1].startswith(f"4 layers: objective {levels[0]['end']:.4g}, prolongated {levels[1]['start']:.4g} (")


def test_one_level_is_the_plain_loop() -> None:
    (first, log, _), (net, data), plain = trained("--multilevel.levels=1"), network(), Silent()
    fit(net, data, plain)
    assert [r["loss"] for r in log.records] == [r["loss"] for r in plain.records]
    assert all(torch.equal(p, q) for p, q in zip(first.net.parameters(), net.parameters(), strict=True))


def test_the_network_says_on_each_level_what_it_is() -> None:
    net, data = network(*THREE)
    assert (net.config.trunk.layers, net.config.multilevel.levels) == (2, 1)
    training = Training(net, data, Silent())
    training.run()
    assert training.net.config == net.built_from
    assert training.net.config.multilevel.levels == 3
    assert training.net.trunk.layers == training.net.config.trunk.layers == 8


def test_a_loss_that_is_not_finite_leaves_the_network_of_its_level(tmp_path: Path) -> None:
    net, data = network(*WILD, *THREE)
    training = Training(net, data, Silent())
    with pytest.raises(NonFiniteError):
        training.run()
    modelfile.save(tmp_path / "model.h5", training.net)
    assert modelfile.load(tmp_path / "model.h5").trunk.layers == training.net.trunk.layers


def test_the_main_job_trains_on_levels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(RunLog, "draw", lambda *_: None)
    folder = tmp_path / "run"
    assert train.main([*SMALL, "--multilevel.levels=2", "--run.dir", str(folder)]) == 0
    summary = json.loads((folder / "summary.json").read_text())
    assert [level["layers"] for level in summary["levels"]] == [4, 8]
    assert [r["layers"] for r in metrics(folder)] == [4] * 3 + [8] * 3
    assert "\n8 layers: objective " in capsys.readouterr().out
    net = lpnet.load(folder / "model.h5")
    assert (net.trunk.layers, net.config.multilevel.levels) == (8, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("--trunk.layers=100", "--multilevel.levels=4"), "multilevel.levels: 4 given for 100 layers, at most 3"),
        (("--multilevel.levels=0",), "multilevel.levels: 0 given, a whole number of at least 1 allowed"),
        (("--multilevel.shares=[1, 2]",), "multilevel.shares: [1.0, 2.0] given, 1 positive number, one for each level"),
        (("--multilevel.levels=2", "--multilevel.shares=[1, -2]"), "multilevel.shares: [1.0, -2.0] given, 2 positive"),
    ],
)  # fmt: skip
def test_bad_input_is_named(given: tuple[str, ...], message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse(["peaks", *given])
    assert str(caught.value).startswith(message)


def test_every_level_needs_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [*SMALL, "--multilevel.levels=4", "--training.steps=2", "--run.dir", str(tmp_path / "run")]
    assert train.main(given) == launch.BAD_INPUT
    assert "multilevel.levels: 4 given with [" in capsys.readouterr().err
