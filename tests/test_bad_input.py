"""What `lpnet.train` cannot use: one line that names key, value and way out, code 2, no traceback, nothing left."""

import os
from pathlib import Path

import numpy as np
import pytest

from lpnet import launch, slab, train
from lpnet.commandline import leaves, parse
from lpnet.errors import InputError, NonFiniteError

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


# (arguments, the key that is named, what is said to be allowed)
VALUES = [
    ("nosuch", "preset: 'nosuch'", "peaks, ellipses, swissroll, digits"),
    ("--trunk.layers=0", "trunk.layers: 0", "at least 1"),
    ("--trunk.layers=-3", "trunk.layers: -3", "at least 1"),
    ("--trunk.layers=abc", "trunk.layers: abc", "a whole number"),
    ("--trunk.layers=1.5", "trunk.layers: 1.5", "a whole number"),
    ("--trunk.layers=true", "trunk.layers: True", "a whole number"),
    ("--trunk.layers=null", "trunk.layers: None", "a whole number"),
    ("--trunk.layers", "trunk.layers: nothing", "a whole number"),
    ("--trunk.width=0", "trunk.width: 0", "at least 1"),
    ("--trunk.T=nan", "trunk.T: nan", "finite number"),
    ("--trunk.T=.nan", "trunk.T: nan", "finite number above 0"),
    ("--trunk.T=.inf", "trunk.T: inf", "finite number above 0"),
    ("--trunk.T=0", "trunk.T: 0.0", "above 0"),
    ("--trunk.T=-1", "trunk.T: -1.0", "above 0"),
    ("--trunk.T=1e999", "trunk.T: inf", "finite"),
    ("--trunk.dynamics=nosuch", "trunk.dynamics: 'nosuch'", "dense, two_layer, antisymmetric, hamiltonian"),
    ("--trunk.stepper=nosuch", "trunk.stepper: 'nosuch'", "euler, rk4, ab3, verlet"),
    ("--trunk.dynamics=hamiltonian --trunk.stepper=euler", "trunk.stepper: 'euler'", "verlet for hamiltonian"),
    ("--trunk.stepper=verlet", "trunk.stepper: 'verlet'", "euler, rk4, ab3 for dense"),
    ("--trunk.activation=nosuch", "trunk.activation: 'nosuch'", "tanh, relu, smooth_relu, gelu"),
    ("--trunk.init=nosuch", "trunk.init: nosuch", "constant, random"),
    ("--trunk.opening=nosuch", "trunk.opening: nosuch", "auto, linear, pad"),
    ("--trunk.dynamics=two_layer --trunk.gamma=1", "trunk.gamma: 1.0", "two_layer"),
    ("--trunk.form=package", "trunk.form: 'package'", "dense"),
    ("--trunk.dynamics=hamiltonian --trunk.form=paper", "trunk.form", "package"),
    ("--trunk.dynamics=antisymmetric --trunk.gamma=nan", "trunk.gamma: nan", "a finite number"),
    ("--trunk.gamma=-1e300", "trunk.gamma: -1e+300", "at most 1e+15 in size"),
    ("--trunk.T=1e308", "trunk.T: 1e+308", "at most 1e+15 in size"),
    ("--optimizer.lr=1e39", "optimizer.lr: 1e+39", "at most 1e+15 in size"),
    ("--trunk.dynamics=two_layer --trunk.hidden=1000000000", "trunk.hidden: 1000000000", "at most 100000"),
    ("--trunk.width=1000000000", "trunk.width: 1000000000", "at most 100000"),
    ("--trunk.controls=40 --trunk.layers=32", "trunk.controls: 40", "at most 32 for 32 layers"),
    ("--trunk.controls=9 --trunk.layers=32 --multilevel.levels=3", "trunk.controls: 9", "at most 8, the layers of the"),
    ("--trunk.controls=0", "trunk.controls: 0", "at least 1"),
    ("--trunk.controls=4 --trunk.basis=cubic", "trunk.basis: cubic", "constant, linear, spline"),
    ("--trunk.basis=linear", "trunk.basis: 'linear'", "null without trunk.controls"),
    ("--trunk.hidden=3", "trunk.hidden: 3", "dense"),
    ("--trunk.start=half", "trunk.start: 'half'", "euler"),
    ("digits --trunk.opening=pad --trunk.width=63", "trunk.width: 63", "at least the 64 features"),
    ("--solver.forward.kind=nosuch", "solver.forward.kind: nosuch", "mgrit, serial"),
    ("--solver.forward.coarsening=1", "solver.forward.coarsening: 1", "at least 2"),
    ("--solver.adjoint.coarsening=1", "solver.adjoint.coarsening: 1", "at least 2"),
    ("--solver.forward.coarsening=[4,1]", "solver.forward.coarsening: 1", "at least 2"),
    ("--solver.forward.coarsening=2.5", "solver.forward.coarsening: 2.5", "a whole number or a list"),
    ("--solver.forward.coarsening=[]", "solver.forward.coarsening: an empty list", "at least one"),
    ("--solver.forward.levels=0", "solver.forward.levels: 0", "at least 1"),
    ("--solver.forward.cycles=-1", "solver.forward.cycles: -1", "at least 0"),
    ("--solver.forward.cycles=0 --solver.forward.initial=constant", "solver.forward.cycles: 0", "at least 1"),
    ("--solver.forward.relaxation=C", "solver.forward.relaxation: C", "F, FCF"),
    ("--solver.forward.samples=99", "solver.forward.samples: 99", "at most the coarsening factor"),
    ("--solver.forward.tol=0", "solver.forward.tol: 0.0", "positive"),
    ("ellipses --solver.forward.passes=2", "solver.forward.passes: 2", "none"),
    ("--solver.forward.micro_batches=0", "solver.forward.micro_batches: 0", "at least 1"),
    ("--solver.forward.kind=serial --solver.forward.cycles=2", "solver.forward.cycles: 2", "only micro_batches"),
    ("--solver.forward.kind=serial --solver.forward.micro_batches=0", "solver.forward.micro_batches: 0", "at least 1"),
    ("--solver.forward=5", "solver.forward", "--solver.forward.KEY VALUE"),
    ("--solver=nofile.yaml", "solver", "--solver.KEY VALUE"),
    ("--trunk=3", "trunk", "--trunk.KEY VALUE"),
    ("--optimizer.lr=-1", "optimizer.lr: -1.0", "above 0"),
    ("--optimizer.lr=0", "optimizer.lr: 0.0", "above 0"),
    ("--optimizer.lr=.nan", "optimizer.lr: nan", "finite"),
    ("--optimizer.name=Muon", "optimizer.name: 'Muon'", "can update slabs of layers"),
    ("--optimizer.name=adafactor", "optimizer.name: 'adafactor'", "adam, adamw, sgd"),
    ("--optimizer.name=lbfgs --optimizer.memory=0", "optimizer.memory: 0", "at least 1"),
    ("--optimizer.name=lbfgs --optimizer.clip=1", "optimizer.clip: 1", "null with name lbfgs"),
    ("--optimizer.memory=5", "optimizer.memory: 5", "name adam"),
    ("--training.method=pipelined", "training.method: pipelined", "gradient, simultaneous"),
    ("--training.method=simultaneous --solver.forward.kind=serial", "solver.forward.kind: 'serial'", "mgrit"),
    ("--training.method=simultaneous --solver.adjoint.initial=warm", "solver.adjoint.initial: 'warm'", "tau"),
    ("--training.method=simultaneous --solver.auto=true", "solver.auto: True", "false with training.method"),
    ("--solver.auto=5", "solver.auto: 5", "true or false"),
    *((f"--control.gradient_tol={v}", "control.gradient_tol", "above 0 and below 1") for v in (0, 1, -0.1, 2, ".nan")),
    ("--control.every=0", "control.every: 0", "at least 1"),
    ("--control.plan_ranks=0", "control.plan_ranks: 0", "at least 1"),
    ("--oneshot.warm=batches", "oneshot.warm: batches", "auto, examples, class, none"),
    ("--oneshot.limit_mib=0", "oneshot.limit_mib: 0", "above 0"),
    *((f"--oneshot.tol={v}", "oneshot.tol", "above 0 and below 1") for v in (0, 1)),
    ("--optimizer.clip=0", "optimizer.clip: 0.0", "above 0"),
    ("--optimizer.weight_decay=-1", "optimizer.weight_decay: -1.0", "at least 0"),
    ("--optimizer.momentum=0.9", "optimizer.momentum: 0.9", "betas"),
    ("--optimizer.name=sgd --optimizer.momentum=1.5", "optimizer.momentum: 1.5", "at most 1"),
    ("--optimizer.name=sgd --optimizer.nesterov=true", "optimizer.nesterov: True", "momentum above 0"),
    ("--optimizer.name=rprop --optimizer.weight_decay=0.1", "optimizer.weight_decay: 0.1", "rprop"),
    ("--optimizer.betas=[0.9]", "optimizer.betas: [0.9]", "a list of 2 numbers"),
    ("--optimizer.betas=[0.9,1.0]", "optimizer.betas: (0.9, 1.0)", "below 1"),
    ("--schedule.name=nosuch", "schedule.name: 'nosuch'", "constant, linear, cosine"),
    ("--schedule.gamma=0.5", "schedule.gamma: 0.5", "only final"),
    ("--schedule.warmup=-1", "schedule.warmup: -1", "at least 0"),
    ("--schedule.name=onecycle --schedule.warmup=3", "schedule.warmup: 3", "onecycle"),
    ("--regularizer.ddt=-1", "regularizer.ddt: -1.0", "at least 0"),
    ("--regularizer.tikhonov=.inf", "regularizer.tikhonov: inf", "finite"),
    ("--training.method=newton", "training.method: newton", "gradient"),
    ("--training.steps=3 --training.epochs=2", "3 steps and 2 epochs", "only one of the two"),
    ("--training.steps=null --training.epochs=null", "null", "one of the two"),
    ("--training.steps=0", "training.steps: 0", "at least 1"),
    ("--training.batch=0", "training.batch: 0", "at least 1"),
    ("--training.batch=5001", "training.batch: 5001", "at most the 5000 training examples"),
    ("--training.validate_every=0", "training.validate_every: 0", "at least 1"),
    ("--run.dtype=float16", "run.dtype: float16", "float32, float64"),
    ("--run.device=tpu", "run.device: 'tpu'", "cpu"),
    ("--run.device=cuda:99", "run.device: 'cuda:99'", "cpu"),
    ("--run.seed=-1", "run.seed: -1", "at least 0"),
    ("--run.seed=99999999999999999999", "run.seed: 99999999999999999999", "below 2^63"),
    ("--run.deterministic=maybe", "run.deterministic: maybe", "true or false"),
    ("--run.threads=0", "run.threads: 0", "at least 1"),
    ("--run.threads=99999", "run.threads: 99999", "cores of this machine"),
    ("--data.name=nosuch", "data.name: nosuch", "peaks, ellipses, swissroll"),
    ("--data.name=file", "data.path: nothing", ".npz, .h5"),
    ("--data.name=file --data.path=/none/x.npz", "data.path: '/none/x.npz'", "readable"),
    ("--data.train=0", "data.train: 0", "at least 1"),
]


