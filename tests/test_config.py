"""Laws of the configuration: what overrides what, that it survives YAML and JSON, that its tables fit the library."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lpnet import MGRIT, Serial
from lpnet.choices import SCHEDULES, SOLVERS, Schedule, Solver
from lpnet.commandline import dump, from_mapping, overlay, parse
from lpnet.config import Config, Training, Trunk, as_dict
from lpnet.dynamics import REGISTRY as DYNAMICS
from lpnet.errors import InputError
from lpnet.keys import leaves
from lpnet.launch import Answer
from lpnet.optimizers import OPTIMIZERS, SEARCHING, Optimizer, optimizer_options
from lpnet.presets import PRESETS
from lpnet.training.updates import make_optimizer, make_schedule


def answer(*arguments: str) -> str:
    with pytest.raises(Answer) as shown:
        parse(arguments)
    return str(shown.value)


def write(folder: Path, text: str, name: str = "given.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


# ---- precedence ----------------------------------------------------------------------------------------------------


def test_defaults_are_below_preset_below_file_below_command_line(tmp_path: Path) -> None:
    file = write(tmp_path, "trunk: {layers: 31, T: 1.5}\nrun: {seed: 4}\n")
    config = parse(["digits", "--config", file, "--trunk.layers", "17"])
    assert config.trunk.layers == 17  # command line
    assert config.trunk.T == 1.5  # file
    assert config.run.seed == 4
    assert config.trunk.width == PRESETS["digits"]["trunk"]["width"]  # preset
    assert config.run.dtype == Config().run.dtype  # default


@pytest.mark.parametrize("before", [True, False])
def test_command_line_wins_wherever_it_stands(tmp_path: Path, before: bool) -> None:
    file = ["--config", write(tmp_path, "trunk: {layers: 31}")]
    given = ["--trunk.layers", "17", "digits"]
    assert parse(given + file if before else file + given).trunk.layers == 17


def test_later_files_win(tmp_path: Path) -> None:
    one = write(tmp_path, "trunk: {layers: 31, width: 5}", "one.yaml")
    two = write(tmp_path, "trunk: {layers: 32}", "two.yaml")
    config = parse(["--config", one, "--config", two])
    assert (config.trunk.layers, config.trunk.width) == (32, 5)


def test_preset_is_peaks_unless_named_in_file_or_on_command_line(tmp_path: Path) -> None:
    file = write(tmp_path, "preset: digits")
    assert parse([]).preset == "peaks"
    assert parse(["--config", file]).data.name == "digits"
    assert parse(["--config", file, "swissroll"]).data.name == "swissroll"


def test_empty_sections_of_a_file_are_allowed(tmp_path: Path) -> None:
    assert parse(["--config", write(tmp_path, "trunk:\nrun: {seed: 3}")]).run.seed == 3
    assert parse(["--config", write(tmp_path, "trunk:")]) == parse([])


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_valid_deep_parallel_and_smooth(name: str) -> None:
    config = parse([name])
    assert config.preset == config.data.name == name
    assert config.trunk.layers >= 128
    for solver in (config.solver.forward, config.solver.adjoint):
        assert solver.kind == "mgrit"
        assert solver.cycles is not None
        assert solver.cycles >= 1
    assert config.regularizer.ddt > 0
    assert set(PRESETS[name]) == {f.name for f in dataclasses.fields(Config)} - {"preset", "run"}


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(("given", "kept", "undone"), [("steps", 7, "epochs"), ("epochs", 2, "steps")])
def test_steps_and_epochs_replace_each_other(name: str, given: str, kept: int, undone: str) -> None:
    training = parse([name, f"--training.{given}", str(kept)]).training
    assert getattr(training, given) == kept
    assert getattr(training, undone) is None


def test_a_choice_takes_back_the_options_of_the_former_choice(tmp_path: Path) -> None:
    file = write(
        tmp_path,
        "solver: {forward: {kind: mgrit, cycles: 3}}\noptimizer: {name: adam, betas: [0.8, 0.9], clip: 2.0}\n"
        "schedule: {name: step, step_size: 3, warmup: 4}\ntrunk: {dynamics: antisymmetric, gamma: 0.1}\n",
    )
    choices = {
        "solver.forward.kind": "serial", "optimizer.name": "sgd", "schedule.name": "cosine",
        "trunk.dynamics": "hamiltonian", "data.name": "swissroll",
    }  # fmt: skip
    config = parse(["--config", file, *(part for key, value in choices.items() for part in (f"--{key}", value))])
    assert config.solver.forward == Solver(kind="serial", micro_batches=1)
    assert config.solver.adjoint.kind == "mgrit"
    assert (config.optimizer.betas, config.optimizer.momentum, config.optimizer.clip) == (None, 0.0, 2.0)
    assert (config.schedule.step_size, config.schedule.final, config.schedule.warmup) == (None, 0.0, 4)
    assert (config.trunk.gamma, config.trunk.stepper, config.trunk.start) == (None, "verlet", "half")
    assert config.data.train is None


@pytest.mark.parametrize("later", [[], ["--trunk.layers", "64"]])
@pytest.mark.parametrize(
    ("trunk", "key"),
    [
        ("{dynamics: hamiltonian, stepper: euler}", "stepper: 'euler'"),
        ("{dynamics: dense, hidden: 5}", "hidden: 5"),
        ("{dynamics: hamiltonian, gamma: 0.5}", "gamma: 0.5"),
        ("{start: zero}", "start: 'zero'"),
        ("{form: package}", "form: 'package'"),
        ("{dynamics: dense, store: reverse}", "store: 'reverse'"),
        ("{controls: null, basis: linear}", "basis: 'linear'"),
    ],
)
def test_a_contradiction_within_one_file_is_an_error(trunk: str, key: str, later: list[str], tmp_path: Path) -> None:
    """Also where later layers follow, which choose nothing and so take nothing back."""
    with pytest.raises(InputError, match=rf"^trunk\.{key} given"):
        parse(["peaks", "--config", write(tmp_path, f"trunk: {trunk}\n"), *later])


SHARES = "multilevel.shares"


@pytest.mark.parametrize(
    ("saved", "chosen", "key", "value"),
    [
        (["peaks", "--trunk.controls=8"], "--trunk.controls=null", "trunk.basis", None),
        (["ellipses", "--trunk.store=reverse"], "--trunk.dynamics=dense", "trunk.store", "all"),
        (["ellipses", "--trunk.store=reverse"], "--trunk.dynamics=second_order", "trunk.store", "reverse"),
        (["ellipses", "--trunk.store=cpoints"], "--trunk.dynamics=dense", "trunk.store", "cpoints"),
        (["peaks", "--trunk.gradient=continuous"], "--trunk.stepper=rk4", "trunk.gradient", "discrete"),
        (["peaks", "--multilevel.levels=2", "--multilevel.shares=[1,2]"], "--multilevel.levels=3", SHARES, None),
    ],
)
def test_a_choice_over_a_saved_run(saved: list[str], chosen: str, key: str, value: object, tmp_path: Path) -> None:
    path = write(tmp_path, dump(parse(saved)))
    section, name = key.split(".")
    assert getattr(getattr(parse(["--config", path, chosen]), section), name) == value


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    "choice",
    [
        *(f"--{s}.kind={k}" for s in ("solver.forward", "solver.adjoint") for k in SOLVERS),
        *(f"--optimizer.name={k}" for k in OPTIMIZERS),
        *(f"--schedule.name={k}" for k in SCHEDULES if k != "onecycle"),
        *(f"--trunk.dynamics={k}" for k in DYNAMICS),
        *(f"--trunk.activation={k}" for k in ("tanh", "relu", "smooth_relu", "gelu")),
        *(f"--data.name={k}" for k in ("peaks", "ellipses", "swissroll", "digits")),
        "--solver.forward.coarse=rediscretized",
        "--solver.forward.samples=4",
        "--solver.forward.levels=3",
    ],
)
def test_every_choice_can_be_made_on_every_preset(name: str, choice: str) -> None:
    key, _, value = choice.removeprefix("--").partition("=")
    config: Any = parse([name, choice])
    for part in key.split("."):
        config = getattr(config, part)
    assert str(config) == value


# ---- round trips ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given",
    [
        *([name] for name in PRESETS),
        ["--training.epochs", "3", "--training.batch", "null"],
        ["ellipses", "--solver.forward.coarsening", "[8, 2]", "--solver.forward.levels", "3", "--run.dir", "x y: é"],
        ["--solver.adjoint.kind", "serial", "--optimizer.name", "rmsprop", "--schedule.name", "linear"],
        ["--solver.forward.tol", "1e-7", "--regularizer.ddt", "1e-300", "--optimizer.lr", "3e-5"],
    ],
)
def test_the_printed_configuration_gives_itself(given: list[str], tmp_path: Path) -> None:
    config = parse(given)
    text = answer(*given, "--print_config")
    assert text == dump(config)
    file = write(tmp_path, text)
    again = parse(["--config", file])
    assert again == config
    assert dump(again) == text
    assert from_mapping(json.loads(json.dumps(as_dict(config)))) == config
    assert type(again.solver.forward.coarsening) is type(config.solver.forward.coarsening)


def test_the_printed_configuration_names_all_keys_and_the_numbers_behind_the_choices() -> None:
    found = yaml.safe_load(answer("--print_config"))
    named = {f"{a}.{b}" for a, section in found.items() if isinstance(section, dict) for b in section}
    assert {key for key in leaves() if key.count(".") == 1} <= named
    assert found["solver"]["forward"]["relaxation"] == "F"
    assert found["optimizer"]["betas"] == [0.9, 0.999]


def test_help_shows_the_defaults_of_the_preset_and_version_the_version() -> None:
    for name in PRESETS:
        shown = " ".join(answer(name, "--help").split())
        assert "--trunk.width WIDTH number of features of a state. (type: int, default: " in shown
        assert f"a state. (type: int, default: {PRESETS[name]['trunk']['width']})" in shown
    assert all(f"--{key}" in shown for key in leaves())
    assert answer("--version").startswith("lpnet ")


# ---- tables --------------------------------------------------------------------------------------------------------


def test_solver_section_has_the_options_of_both_kinds_and_no_others() -> None:
    own = [{f.name: f.type for f in dataclasses.fields(kind)} for kind in (MGRIT, Serial)]
    section = {f.name for f in dataclasses.fields(Solver)} - {"kind"}
    assert section == set(own[0]) | set(own[1])
    assert set(own[0]) & set(own[1]) == {"micro_batches"}
    assert Solver().options() == MGRIT()
    assert Solver(kind="serial").options() == Serial()
    assert Solver(cycles=3, coarsening=(4, 2), levels=3).options() == MGRIT(cycles=3, coarsening=(4, 2), levels=3)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name not in SEARCHING])
def test_offered_optimizers_are_elementwise_and_take_their_options(name: str) -> None:
    """Two halves of a parameter, updated apart, go where the whole goes: what slabs of layers rely on."""
    options = Optimizer(name=name, lr=0.01).resolved()
    assert set(options.given()) == set(optimizer_options(name))
    start = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(4, 3)
    whole = start.clone().requires_grad_()
    halves = [part.clone().requires_grad_() for part in start.split(2)]
    for _ in range(3):
        for group in ([whole], halves):
            updates = make_optimizer(options, group)
            updates.zero_grad()
            sum((p.sin() + p.square()).sum() for p in group).backward()  # type: ignore[union-attr]
            updates.step()
    assert torch.equal(torch.cat(halves), whole)
    assert not torch.equal(whole, start)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
@pytest.mark.parametrize("warmup", [0, 4])
def test_schedules_stay_positive_and_end_in_time(name: str, steps: int, warmup: int) -> None:
    if name == "onecycle" and warmup:
        with pytest.raises(InputError, match="warmup"):
            Schedule(name=name, warmup=warmup)
        return
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5)
    schedule = make_schedule(Schedule(name=name, warmup=warmup), optimizer, steps)
    rates = []
    for step in range(1, steps + 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < steps:
            schedule.step()
    warm = min(warmup, steps // 2)
    assert all(0 < rate <= 0.5 + 1e-12 for rate in rates)
    assert rates[:warm] == pytest.approx([0.5 * (i + 1) / (warm + 1) for i in range(warm)])
    if name != "onecycle":
        assert rates[warm] == pytest.approx(0.5)
    if name in ("linear", "cosine", "polynomial", "onecycle") and steps == 10:
        assert rates[-1] < 0.15
    if name == "constant":
        assert rates[warm:] == pytest.approx([0.5] * (steps - warm))


@pytest.mark.parametrize(("n", "batch", "steps"), [(10, None, 3), (10, 10, 3), (10, 4, 9), (10, 3, 12), (10, 1, 30)])
def test_epochs_are_passes_over_all_examples(n: int, batch: int | None, steps: int) -> None:
    assert Training(steps=None, epochs=3, batch=batch).total_steps(n) == steps


def test_overlay_does_not_change_its_arguments() -> None:
    lower = dict.fromkeys(leaves()) | {"trunk.dynamics": "dense", "data.name": "peaks"}
    upper = {"training.epochs": 3}
    before = dict(lower), dict(upper)
    assert overlay(lower, upper)["training.epochs"] == 3
    assert (lower, upper) == before


def test_library_users_get_the_same_checks() -> None:
    with pytest.raises(InputError, match=r"trunk\.layers: 0 given"):
        Trunk(layers=0)
    with pytest.raises(InputError, match=r"trunk\.stepper: 'euler' given, verlet for hamiltonian"):
        Trunk(dynamics="hamiltonian", stepper="euler")
    assert Trunk(dynamics="hamiltonian").resolved().stepper == "verlet"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["peaks", "--trunk.store", "reverse"], r"^trunk\.store: 'reverse' given with Euler, which is not reversible"),
        (["ellipses", "--trunk.gradient", "continuous"], r"^trunk\.gradient: 'continuous' given with Verlet, only"),
        (["peaks", "--trunk.store", "some"], r"^trunk\.store: .*some.* given, one of all, cpoints, reverse allowed$"),
    ],
)
def test_what_a_stepper_cannot_keep_or_differentiate(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse(arguments)
    assert parse(["ellipses", "--trunk.store", "reverse"]).trunk.store == "reverse"
    assert parse(["peaks", "--trunk.gradient", "continuous"]).trunk.gradient == "continuous"
