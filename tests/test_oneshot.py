"""Laws of simultaneous training: it gets where serial training gets, it never believes a wrong gradient, it says so."""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
import torch
from reference import F64, normal
from small_training import batches, exact_loss, examples, network, watched, with_ddt
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, Adaptive, InputError, OneShot, Serial, WarmStates
from lpnet.oneshot import Descent
from lpnet.recall import ExampleMemory

COARSE = MGRIT(coarsening=8, cycles=1)
ADAM = torch.optim.Adam


def one_shot(net: nn.Sequential, lr: float = 2e-2, optimizer: Any = ADAM, **more: Any) -> OneShot:
    return OneShot(net, optimizer(net.parameters(), lr=lr), with_ddt(net), **more)


# ---- the estimate against the truth, over whole runs -----------------------------------------------------------------


HOW = ("descent", "full batch", "mini-batches")
RUNS = [(name, how, init) for name in ("peaks", "swissroll") for how in HOW for init in ("constant", "random")]
TOL = 0.05


def method(name: str, how: str, **more: Any) -> Descent:
    control = Adaptive(gradient_tol=TOL, every=10)
    classes = 5 if name == "peaks" else 2
    settings = {"forward": COARSE, "adjoint": COARSE, "classes": classes} | more
    if how == "descent":
        net = network(64, control=control, **settings)
        return Descent(net, ADAM(net.parameters(), lr=2e-2), with_ddt(net))
    warm = WarmStates(examples=60) if how == "mini-batches" else None
    return one_shot(network(64, **settings), control=control, warm=warm)


@pytest.mark.parametrize(("name", "how", "init"), RUNS)
def test_estimates_are_true_over_a_whole_run(name: str, how: str, init: str, monkeypatch: Any) -> None:
    """Within a factor of 3 on 90 % of the checks, never below a tenth; what is used is within the tolerance."""
    run = method(name, how, init=init)
    steps = list(watched(run, batches(name, 60, 3 if how == "mini-batches" else 1), monkeypatch))
    checks = [s for s in steps if s.progress.checked]
    assert len(checks) >= 5
    assert sum(1 / 3 <= s.ratio <= 3 for s in checks) >= 0.9 * len(checks)
    assert min(s.ratio for s in checks) >= 0.1
    assert min((s.ratio for s in steps if not s.progress.exact), default=1.0) >= 0.1  # between checks too
    assert sum(s.used <= TOL for s in steps) >= 0.95 * len(steps)
    assert all(s.used < 1e-9 for s in steps if s.progress.exact)
    assert steps[-1].progress.loss < 0.6 * steps[0].progress.loss


# ---- where it gets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", HOW[1:])
@pytest.mark.parametrize("name", ["peaks", "swissroll"])
def test_it_ends_where_serial_training_ends(name: str, how: str) -> None:
    """The same 60 steps of Adam with a falling rate: the loss is at most 5 % higher."""
    parts, found = 3 if how == "mini-batches" else 1, []
    for exact in (False, True):
        run = method(name, "descent" if exact else how)
        if exact:
            run.trunks[0].steer(Serial(), Serial(), None)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, 60)
        for x, label, index in batches(name, 60, parts):
            run.step(x, label, index)
            rate.step()
        found.append(exact_loss(run.net, *examples(name)))  # type: ignore[arg-type]
    assert found[0] <= 1.05 * found[1]
    assert found[1] < 0.8


def test_lbfgs_descends() -> None:
    """With a line search on the inexact objective, to about the loss of L-BFGS by the exact chain."""
    x, label = examples()
    losses = []
    for exact in (False, True):
        net = network(64, forward=COARSE, adjoint=COARSE)
        optimizer = lpnet.optim.LBFGS(net.parameters())
        run = Descent(net, optimizer, with_ddt(net)) if exact else OneShot(net, optimizer, with_ddt(net))
        if exact:
            net[1].steer(Serial(), Serial(), None)
        before = exact_loss(net, x, label)
        for _ in range(40):
            run.step(x, label)
        losses.append(exact_loss(net, x, label))
        assert losses[-1] < 0.6 * before
    assert losses[0] <= 1.25 * losses[1]


def test_the_objective_of_a_line_search_is_a_function() -> None:
    """The same value at the same weights, that of the step at its weights, and nothing is left behind."""
    x, label = examples()
    run = one_shot(network(64))
    for _ in range(5):
        run.step(x, label)
    loss = run.evaluate(x, label)
    values = [run._objective() for _ in range(3)]
    assert all(torch.equal(v, values[0]) for v in values)
    assert abs(values[0] - loss) <= 1e-12 * loss
    twin = one_shot(network(64))
    for _ in range(5):
        twin.step(x, label)
    assert torch.equal(twin.evaluate(x, label), loss)
    assert torch.equal(twin.evaluate(x, label), run.evaluate(x, label))


# ---- one step --------------------------------------------------------------------------------------------------------


