"""The main job on several ranks is the main job on one: the same losses, files, errors and exit codes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

import lpnet
from lpnet import launch, modelfile, predict, slab, train
from lpnet.errors import InputError
from lpnet.log import RunLog

pytestmark = pytest.mark.mpi

SMALL = (
    "--data.train=40", "--data.validation=20", "--trunk.width=3", "--training.steps=5", "--training.batch=16",
    "--training.validate_every=2", "--run.dtype=float64", "--trunk.init=random", "--optimizer.clip=1.0",
    "--regularizer.tikhonov=0.01", "--regularizer.ddt=0.001", "--regularizer.classifier=0.01",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunLog, "draw", lambda *_: None)


@pytest.fixture
def folder(comm: slab.Comm, tmp_path: Path) -> Iterator[Path]:
    """A folder that all ranks share: rank 0's."""
    yield Path(launch.share(comm, str(tmp_path)))
    comm.barrier()


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


CASES = [
    ("--trunk.layers=17", "--solver.forward.coarsening=4", "--solver.adjoint.coarsening=4"),
    ("--trunk.layers=3", "--solver.forward.coarsening=2", "--solver.adjoint.kind=serial"),  # ranks without layers
    ("--trunk.layers=20", "--solver.forward.initial=warm", "--solver.forward.coarsening=3"),
    ("--trunk.layers=12", "--trunk.dynamics=hamiltonian", "--solver.forward.coarsening=[2, 3]",
     "--solver.forward.levels=3"),
    ("--trunk.layers=20", "--training.method=simultaneous", "--solver.forward.coarsening=4",
     "--solver.adjoint.coarsening=4", "--control.gradient_tol=0.01", "--control.every=3"),
    ("--trunk.layers=24", "--training.method=simultaneous", "--training.batch=null", "--optimizer.name=lbfgs",
     "--optimizer.clip=null", "--solver.forward.coarsening=4", "--solver.adjoint.coarsening=4"),
    ("--trunk.layers=24", "--control.gradient_tol=0.01", "--solver.forward.coarsening=4",
     "--solver.adjoint.coarsening=4", "--control.plan_ranks=8"),
    ("--trunk.layers=9", "--trunk.dynamics=antisymmetric", "--optimizer.name=sgd", "--optimizer.momentum=0.9"),
    ("--trunk.layers=20", "--multilevel.levels=2", "--training.method=simultaneous", "--solver.forward.coarsening=3"),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore:lpnet.*idle")
def test_a_run_is_the_same_on_any_number_of_ranks(
    case: tuple[str, ...], comm: slab.Comm, folder: Path, tmp_path: Path
) -> None:
    assert train.main([*SMALL, *case, "--run.dir", str(folder / "ranks")]) == 0
    alone = tmp_path / f"alone-{comm.rank}"
    train.job(slab.Comm(), [*SMALL, *case, "--run.dir", str(alone)])
    comm.barrier()
    for one, many in zip(metrics(alone), metrics(folder / "ranks"), strict=True):
        assert set(one) == set(many)
        for key in set(one) - {"seconds"}:
            if one[key] is None:
                assert many[key] is None
                continue
            np.testing.assert_allclose(many[key], one[key], rtol=1e-8, atol=1e-12, err_msg=f"{key}, step {one['step']}")
    first, second = (json.loads((f / "summary.json").read_text()) for f in (alone, folder / "ranks"))
    assert (first["ranks"], second["ranks"]) == (1, comm.size)
    with h5py.File(alone / "model.h5") as a, h5py.File(folder / "ranks" / "model.h5") as b:
        for name in a["trunk"]:
            np.testing.assert_allclose(b["trunk"][name][()], a["trunk"][name][()], rtol=1e-8, atol=1e-10)


@pytest.mark.filterwarnings("ignore:lpnet.*idle")
def test_a_model_can_be_read_and_used_on_any_number_of_ranks(
    comm: slab.Comm, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*SMALL, *CASES[0], "--run.dir", str(folder / "run")]) == 0
    net = lpnet.load(folder / "run" / "model.h5")
    alone = lpnet.load(folder / "run" / "model.h5", comm=slab.Comm())
    raw = np.random.default_rng(1).normal(size=(9, 2))
    with torch.no_grad(), lpnet.exact(net), lpnet.exact(alone):
        expected = alone(alone.normalized(raw))
        assert torch.equal(net(net.normalized(raw)), expected)
    for name, value in net.trunk.gather_state_dict().items():
        assert torch.equal(value, alone.trunk.state_dict()[name])
    if comm.rank == 0:
        np.savez(folder / "raw.npz", x=raw, y=expected.argmax(1).numpy())
    comm.barrier()
    capsys.readouterr()
    assert predict.main([str(folder / "run"), str(folder / "raw.npz"), "--out", str(folder / "out.npz")]) == 0
    comm.barrier()
    said = capsys.readouterr().out
    assert ("accuracy 100.00%" in said) == (comm.rank == 0)
    with np.load(folder / "out.npz") as found:
        np.testing.assert_allclose(found["probabilities"], torch.softmax(expected, 1).numpy(), rtol=1e-12)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--trunk.layers=0"],
        ["--nosuch=1"],
        ["nosuch"],
        ["--config", "nosuch.yaml"],
        ["--training.batch=41", "--data.train=40"],
        ["--data.name=file", "--data.path=/none/x.npz"],
        ["--run.dir", "/proc/nothing/run"],  # which rank 0 alone finds out
    ],
)
def test_bad_input_ends_all_ranks_and_rank_0_says_why(
    arguments: list[str], comm: slab.Comm, capfd: pytest.CaptureFixture[str]
) -> None:
    assert train.main(arguments) == launch.BAD_INPUT
    said = capfd.readouterr().err
    assert said.count("\n") == (1 if comm.rank == 0 else 0)
    assert said.startswith("lpnet.train: error: " if comm.rank == 0 else "")
    assert comm.agree(comm.rank) == comm.size - 1  # all ranks are still in step


