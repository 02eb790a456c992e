"""Laws of ``model.h5`` and of the predictions made with it: nothing is lost, nothing foreign is accepted."""

import errno
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import lpnet
from lpnet import data, modelfile, predict, slab, train
from lpnet.commandline import parse
from lpnet.config import as_dict
from lpnet.errors import InputError, OutputError
from lpnet.log import RunLog
from lpnet.network import Examples, Network, build

SMALL = ("--data.train=30", "--data.validation=20", "--trunk.layers=7", "--trunk.width=3")


def network(*arguments: str, seed: int = 0) -> Network:
    """A network with weights that differ from layer to layer, and normalised features."""
    config = parse([*SMALL, "--trunk.init=random", f"--run.seed={seed}", *arguments])
    return build(config, Examples(2, 5, np.array([0.5, -1.0]), np.array([2.0, 3.0])), slab.Comm())


def points(net: Network, count: int = 40) -> torch.Tensor:
    return net.normalized(np.random.default_rng(0).normal(size=(count, 2)))


CASES: list[tuple[str, ...]] = [
    (),
    ("--run.dtype=float64",),
    ("--trunk.dynamics=hamiltonian", "--trunk.start=zero", "--trunk.form=package"),
    ("--trunk.dynamics=second_order", "--trunk.hidden=3"),
    ("--trunk.dynamics=antisymmetric", "--trunk.gamma=0.3"),
    ("--trunk.dynamics=two_layer", "--trunk.hidden=4", "--trunk.activation=gelu"),
    ("--trunk.opening=pad",),
    ("--trunk.controls=5", "--trunk.basis=spline"),
    ("--solver.forward.kind=serial", "--trunk.layers=1"),
    ("--solver.forward.coarsening=[2, 3]", "--solver.forward.levels=3", "--trunk.layers=13"),
]


@pytest.mark.parametrize("arguments", CASES)
def test_a_saved_network_comes_back_bit_for_bit(arguments: tuple[str, ...], tmp_path: Path) -> None:
    net = network(*arguments)
    modelfile.save(tmp_path / "model.h5", net)
    again = modelfile.load(tmp_path / "model.h5")
    assert again.config == net.config
    assert set(again.state_dict()) == set(net.state_dict())
    x = points(net)
    with torch.no_grad():
        assert torch.equal(again(x), net(x))
        with lpnet.exact(net), lpnet.exact(again):
            assert torch.equal(again(x), net(x))
    raw = np.array([[1.0, 2.0]])
    assert torch.equal(again.normalized(raw), net.normalized(raw))
    assert net.normalized(raw).flatten().tolist() == pytest.approx([0.25, 1.0])
    assert {path.name for path in tmp_path.iterdir()} == {"model.h5"}


def test_the_file_is_plain_hdf5_with_the_layer_axis_first(tmp_path: Path) -> None:
    net = network("--run.dtype=float64")
    modelfile.save(tmp_path / "model.h5", net)
    with h5py.File(tmp_path / "model.h5") as file:
        assert json.loads(file.attrs["config"]) == as_dict(net.config)
        named = {key: int(file.attrs[key]) for key in ("schema", "features", "classes", "layers")}
        assert named == {"schema": 1, "features": 2, "classes": 5, "layers": 7}
        for name, value in net.trunk.gather_state_dict().items():
            assert file[f"trunk/{name}"].shape == (7, *value.shape[1:])
            assert file[f"trunk/{name}"].dims[0].label == "layer"
            assert np.array_equal(file[f"trunk/{name}"][()], value.numpy())
        kinds: list[str] = []
        file.visititems(lambda _, item: kinds.append(item.dtype.kind) if isinstance(item, h5py.Dataset) else None)
        assert set(kinds) == {"f"}


def test_saving_replaces_a_file_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.h5"
    modelfile.save(path, network(seed=1))
    modelfile.save(path, network(seed=2))
    assert modelfile.read(path).config.run.seed == 2

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(modelfile, "_write", fail)
    with pytest.raises(OutputError, match="disk full"):
        modelfile.save(path, network(seed=3))
    assert modelfile.read(path).config.run.seed == 2