def test_state_then_adjoint_then_design() -> None:
    """What a step reports is of the weights before the update, and the updates are those of its gradient."""
    x, label = examples()
    net = network(64)
    run = one_shot(net, lr=0.1, optimizer=torch.optim.SGD)
    for _ in range(3):
        before = [p.detach().clone() for p in net.parameters()]
        found = run.step(x, label)
        info = net[1].info
        assert info.forward is not None
        assert info.adjoint is not None
        assert (found.state_residual, found.adjoint_residual) == (
            info.forward.residuals[-1],
            info.adjoint.residuals[-1],
        )
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in net.parameters() if p.grad is not None))
        assert found.gradient_norm == pytest.approx(norm, rel=1e-12)
        for p, old in zip(net.parameters(), before, strict=True):
            assert p.grad is not None
            assert torch.allclose(p, old - 0.1 * p.grad, rtol=1e-14, atol=0)


def test_with_weights_that_stand_still_steps_are_cycles() -> None:
    """States, adjoints and gradients converge to those of the exact chain."""
    x, label = examples()
    net = network(64)
    run = one_shot(net, lr=0.0, control=Adaptive(gradient_tol=0.99, every=1000))
    found = [run.step(x, label) for _ in range(14)]
    assert all(b.state_residual < a.state_residual for a, b in pairwise(found[:5]))
    assert max(found[-1].state_residual, found[-1].adjoint_residual) < 1e-12
    grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    with lpnet.exact(net):
        run.evaluate(x, label)
    for a, b in zip(grads, [p.grad for p in net.parameters() if p.grad is not None], strict=True):
        assert (a - b).norm() <= 1e-10 * b.norm()


def test_the_gradient_is_clipped() -> None:
    x, label = examples()
    net = network(64)
    found = one_shot(net).step(x, label, clip=1e-3)
    assert found.gradient_norm > 1e-2
    assert float(lpnet.grad_norm(net.parameters())) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("tol", [3e-1, 1e-1])
def test_it_says_when_all_three_have_converged(tol: float) -> None:
    """Residuals of state and adjoint, and the gradient relative to the first one; never without a tolerance."""
    x, label = examples(number=20)
    runs = [one_shot(network(64), tol=t) for t in (tol, None)]
    first = None
    for _ in range(300):
        found, never = (run.step(x, label) for run in runs)
        assert not never.converged
        first = found.gradient_norm if first is None else first
        worst = max(found.state_residual, found.adjoint_residual)
        assert found.converged == (worst <= tol and found.gradient_norm <= tol * first)
        if found.converged:
            return
    raise AssertionError("not converged")


def test_a_new_full_batch_starts_anew() -> None:
    """Nothing is taken from examples that have gone; the same batch again is taken up."""
    (x, label), (other, _) = examples(number=20), examples("swissroll", 20)
    run, fresh = one_shot(network(64), lr=0.0), one_shot(network(64), lr=0.0)
    run.step(x, label)
    fresh.trunks[0]._controller = run.trunks[0]._controller
    a = run.evaluate(other, label)
    fresh.trunks[0].memory.clear()
    b = fresh.evaluate(other, label)
    assert torch.equal(a, b)


# ---- divergence ------------------------------------------------------------------------------------------------------


def roughen(net: nn.Sequential) -> None:
    """Weights that no cheap coarse step can follow."""
    with torch.no_grad():
        for i, p in enumerate(net[1].theta.values()):
            p.copy_(1.5 * normal(*p.shape, seed=40 + i))


@pytest.mark.parametrize("ranks", [4, 32])
@pytest.mark.parametrize("warm", [None, WarmStates(examples=60)], ids=["full batch", "examples"])
def test_divergence_is_detected_and_answered(warm: WarmStates | None, ranks: int, monkeypatch: Any) -> None:
    """When weights become rough in mid-training, no gradient beyond the tolerance is used from then on."""
    net = network(64, forward=COARSE, adjoint=COARSE)
    control = Adaptive(gradient_tol=TOL, every=50, plan_ranks=ranks)
    run = one_shot(net, lr=1e-3, control=control, warm=warm)

    def stream() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        for step, batch in enumerate(batches("peaks", 40, 1)):
            if step == 15:
                roughen(net)
            yield batch

    steps = list(watched(run, stream(), monkeypatch))
    assert not any(s.progress.diverged for s in steps[:15])
    assert any(s.progress.diverged for s in steps[15:18])
    assert all(s.used <= TOL for s in steps[15:])
    assert any(s.progress.exact for s in steps[15:]) or ranks > 4  # where many cycles are affordable


@pytest.mark.parametrize("ranks", [4, 32])
@pytest.mark.parametrize("lr", [1.0, 30.0])
def test_a_huge_learning_rate_is_not_believed(lr: float, ranks: int, monkeypatch: Any) -> None:
    """The gradients used are true ones, or those of the exact chain; what slips through is noticed within 3 steps.

    With a learning rate of 30 the layers saturate, and states jump from step to step.
    """
    control = Adaptive(gradient_tol=TOL, every=10, plan_ranks=ranks)
    run = one_shot(network(64, forward=COARSE, adjoint=COARSE), lr=lr, control=control)
    steps = list(watched(run, batches("peaks", 30, 1), monkeypatch))
    finite = [s for s in steps if math.isfinite(s.progress.loss)]
    wrong = "".join("x" if s.used > TOL else " " for s in finite)
    assert wrong.count("x") <= (0.05 if lr <= 1 else 0.1) * len(finite)
    assert "xxxx" not in wrong
    assert any(s.progress.exact for s in steps) or ranks > 4


