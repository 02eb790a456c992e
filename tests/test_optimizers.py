"""The section optimizer of the configuration: those with a line search. The others are in test_config."""

from pathlib import Path
from typing import Any

import pytest
from small_training import network

from lpnet.commandline import parse
from lpnet.errors import InputError
from lpnet.optim import LBFGS, PCG, BlockCoordinateDescent, GaussNewton, NonlinearCG, VariableProjection
from lpnet.optimizers import SEARCHING, WHOLE_BATCH, Optimizer, optimizer_options
from lpnet.regularizers import Tikhonov
from lpnet.training.updates import make_optimizer


@pytest.mark.parametrize("name", SEARCHING)
def test_their_defaults_are_those_of_the_classes(name: str) -> None:
    options = Optimizer(name=name, lr=0.5).resolved()
    assert set(options.given()) <= set(optimizer_options(name))
    net = network(2)
    made = make_optimizer(options, net)
    newton = {"gauss_newton": GaussNewton, "bcd": BlockCoordinateDescent, "varpro": VariableProjection}
    plain: Any = {"lbfgs": LBFGS, "ncg": NonlinearCG, **newton}[name]
    expected = plain(net if name in newton else net.parameters(), lr=0.5)
    assert type(made) is plain
    assert made.defaults == expected.defaults
    assert type(getattr(made, "loss", None)) is type(getattr(expected, "loss", None))
    for key in ("pcg", "cap", "search", "preconditioner"):
        assert getattr(made, key, None) == getattr(expected, key, None)


def test_options_of_gauss_newton() -> None:
    net = network(2)
    options = Optimizer(name="gauss_newton", lr=1.0, iterations=7, tol=0.2, radius=3.0, cap=0.5, preconditioner="none")
    penalty = Tikhonov(net[1], 0.1)
    made = make_optimizer(options, net, [penalty])
    assert isinstance(made, GaussNewton)
    assert (made.pcg, made.cap, made.preconditioner, made.penalties) == (PCG(7, 0.2, 3.0), 0.5, None, (penalty,))


@pytest.mark.parametrize("name", SEARCHING)
def test_their_rate_is_one_unless_it_is_given(name: str) -> None:
    assert parse(["peaks", f"--optimizer.name={name}"]).optimizer.lr == 1.0
    assert parse(["peaks", f"--optimizer.name={name}", "--optimizer.lr=0.3"]).optimizer.lr == 0.3


@pytest.mark.parametrize("name", WHOLE_BATCH)
def test_those_for_all_examples_take_no_batch(name: str, tmp_path: Path) -> None:
    """That of a preset, which nobody gave, is taken back."""
    assert parse(["digits"]).training.batch is not None
    assert parse(["digits", f"--optimizer.name={name}"]).training.batch is None
    assert parse(["digits", "--optimizer.name=gauss_newton"]).training.batch is not None
    said = f"^training.batch: 32 given, null with optimizer.name {name}, which takes all examples in each step, allow"
    with pytest.raises(InputError, match=said):
        parse(["digits", f"--optimizer.name={name}", "--training.batch=32"])
    given = tmp_path / "given.yaml"
    given.write_text(f"optimizer: {{name: {name}}}\n", encoding="utf-8")
    with pytest.raises(InputError, match=said):
        parse(["digits", "--config", str(given), "--training.batch=32"])


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("formula", {"name": "ncg", "formula": "dai_yuan"}),
        ("restart", {"name": "ncg", "restart": 0}),
        ("formula", {"name": "gauss_newton", "formula": "polak_ribiere"}),
        ("iterations", {"name": "gauss_newton", "iterations": 0}),
        ("iterations", {"name": "adam", "iterations": 3}),
        ("tol", {"name": "gauss_newton", "tol": 1.0}),
        ("radius", {"name": "gauss_newton", "radius": 0.0}),
        ("cap", {"name": "gauss_newton", "cap": 0.0}),
        ("preconditioner", {"name": "gauss_newton", "preconditioner": "jacobi"}),
        ("clip", {"name": "gauss_newton", "clip": 1.0}),
        ("memory", {"name": "ncg", "memory": 3}),
    ],
)
def test_bad_input(key: str, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^optimizer\.{key}: .* given"):
        Optimizer(**values)