def test_a_wrong_bit_is_found_or_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    modelfile.save(path, network())
    whole, content = modelfile.read(path), path.read_bytes()
    found = 0
    for i, at in enumerate(range(0, len(content), 61)):
        path.write_bytes(content[:at] + bytes([content[at] ^ (1 << i % 8)]) + content[at + 1 :])
        try:
            damaged = modelfile.read(path)
        except InputError:
            found += 1
        else:
            assert damaged.config == whole.config
            assert np.array_equal(damaged.examples.shift, whole.examples.shift)
            assert np.array_equal(damaged.examples.scale, whole.examples.scale)
            assert all(torch.equal(damaged.weights[name], value) for name, value in whole.weights.items())
    assert found > 50


def test_files_without_check_sums_can_be_read(tmp_path: Path) -> None:
    path, old = tmp_path / "model.h5", tmp_path / "old.h5"
    modelfile.save(path, network())
    with h5py.File(path) as file, h5py.File(old, "w") as plain:
        plain.attrs.update({key: v.decode() if isinstance(v, bytes) else v for key, v in file.attrs.items()})
        for part in ("opening", "trunk", "classifier", "examples"):
            for name, value in file[part].items():
                assert value.fletcher32
                plain[f"{part}/{name}"] = value[()]
    found, expected = modelfile.read(old), modelfile.read(path)
    assert found.config == expected.config
    assert all(torch.equal(found.weights[name], value) for name, value in expected.weights.items())