# ---- validation and memory -------------------------------------------------------------------------------------------


def test_a_look_at_validation_data_between_mini_batches() -> None:
    """Other examples, and another number of them, in eval mode: no error, and training goes on as if without."""
    x, label = examples()
    other = examples("swissroll", 33)[0]
    runs = [one_shot(network(64), warm=WarmStates(examples=60)) for _ in range(2)]
    for step in range(6):
        index = torch.arange(60)[step % 2 :: 2]
        losses = [run.step(x[index], label[index], index).loss for run in runs]
        assert losses[0] == losses[1]
        runs[0].net.eval()
        with torch.no_grad():
            runs[0].net(other)
            runs[0].net(other[: len(index)])
        runs[0].net.train()


@pytest.mark.parametrize("scratch", [False, True])
def test_an_example_may_occur_twice_in_a_batch(scratch: bool, tmp_path: Any) -> None:
    """As it does when examples are drawn with replacement."""
    x, label = examples()
    run = one_shot(network(64), warm=WarmStates(examples=60, scratch=str(tmp_path) if scratch else None))
    index = torch.tensor([3, 3, 7, 1])
    for _ in range(3):
        assert math.isfinite(run.step(x[index], label[index], index).loss)


@pytest.mark.parametrize("kind", ["auto", "examples", "class", "none"])
def test_mini_batches_with_whatever_is_kept(kind: Any) -> None:
    """Losses fall, whatever the starts are; labels may be numbers that are no classes."""
    x, label = examples()
    run = one_shot(network(64), warm=WarmStates(kind, examples=60))
    losses = [run.step(*batch).loss for batch in batches("peaks", 60, 3)]
    assert sum(losses[-6:]) < 0.5 * sum(losses[:6])
    net = network(16, classes=1, forward=MGRIT(coarsening=4), adjoint=MGRIT(coarsening=4))
    squares = OneShot(net, ADAM(net.parameters()), nn.functional.mse_loss, warm=WarmStates(kind, examples=60))
    for x, label, index in batches("peaks", 4, 3):
        assert math.isfinite(squares.step(x, label[:, None].to(F64), index).loss)


# ---- what is refused -------------------------------------------------------------------------------------------------


def refused(words: str, call: Any) -> None:
    with pytest.raises(InputError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("which", ["forward", "adjoint"])
def test_the_exact_chain_has_nothing_to_converge(which: str) -> None:
    refused("MGRIT needed", lambda: one_shot(network(8, **{which: Serial()})))


def test_optimizers_that_are_wrong_on_slabs() -> None:
    refused("optimizer: LBFGS", lambda: one_shot(network(8), optimizer=torch.optim.LBFGS))


def test_an_optimizer_of_other_parameters_would_train_nothing() -> None:
    net, other = network(8), network(8)
    refused("^optimizer: a Adam of other parameters given", lambda: OneShot(net, ADAM(other.parameters())))


def test_a_network_without_a_trunk() -> None:
    net = nn.Linear(2, 2)
    refused("^net: a Linear given", lambda: OneShot(net, ADAM(net.parameters())))


@pytest.mark.parametrize("tol", [0, 1, 1.5, -1, math.nan, "x", True])
def test_bad_tolerances(tol: Any) -> None:
    refused("^tol: .* allowed", lambda: one_shot(network(8), tol=tol))


@pytest.mark.parametrize("cycles", [-1, 1.5, "x", True])
def test_bad_cycles(cycles: Any) -> None:
    refused("^cycles: .* allowed", lambda: one_shot(network(8), cycles=cycles))


@pytest.mark.parametrize(
    "index",
    [None, torch.arange(3), torch.arange(4)[None], torch.arange(4) - 1, torch.arange(4) + 57, torch.arange(4) * 1.0,
     torch.tensor([True, False, True, True])],
    ids=["none", "short", "2-d", "negative", "beyond", "float", "bool"],
)  # fmt: skip
def test_bad_indices(index: Any) -> None:
    x, label = examples()
    run = one_shot(network(64), warm=WarmStates(examples=60))
    refused("^index: ", lambda: run.step(x[:4], label[:4], index))


def test_more_than_the_limit() -> None:
    """From the first step, which leaves the trunk as it was."""
    x, label = examples()
    run = one_shot(network(64), warm=WarmStates("examples", examples=60, limit_mib=1e-3))
    for _ in range(2):
        refused("^limit_mib: 0.001 given", lambda: run.step(x, label, torch.arange(60)))
    run.trunks[0].memory = ExampleMemory(run.trunks[0].comm, 60, WarmStates("none"))
    assert math.isfinite(run.step(x, label, torch.arange(60)).loss)
