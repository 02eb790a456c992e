"""Simultaneous training on several ranks is that on one: losses, gradients, decisions, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import examples, network, with_ddt
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, Adaptive, InputError, OneShot, WarmStates
from lpnet.control import Report
from lpnet.oneshot import Descent, Progress
from lpnet.sharded import slab_of
from lpnet.slab import Comm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]

NUMBER = 24
CONTROL = Adaptive(gradient_tol=0.02, every=4, plan_ranks=16)


def made(comm: Comm, layers: int, how: str, optimizer: Any = torch.optim.SGD, **more: Any) -> Descent:
    """A small net with one of the methods; a large learning rate, so that control has something to decide."""
    warm = {k: more.pop(k) for k in ("kind", "limit_mib", "scratch") if k in more}
    solver = MGRIT(**({"coarsening": 3, "cycles": 1} | more))
    net = network(layers, comm, forward=solver, adjoint=solver, init="random", control=CONTROL)
    chosen = optimizer(net.parameters(), lr=0.1)
    if how == "descent":
        return Descent(net, chosen, with_ddt(net))
    states = WarmStates(examples=NUMBER, **warm) if how == "mini-batches" else None
    return OneShot(net, chosen, with_ddt(net), control=CONTROL, warm=states)


def run(descent: Descent, steps: int, parts: int) -> list[tuple[Progress, Report | None, list[Tensor]]]:
    """What each step said, and the gradients of the whole net; collective."""
    x, label = examples(number=NUMBER)
    found = []
    for step in range(steps):
        index = torch.arange(NUMBER)[step % parts :: parts]
        progress = descent.step(x[index], label[index], index)
        found.append((progress, descent.trunks[0].info.control, whole(descent.net)))
    return found


def whole(net: nn.Module) -> list[Tensor]:
    found = []
    for p in net.parameters():
        slab = slab_of(p)
        assert p.grad is not None
        found.append(p.grad.clone() if slab is None else slab.gather(p.grad))
    return found


def same(mine: Any, twin: Any, tolerance: float = 1e-12) -> None:
    for step, (one, other) in enumerate(zip(mine, twin, strict=True)):
        a, b = one[0], other[0]
        assert (a.exact, a.checked, a.diverged, a.converged) == (b.exact, b.checked, b.diverged, b.converged), step
        assert (one[1] is None) == (other[1] is None)
        if one[1] is not None:
            assert one[1].cycles == other[1].cycles, step
        assert a.loss == pytest.approx(b.loss, rel=tolerance)
        assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=tolerance)
        if b.gradient_error is not None and b.gradient_error > 1e-6:
            assert a.gradient_error == pytest.approx(b.gradient_error, rel=1e-6)
        for g, h in zip(one[2], other[2], strict=True):
            assert (g - h).norm() <= tolerance * h.norm(), step


METHODS = [("descent", 1), ("full batch", 1), ("mini-batches", 3)]


@pytest.mark.parametrize("layers", [1, 2, 7, 19, 30])
@pytest.mark.parametrize(("how", "parts"), METHODS)
def test_the_steps_are_those_of_one_rank(how: str, parts: int, layers: int, comm: Comm) -> None:
    """With layers that ranks do not divide, and with more ranks than intervals or layers."""
    mine, twin = (run(made(ranks, layers, how), 10, parts) for ranks in (comm, Comm()))
    same(mine, twin)


@pytest.mark.parametrize("more", [{"levels": 3, "coarsening": 2}, {"relaxation": "FCF"}, {"samples": 2}], ids=str)
@pytest.mark.parametrize(("how", "parts"), METHODS)
def test_with_other_solvers(how: str, parts: int, more: dict[str, Any], comm: Comm) -> None:
    mine, twin = (run(made(ranks, 23, how, **more), 6, parts) for ranks in (comm, Comm()))
    same(mine, twin)


@pytest.mark.parametrize("kind", ["examples", "class", "none"])
def test_whatever_is_kept(kind: str, comm: Comm) -> None:
    mine, twin = (run(made(ranks, 23, "mini-batches", kind=kind), 7, 3) for ranks in (comm, Comm()))
    same(mine, twin)


@pytest.mark.parametrize("layers", [2, 23])
def test_a_file_for_each_rank(layers: int, comm: Comm, tmp_path: Path) -> None:
    """On ranks without C-points too."""
    mine, twin = (
        run(made(ranks, layers, "mini-batches", **more), 7, 3)
        for ranks, more in ((comm, {"scratch": str(tmp_path)}), (Comm(), {}))
    )
    same(mine, twin)


@pytest.mark.parametrize("layers", [2, 23])
def test_examples_of_another_shape(layers: int, comm: Comm) -> None:
    """All ranks forget what they have kept, also those without C-points."""
    losses, solver = [], MGRIT(coarsening=3)
    torch.manual_seed(0)
    one = nn.Sequential(nn.Linear(4, 4, dtype=torch.float64), nn.Tanh())
    for ranks in (comm, Comm()):
        trunk = lpnet.LayerParallel(one, layers, 1.0, None, solver, solver, 0, ranks, dtype=torch.float64)
        optimizer = torch.optim.SGD(trunk.parameters(), lr=0.1)
        shot = OneShot(trunk, optimizer, nn.functional.mse_loss, warm=WarmStates(examples=NUMBER))
        for step in range(6):
            x = torch.linspace(-1, 1, 8 * (3 + step // 2) * 4, dtype=torch.float64).reshape(8, -1, 4)
            losses.append(shot.step(x, x.cos(), torch.arange(8)).loss)
    assert losses[:6] == pytest.approx(losses[6:], rel=1e-12)


@pytest.mark.parametrize("layers", [7, 30])
def test_lbfgs(layers: int, comm: Comm) -> None:
    """The line search branches alike."""
    mine, twin = (run(made(ranks, layers, "full batch", lpnet.optim.LBFGS), 8, 1) for ranks in (comm, Comm()))
    same(mine, twin, 1e-8)


@pytest.mark.parametrize("layers", [2, 23])
def test_the_limit_is_refused_on_all_ranks_alike(layers: int, comm: Comm) -> None:
    """By the same line, and nobody waits for anybody afterwards."""
    one = made(comm, layers, "mini-batches", limit_mib=1e-4)
    x, label = examples(number=NUMBER)
    if layers == 2:  # one interval: the exact chain, which keeps nothing
        one.step(x, label, torch.arange(NUMBER))
        return
    with pytest.raises(InputError, match=r"^limit_mib: 0\.0001 given") as caught:
        one.step(x, label, torch.arange(NUMBER))
    message = torch.tensor(list(str(caught.value).encode()), dtype=torch.float64)
    first = comm.bcast_(message.clone(), 0)
    assert torch.equal(first, message)
    comm.barrier()


def test_what_is_refused_before_any_message(comm: Comm) -> None:
    one = made(comm, 23, "mini-batches")
    x, label = examples(number=NUMBER)
    for index in (None, torch.arange(3), torch.arange(NUMBER) + 1):
        with pytest.raises(InputError, match=r"^index: "):
            one.step(x, label, index)
    comm.barrier()


def test_same_ranks_same_bits(comm: Comm) -> None:
    first, second = (run(made(comm, 19, "mini-batches"), 6, 3) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert one[:2] == other[:2]
        assert all(torch.equal(a, b) for a, b in zip(one[2], other[2], strict=True))