def edited(change: Callable[[h5py.File], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return edit


def put(file: h5py.File, name: str, value: Any) -> None:
    del file[name]
    file[name] = value


def put_config(file: h5py.File, section: str, key: str, value: Any) -> None:
    values = json.loads(file.attrs["config"])
    values[section][key] = value
    file.attrs["config"] = json.dumps(values)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "no HDF5": lambda path: path.write_text("hello"),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "foreign": lambda path: (path.unlink(), h5py.File(path, "w").close()),
    "newer schema": edited(lambda f: f.attrs.modify("schema", 99)),
    "no config": edited(lambda f: f.attrs.__delitem__("config")),
    "config no JSON": edited(lambda f: f.attrs.modify("config", "{")),
    "config no mapping": edited(lambda f: f.attrs.modify("config", "[1]")),
    "config of another width": edited(lambda f: put_config(f, "trunk", "width", 4)),
    "config of other dynamics": edited(lambda f: put_config(f, "trunk", "dynamics", "two_layer")),
    "config with an impossible value": edited(lambda f: put_config(f, "trunk", "layers", 0)),
    "config with an unknown key": edited(lambda f: put_config(f, "trunk", "layres", 3)),
    "no trunk": edited(lambda f: f.__delitem__("trunk")),
    "a weight missing": edited(lambda f: f.__delitem__("classifier/bias")),
    "a layer missing": edited(lambda f: put(f, "trunk/K", np.zeros((6, 3, 3), np.float32))),
    "another dtype": edited(lambda f: put(f, "trunk/K", np.zeros((7, 3, 3)))),
    "a weight that is not finite": edited(lambda f: put(f, "trunk/b", np.full((7, 3), np.nan, np.float32))),
    "a group for a weight": edited(lambda f: (f.__delitem__("trunk/b"), f.create_group("trunk/b"))),
    "no scale": edited(lambda f: f.__delitem__("examples/scale")),
    "a scale of another length": edited(lambda f: put(f, "examples/scale", np.ones(3))),
    "a scale of zero": edited(lambda f: put(f, "examples/scale", np.zeros(2))),
    "other classes": edited(lambda f: f.attrs.modify("classes", 6)),
    "negative classes": edited(lambda f: f.attrs.modify("classes", -1)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_and_foreign_files_are_bad_input(how: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.h5"
    modelfile.save(path, network())
    DAMAGE[how](path)
    with pytest.raises(InputError, match=re.escape(str(path))) as caught:
        modelfile.load(path)
    assert "\n" not in str(caught.value)
    assert "allowed" in str(caught.value)
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 2)))
    assert predict.main([str(tmp_path), str(tmp_path / "x.npz"), "--out", str(tmp_path / "o.npz")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# ---- predictions ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def rundir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on the user's own examples, which are normalised, with keys of their own."""
    folder = tmp_path_factory.mktemp("predict")
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = 100.0 + 10 * rng.normal(size=(60, 2)) + 40 * y[:, None]
    np.savez(folder / "own.npz", points=x, kinds=y)
    own = ("--data.name=file", f"--data.path={folder / 'own.npz'}", "--data.features=points", "--data.labels=kinds")
    small = ("--trunk.layers=7", "--trunk.width=4", "--training.steps=40", "--training.batch=null")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLog, "draw", lambda *_: None)
        assert train.main([*own, *small, "--run.dir", str(folder / "run")]) == 0
    return folder


def test_predictions_are_those_of_an_exact_evaluation(rundir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = rundir / "out.npz"
    assert predict.main([str(rundir / "run"), str(rundir / "own.npz"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    net = lpnet.load(rundir / "run" / "model.h5")
    with np.load(rundir / "own.npz") as given, np.load(out) as found, torch.no_grad():
        logits = net.as_sequential()(net.normalized(given["points"]))
        assert np.array_equal(found["class"], logits.argmax(1).numpy())
        assert found["probabilities"].shape == (60, 3)
        np.testing.assert_allclose(found["probabilities"], torch.softmax(logits, 1).numpy(), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(found["probabilities"].sum(1), 1.0, rtol=1e-12)
        accuracy = (found["class"] == given["kinds"]).mean()
    assert accuracy > 0.8
    assert f"60 examples, accuracy {accuracy:.2%}" in said


def test_accuracy_on_validation_data_is_that_of_the_summary(rundir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`predict` undoes no more and no less of the normalisation than training did."""
    net = lpnet.load(rundir / "run" / "model.h5")
    examples = data.load(net.config.data, net.config.run.seed)
    raw = examples.val_x * examples.scale + examples.shift
    np.savez(rundir / "val.npz", points=raw, kinds=examples.val_y)
    assert predict.main([str(rundir / "run"), str(rundir / "val.npz"), "--out", str(rundir / "val-out.npz")]) == 0
    expected = json.loads((rundir / "run" / "summary.json").read_text())["val_accuracy"]
    assert f"accuracy {expected:.2%}" in capsys.readouterr().out


def test_labels_are_not_needed_and_keys_can_be_given(rundir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(rundir / "plain.npz", z=np.full((2, 2), 100.0))
    given = [str(rundir / "run"), str(rundir / "plain.npz"), "--features", "z", "--out", str(rundir / "o.npz")]
    assert predict.main(given) == 0
    assert "accuracy" not in capsys.readouterr().out


def test_on_a_full_disk_nothing_is_half_written(
    rundir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "full")

    out = tmp_path / "out.npz"
    out.write_bytes(b"before")
    monkeypatch.setattr(np, "savez", fail)
    assert predict.main([str(rundir / "run"), str(rundir / "own.npz"), "--out", str(out)]) == 4
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"lpnet.predict: error: {str(out)!r} cannot be written (No space left on device)\n"
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"out.npz": b"before"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{run}"], "data: nothing given"),
        ([], "rundir: nothing given"),
        (["{run}", "{own}", "more"], "more"),
        (["{run}", "{own}", "--ouput", "x"], "ouput"),
        (["{run}", "{own}", "--out"], "out: nothing given"),
        (["{run}", "{own}", "--out", "{run}/none/o.npz"], "--out"),
        (["{run}", "{own}", "--out", "{run}"], "--out"),
        (["{run}/none", "{own}"], "does not exist"),
        (["{own}", "{own}"], "model"),
        (["{run}", "{run}/none.npz"], "does not exist"),
        (["{run}", "{run}/config.yaml"], ".npz"),
        (["{run}", "{own}", "--features", "nosuch"], "nosuch"),
        (["{run}", "{folder}/wide.npz"], "3 features"),
        (["{run}", "{folder}/nan.npz"], "nan"),
        (["{run}", "{folder}/labels.npz"], "label"),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    arguments: list[str], words: str, rundir: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.savez(rundir / "wide.npz", points=np.zeros((2, 3)))
    np.savez(rundir / "nan.npz", points=np.array([[0.0, np.nan]]))
    np.savez(rundir / "labels.npz", points=np.zeros((2, 2)), kinds=np.array([0, 3]))
    places = {"run": rundir / "run", "own": rundir / "own.npz", "folder": rundir}
    assert predict.main([argument.format(**places) for argument in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert said.err.startswith("lpnet.predict: error: ")
    assert words in said.err
    assert not list(tmp_path.iterdir())


def test_predict_explains_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert predict.main(["--help"]) == 0
    assert "--out" in capsys.readouterr().out
    assert predict.main(["--version"]) == 0
    assert capsys.readouterr().out == f"lpnet {lpnet.__version__}\n"