@pytest.mark.parametrize(("line", "given", "allowed"), VALUES)
def test_impossible_values(
    line: str, given: str, allowed: str, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    said = refused(capsys, *line.split())
    assert said.startswith(f"lpnet.train: error: {given}") or f" {given}" in said
    assert allowed in said
    assert not list(tmp_path.iterdir())  # no run folder for a run that never was


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("--trunk.layres 3", ("trunk.layres", "trunk.layers")),
        ("--trunk.layres=3", ("trunk.layres", "trunk.layers")),
        ("--trunk.nosuch 3", ("trunk.nosuch", "trunk.dynamics")),
        ("--nosuch 3", ("nosuch", "trunk")),
        ("--nosuch", ("nosuch", "trunk")),
        ("--layers 3", ("layers", "trunk")),
        ("--trunk.lay 3", ("trunk.lay", "trunk.layers")),  # no abbreviations
        ("--solver.cycles 3", ("solver.cycles", "solver.forward")),
        ("-x", ("x", "trunk")),
        ("peaks digits", ("digits", "one preset")),
        ("--preset digits", ("--preset", "lpnet.train peaks")),
        ("--config", ("config", "nothing given")),
    ],
)
def test_unknown_keys_get_a_hint(line: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, *line.split())
    assert all(word in said for word in words)


