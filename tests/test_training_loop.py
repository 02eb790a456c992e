"""Laws of the training loop: it learns, as plain autograd would, repeats itself, and keeps the last good weights."""

import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
import torch
from small_runs import WILD, Silent, network

from lpnet import regularizers, slab
from lpnet.commandline import parse
from lpnet.errors import NonFiniteError
from lpnet.network import Examples, build
from lpnet.optim import classifier
from lpnet.training.evaluation import evaluate
from lpnet.training.loop import fit

EXACT = tuple(f"--solver.{way}.{key}" for way in ("forward", "adjoint") for key in ("kind=serial", "coarsening=null"))


@pytest.mark.parametrize("batch", ["null", "100"])
def test_it_learns(batch: str) -> None:
    net, examples = network(
        "ellipses", "--data.train=300", "--data.validation=300", "--trunk.dynamics=dense", "--trunk.T=3",
        "--trunk.width=6", "--trunk.layers=32", "--optimizer.lr=0.05",
        "--training.steps=120", f"--training.batch={batch}",
    )  # fmt: skip
    before = evaluate(net, examples)
    log = Silent()
    after = fit(net, examples, log)
    assert after["val_accuracy"] > 0.9 > before["val_accuracy"]
    assert after["train_loss"] < 0.5 * before["train_loss"]
    assert log.records[-1]["step"] == 120
    assert after["val_accuracy"] == evaluate(net, examples)["val_accuracy"]


@pytest.mark.parametrize("name", ["bcd", "varpro"])
def test_the_classifier_is_solved_for_after_each_step(name: str) -> None:
    given = ("--regularizer.classifier=0.01", "--regularizer.ddt=0.01", "--training.batch=null", "--schedule.warmup=0")
    net, examples = network(*EXACT, f"--optimizer.name={name}", *given)
    log = Silent()
    record = fit(net, examples, log)
    values = [r["loss"] for r in log.records]
    assert all(b < a for a, b in pairwise(values))
    with torch.no_grad():
        features = net.trunk(net.opening(examples.train_x))
        assert classifier.solve(features, examples.train_y, net.classifier, 0.01).steps == 0
        decay = 0.005 * net.classifier.weight.square().sum() + regularizers.TimeDerivative(net.trunk, 0.01)()
    assert log.records[0]["cross_entropy"] < values[0]
    assert record["train_loss"] + decay.item() < values[-1]


def test_losses_of_converged_solves_are_those_of_plain_autograd() -> None:
    """The slow, obvious twin: torch's own modules, autograd and optimizer."""
    given = ("--regularizer.tikhonov=0.01", "--regularizer.ddt=0.02", "--regularizer.classifier=0.03")
    steady = ("--training.batch=null", "--optimizer.clip=0.5", "--schedule.name=constant", "--schedule.warmup=0")
    net, examples = network(*EXACT, *given, *steady)
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
    assert found["val_loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, examples.val_y).item(), rel=1e-12
    )
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


@pytest.mark.parametrize("lr", ["1e5", "1e15"])
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
