"""Block coordinate descent against its parts done one by one with dense matrices."""

import itertools
import math

import pytest
import torch
from blocks import LABEL, Flat, X, network, penalties
from reference import error, normal
from torch import Tensor

from lpnet import InputError
from lpnet.optim import PCG, Armijo, BlockCoordinateDescent, classifier


def flat(v: object) -> Tensor:
    return torch.cat([t.detach().flatten() for t in v])  # type: ignore[attr-defined]


def test_a_step_is_its_three_parts() -> None:
    net = network()
    slow, theta = Flat(net), Flat(net).theta
    start = classifier.stacked(net[2])
    M = slow.best(theta, start)
    n = len(theta)
    p = torch.linalg.solve(slow.gauss_newton(theta, M)[:n, :n], -torch.func.grad(slow)(theta, M))
    exact = PCG(iterations=200, tol=1e-13)
    report = BlockCoordinateDescent(net, penalties(net), tol=1e-12, pcg=exact, cap=math.inf).step_on(X, LABEL)
    moved = flat(net[:2].parameters())
    assert error(moved - theta, report.step * p) < 1e-6
    best = slow.best(moved, M)
    assert error(classifier.stacked(net[2]), best) < 1e-8
    assert report.before == pytest.approx(slow(theta, start).item(), rel=1e-12)
    assert report.after == pytest.approx(slow(moved, best).item(), rel=1e-12)
    assert report.work == 1 + report.pcg.iterations + 0.5 * report.evaluations + 0.5


def test_no_step_increases_the_objective() -> None:
    net = network()
    optimizer = BlockCoordinateDescent(net, penalties(net))
    reports = [optimizer.step_on(X, LABEL) for _ in range(5)]
    values = [v for r in reports for v in (r.before, r.after)]
    assert all(b <= a * (1 + 1e-14) for a, b in itertools.pairwise(values))
    assert values[-1] < 0.5 * values[0]
    for a, b in itertools.pairwise(reports):
        assert b.before == pytest.approx(a.after, rel=1e-13)
    other = normal(12, 2, seed=30), LABEL.flip(0)  # of another batch the first minimisation has to begin anew
    assert optimizer.step_on(*other).after < optimizer.report.before


def test_a_step_that_fails_leaves_the_weights_and_the_classifier_at_its_best() -> None:
    net = network()
    before = flat(net[:2].parameters())
    report = BlockCoordinateDescent(net, search=Armijo(decrease=0.999999, most=2)).step_on(X, LABEL)
    assert not report.accepted
    assert torch.equal(flat(net[:2].parameters()), before)
    assert report.after < report.before
    with torch.no_grad():
        assert classifier.solve(net[:2](X), LABEL, net[2]).steps == 0


def test_what_is_not_allowed() -> None:
    with pytest.raises(InputError, match=r"^net: a Identity behind the trunk given, one torch.nn.Linear allowed"):
        BlockCoordinateDescent(network()[:2])