def test_answers_are_given_once(comm: slab.Comm, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "--version", "--print_config"):
        assert train.main([flag]) == 0
        assert bool(capsys.readouterr().out) == (comm.rank == 0)


def fail_from(comm: slab.Comm, rank: int) -> None:
    """An error on this rank and all behind it."""
    if comm.rank >= rank:
        raise InputError(f"é: rank {comm.rank} given")


def test_an_error_of_any_rank_is_that_of_all(comm: slab.Comm) -> None:
    def fail_from(rank: int) -> None:
        with launch.together(comm):
            if comm.rank >= rank:
                raise InputError(f"é: rank {comm.rank} given")

    for rank in range(comm.size):  # the first rank that has one speaks
        with pytest.raises(InputError, match=f"^é: rank {rank} given$"):
            fail_from(rank)
    fail_from(comm.size)


def test_texts_are_shared(comm: slab.Comm) -> None:
    for root in range(comm.size):
        for text in ("", "x", "é" * 1000):
            assert launch.share(comm, text if comm.rank == root else "other", root) == text


@pytest.mark.filterwarnings("ignore:lpnet.*idle")
def test_a_loss_that_is_not_finite_ends_all_ranks_alike(
    comm: slab.Comm, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    wild = ["--optimizer.name=sgd", "--optimizer.lr=1e15", "--optimizer.clip=null", "--schedule.warmup=0"]
    wild += ["--regularizer.tikhonov=1e15", "--training.steps=20"]
    assert train.main([*SMALL, "--trunk.layers=9", *wild, "--run.dir", str(folder / "run")]) == launch.NON_FINITE
    said = capfd.readouterr().err
    assert ("the last good weights" in said or "the initial weights" in said) == (comm.rank == 0)
    comm.barrier()
    modelfile.load(folder / "run" / "model.h5")


def test_default_folder_has_one_name(comm: slab.Comm, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert train.main([*SMALL, "--trunk.layers=4", "--training.steps=1"]) == 0
    comm.barrier()
    assert len(list((folder / "runs").iterdir())) == 1
    comm.barrier()
