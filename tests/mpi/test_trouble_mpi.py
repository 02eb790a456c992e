"""What goes wrong goes wrong on all ranks alike, and is answered by all of them in the same way."""

import math
import re
from typing import Any

import pytest
import torch
from poison import poison
from reference import F64, error, normal
from resumption import Told
from small_runs import network

import lpnet
from lpnet import MGRIT, Serial
from lpnet.errors import NonFiniteError
from lpnet.slab import Comm
from lpnet.training import loop, trouble
from lpnet.training.loop import fit

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]


@pytest.mark.parametrize("layers", [7, 64])
def test_cycles_that_diverge_are_replaced_on_all_ranks(comm: Comm, layers: int) -> None:
    """Output and cotangent of the input are those of the exact chain, bit for bit, and the gradients to rounding."""
    found = []
    for solver in (MGRIT(coarsening=2 if layers == 7 else 8, cycles=1), Serial()):
        trunk = lpnet.LayerParallel(
            lpnet.dynamics.Dense(4), layers, 20.0, forward=solver, adjoint=solver, seed=1, init="random", dtype=F64,
            comm=comm,
        )  # fmt: skip
        with torch.no_grad():
            for p in trunk.parameters():
                p.mul_(4.0)
        y = normal(5, 4).requires_grad_()
        out = trunk(y)
        out.square().sum().backward()
        found.append([out, y.grad, *(trunk.grid.gather(p.grad) for p in trunk.parameters())])
        assert trunk.info.forward is not None
        assert trunk.info.forward.diverged == isinstance(solver, MGRIT)
    assert all(torch.equal(a, b) for a, b in zip(found[0][:2], found[1][:2], strict=True))
    for a, b in zip(found[0][2:], found[1][2:], strict=True):
        assert error(a, b) < 1e-14  # slabs are cut elsewhere


def test_the_first_layer_is_named_with_its_rank(comm: Comm) -> None:
    """By all ranks alike: of weights, of states that overflow, and of gradients from behind."""
    net, data = network("--run.dtype=float32", "--trunk.activation=relu", "--trunk.dynamics=dense", comm=comm)
    trunk, owner = net.trunk, net.trunk._slab.owner
    net(data.train_x).square().sum().backward()

    def put(tensor: torch.Tensor | None, first: int, last: int, value: float) -> None:
        assert tensor is not None
        with torch.no_grad():
            for row, layer in enumerate(trunk.local_layers):
                if first <= layer <= last:
                    tensor[row] = value

    put(trunk.K.grad, 1, 3, math.nan)
    gradient = f"the gradient of layer 3 (rank {owner(3)}) is not finite, the first one on the way back"
    assert trouble.whereabouts(net, data.train_x) == gradient
    put(trunk.K, 5, 8, 3e38)
    put(trunk.b, 5, 8, 3e38)
    assert trouble.whereabouts(net, data.train_x) == f"the state behind layer 5 (rank {owner(5)}) is not finite"
    put(trunk.b, 6, 7, math.inf)
    assert trouble.whereabouts(net, data.train_x) == f"the weights of layer 6 (rank {owner(6)}) are not finite"


@pytest.mark.parametrize("name", ["adam", "lbfgs"])
def test_steps_are_taken_back_on_all_ranks(comm: Comm, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = ("--training.on_nan=rollback", f"--optimizer.name={name}", "--training.batch=null", "--training.steps=5")
    runs = []
    for ranks in (comm, Comm()):
        poison(monkeypatch, 3, 4)
        net, data = network(*given, comm=ranks)
        log = Told()
        runs.append((log.records, fit(net, data, log)["rollbacks"]))
    (mine, back), (one, alone) = runs
    assert back == alone == 2
    for a, b in zip(mine, one, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-9)
        assert a["lr"] == b["lr"]


def on_one_rank(monkeypatch: pytest.MonkeyPatch, comm: Comm, rank: int, step: int, times: int, what: str) -> None:
    """So many evaluations of a step find something that is not finite on this rank of several (of one: on it)."""
    left, evaluated, evaluate = [what] * times * (comm.rank == rank % comm.size), loop._evaluated, loop.evaluate

    def spoiled(state: Any, *given: Any) -> Any:
        hit = bool(left) and what != "train_loss" and state.course.done + 1 == step
        if hit and left.pop() == "classifier":
            with torch.no_grad():
                state.net.classifier.weight[0, 0] = math.nan
        record, progress = evaluated(state, *given)
        return (record | {what: math.nan} if hit and what in record else record), progress

    def behind(*given: Any) -> Any:
        return evaluate(*given) | ({left.pop(): math.nan} if left and what == "train_loss" else {})

    monkeypatch.setattr(loop, "_evaluated", spoiled)
    monkeypatch.setattr(loop, "evaluate", behind)


CASES = [("classifier", 4), ("loss", 2), ("grad_norm", 3), ("train_loss", 6)]
STEADY = ("--training.batch=null", "--training.steps=6", "--training.validate_every=null")


@pytest.mark.parametrize("rank", [0, 1, -1])
@pytest.mark.parametrize(("what", "step"), CASES)
def test_what_one_rank_finds_alone_is_mended_by_the_others(
    comm: Comm, rank: int, what: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the run is the one in which nothing was wrong."""
    net, data = network(*STEADY, comm=comm)
    clean = Told()
    fit(net, data, clean)
    on_one_rank(monkeypatch, comm, rank, step, 1, what)
    net, data = network(*STEADY, comm=comm)
    log = Told()
    if comm.size == 1:  # there is nobody else
        with pytest.raises(NonFiniteError, match=rf"^step {step}: the .* is nan: "):
            fit(net, data, log)
        return
    record = fit(net, data, log)
    assert [r["loss"] for r in log.records] == [r["loss"] for r in clean.records]
    assert record["rollbacks"] == 0
    (said,) = log.warnings
    bad = rank % comm.size
    assert said.startswith(f"step {step}: the ")
    assert said.endswith(
        f" is nan on rank {bad} alone: opening layer or classifier differed between ranks; set to those of rank "
        f"{int(bad == 0)}, and evaluated again"
    )


@pytest.mark.parametrize("answer", ["stop", "rollback"])
@pytest.mark.parametrize(("what", "step"), CASES)
def test_what_one_rank_finds_again_and_again_is_answered_by_all(
    comm: Comm, answer: str, what: str, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if all had found it; the line names the rank."""
    times = 1 + (comm.size > 1)
    on_one_rank(monkeypatch, comm, -1, step, times, what)
    net, data = network(*STEADY, f"--training.on_nan={answer}", comm=comm)
    log = Told()
    alone = "" if comm.size == 1 else f" on rank {comm.size - 1} alone"
    said = f"step {step}: the .* is nan{alone}: "
    if answer == "stop":
        with pytest.raises(NonFiniteError, match=f"^{said}"):
            fit(net, data, log)
        return
    record = fit(net, data, log)
    assert record["rollbacks"] == 1
    assert len(log.warnings) == times
    assert re.match(said, log.warnings[-1])
    assert math.isfinite(record["train_loss"])
    assert comm.agree(int(record["lr"] * 1e9)) == int(record["lr"] * 1e9)