FILES = {
    "unknown section": ("nosuch: 1", "nosuch"),
    "unknown key": ("trunk: {layres: 3}", "trunk.layers"),
    "unknown key of a nested section": ("solver: {forward: {cycels: 3}}", "cycles"),
    "flag": ("help: true", "help"),
    "file in a file": ("config: other.yaml", "config"),
    "wrong type": ("trunk: {layers: many}", "trunk.layers: many given"),
    "impossible value": ("trunk: {layers: 0}", "trunk.layers: 0 given"),
    "NaN": ("trunk: {T: .nan}", "trunk.T: nan given"),
    "unknown preset": ("preset: nosuch", "preset: 'nosuch' given"),
    "preset of a wrong type": ("preset: [1]", "preset"),
    "section is a number": ("trunk: 5", "trunk"),
    "section is a list": ("trunk: [layers, 5]", "trunk"),
    "solver is a number": ("solver: 5", "solver"),
    "steps and epochs": ("training: {steps: 3, epochs: 2}", "3 steps and 2 epochs"),
    "list": ("[1, 2]", "mapping"),
    "number": ("5", "mapping"),
    "text": ("trunk layers", "mapping"),
    "empty": ("", "mapping"),
    "open bracket": ("trunk: {layers: 3", "not YAML"),
    "two colons": ("trunk: layers: 3", "not YAML"),
    "tab": ("trunk:\n\tlayers: 3", "not YAML"),
    "key is a number": ("1: 2", "string"),
    "key of a section is a number": ("trunk: {1: 2}", ""),
    "python object": ("trunk: !!python/object/apply:os.system ['true']", "not YAML"),
    "two documents": ("trunk: {layers: 3}\n---\ntrunk: {layers: 4}", "not YAML"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_cannot_be_used(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, words = FILES[name]
    path = tmp_path / "given.yaml"
    path.write_text(text, encoding="utf-8")
    said = refused(capsys, "--config", str(path), "--run.dir", str(tmp_path / "run"))
    assert words in said
    assert not (tmp_path / "run").exists()


def test_absurdly_many_layers(capsys: pytest.CaptureFixture[str]) -> None:
    assert "at most 1000000 allowed" in refused(capsys, "--trunk.layers", "1000000000000")


def test_unreadable_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "No such file" in refused(capsys, "--config", str(tmp_path / "none.yaml"))
    assert "directory" in refused(capsys, "--config", str(tmp_path))
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00trunk")
    assert "not a text file" in refused(capsys, "--config", str(tmp_path / "binary.yaml"))
    assert "given" in refused(capsys, "--config", "a\0b")


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


# ---- what only the data, the folder or the machine can tell ------------------------------------------------------


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        ([[0.0, np.nan], [1.0, 1.0]], [0, 1], "nan"),
        ([[0.0, np.inf], [1.0, 1.0]], [0, 1], "inf"),
        ([[0.0, 1.0], [1.0, 1.0]], [0, -1], "label"),
        ([[0.0, 1.0], [1.0, 1.0]], [0, 0.5], "label"),
        ([[0.0, 1.0], [1.0, 1.0]], [0, 1, 1], "label"),
        ([0.0, 1.0], [0, 1], "shape"),
        ([[0.0, 1e60], [1.0, -1e60]] * 3, [0, 1] * 3, "float64"),
    ],
)
def test_examples_that_cannot_be_used(
    x: list[list[float]], y: list[float], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "own.npz", x=np.array(x), y=np.array(y))
    own = ("--data.name=file", f"--data.path={tmp_path / 'own.npz'}", "--data.normalize=false")
    said = refused(capsys, *own, "--training.steps=1", "--training.batch=null", "--run.dir", str(tmp_path / "run"))
    assert words in said
    assert not (tmp_path / "run").exists()


def test_folders_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    used = tmp_path / "used"
    used.mkdir()
    (used / "summary.json").write_text("{}")
    (tmp_path / "file").write_text("")
    for name, words in (
        (used, "not empty"),
        (tmp_path / "file", "File exists"),
        (tmp_path / "file" / "below", "Not a directory"),
        (Path("/proc/nothing"), "given"),
        (tmp_path / ("x" * 300), "too long"),
        (tmp_path / "a\0b", "null"),
    ):
        said = refused(capsys, *SMALL, "--run.dir", str(name))
        assert "run.dir" in said
        assert words in said
    assert "run.dir" in refused(capsys, *SMALL, "--run.dir", " ")
    assert [path.name for path in used.iterdir()] == ["summary.json"]


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
