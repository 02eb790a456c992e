"""Gauss–Newton and nonlinear conjugate gradients as the update of descent and of simultaneous training."""

import copy
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from descent import closure_of, flat
from small_training import exact_loss, examples, network, with_ddt
from torch import nn
from torch.nn.functional import cross_entropy

from lpnet import MGRIT, InputError, Serial
from lpnet.oneshot import Descent, OneShot
from lpnet.optim import PCG, Armijo, BlockCoordinateDescent, GaussNewton, NonlinearCG, VariableProjection, Wolfe
from lpnet.regularizers import TimeDerivative

COARSE = MGRIT(coarsening=4, cycles=1)


def newton(net: nn.Sequential, **more: Any) -> GaussNewton:
    return GaussNewton(net, penalties=[TimeDerivative(net[1], 1e-4)], pcg=PCG(10), **more)


@pytest.mark.parametrize("solver", [Serial(), COARSE])
def test_descent_takes_the_steps_of_gauss_newton(solver: Any) -> None:
    """With its penalties, which are in the loss of the descent without being named there."""
    x, label = examples()
    net = network(16, forward=solver, adjoint=solver)
    twin = copy.deepcopy(net)
    run, gn = Descent(net, newton(net)), newton(twin)
    for _ in range(3):
        progress, report = run.step(x, label), gn.step_on(x, label)
        assert progress.loss == pytest.approx(report.before, rel=1e-12)
        assert progress.gradient_norm == pytest.approx(report.gradient_norm, rel=1e-9)
        mine = run.optimizer.report  # type: ignore[attr-defined]
        assert (mine.pcg.iterations, mine.evaluations) == (report.pcg.iterations, report.evaluations)
        assert mine.work == report.work - 0.5  # the adjoint is that of the evaluation
    np.testing.assert_allclose(flat(net.parameters()), flat(twin.parameters()), rtol=1e-8, atol=1e-10)


def test_gauss_newton_as_one_shot_update() -> None:
    """To about the loss of the exact chain."""
    x, label = examples()
    losses = []
    for solver in (COARSE, Serial()):
        net = network(32, forward=solver, adjoint=solver)
        run = OneShot(net, newton(net)) if solver is COARSE else Descent(net, newton(net))
        for _ in range(10):
            run.step(x, label)
        assert all(trunk._again is None for trunk in run.trunks)
        losses.append(exact_loss(net, x, label))
    assert losses[0] < 1.0
    assert losses[0] < 1.5 * losses[1]


@pytest.mark.parametrize("search", [Wolfe(), Armijo()])
def test_descent_takes_the_steps_of_conjugate_gradients(search: Any) -> None:
    x, label = examples()
    net = network(16, forward=COARSE, adjoint=COARSE)
    twin = copy.deepcopy(net)
    run, alone = Descent(net, NonlinearCG(net.parameters(), search=search), with_ddt(net)), with_ddt(twin)
    optimizer = NonlinearCG(twin.parameters(), search=search)
    loss = lambda: alone(twin(x), label)  # noqa: E731
    for _ in range(4):
        run.step(x, label)
        optimizer.step(closure_of(optimizer, loss), loss)
        assert run.optimizer.report == optimizer.report  # type: ignore[attr-defined]
    assert (flat(net.parameters()) == flat(twin.parameters())).all()


@pytest.mark.parametrize("search", [Wolfe(), Armijo()])
def test_conjugate_gradients_as_one_shot_update(search: Any) -> None:
    """The searches are on one function, though the states converge from step to step."""
    x, label = examples()
    net = network(32, forward=COARSE, adjoint=COARSE)
    run = OneShot(net, NonlinearCG(net.parameters(), search=search), with_ddt(net))
    losses = [exact_loss(net, x, label)]
    for _ in range(12):
        run.step(x, label)
        losses.append(exact_loss(net, x, label))
    assert losses[-1] < 0.85 * losses[0]
    assert sum(b < a for a, b in itertools.pairwise(losses)) >= 11


def test_a_closure_is_evaluated_again_from_the_same_start() -> None:
    x, label = examples()
    net = network(32, forward=COARSE, adjoint=COARSE)
    run = OneShot(net, NonlinearCG(net.parameters()), with_ddt(net))
    run.step(x, label)
    value = run.evaluate(x, label)
    grads = [p.grad.clone() for p in net.parameters()]
    closure = run._closure()
    for _ in range(3):
        assert torch.equal(closure(), value)
        assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), grads, strict=True))


@pytest.mark.parametrize("kind", [newton, lambda net: NonlinearCG(net.parameters())])
def test_a_clip_is_refused(kind: Any) -> None:
    net = network(4)
    with pytest.raises(InputError, match=r"^clip: 1\.0 given with \w+, None allowed"):
        Descent(net, kind(net)).step(*examples(), clip=1.0)


def test_the_loss_that_is_given_is_taken() -> None:
    net = network(4)
    assert Descent(net, newton(net)).loss != cross_entropy
    given = with_ddt(net)
    (x, label), run = examples(), Descent(net, newton(net), given)
    with torch.no_grad():
        value = given(net(x), label).item()
    assert run.step(x, label).loss == pytest.approx(value)
    assert run.step(x, label).loss < value


@pytest.mark.parametrize("method", [GaussNewton, VariableProjection, BlockCoordinateDescent])
def test_the_optimizer_and_its_loss_belong_to_the_net(method: Any) -> None:
    net, other = network(4), network(4)
    with pytest.raises(InputError, match=r"^optimizer: a \w+ of another net given, .* allowed$"):
        OneShot(net, method(other))
    assert math.isfinite(Descent(net, method(net), loss=cross_entropy).step(*examples()).loss)
    own = method(net)
    assert Descent(net, own, lambda u, c: own.loss(u, c)).step(*examples()).loss < 2.0
    with pytest.raises(InputError, match=r"^loss: one of .* allowed$"):
        Descent(net, own, lambda u, c: 2 * own.loss(u, c)).step(*examples())
