"""The cosine-transform preconditioner against dense matrices and the Hessian of the regulariser."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from descent import flat
from reference import F64, normal, trunk
from torch import nn
from torch.nn.functional import mse_loss

from lpnet import Controls, InputError
from lpnet.optim import DCT, PCG, Problem
from lpnet.optim.precondition import matched
from lpnet.regularizers import Tikhonov, TimeDerivative
from lpnet.slab import Comm


@pytest.mark.parametrize("layers", [1, 2, 7])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_the_solution_is_that_of_the_dense_matrix(layers: int, alpha: float) -> None:
    one = trunk("dense", layers, comm=Comm())
    D = np.diff(np.eye(layers), axis=0)
    M = alpha / one.h * D.T @ D + 0.1 * np.eye(layers)
    v = [normal(*p.shape, seed=i) for i, p in enumerate(one.theta.values())]
    found = DCT(one, alpha, 0.1).apply(v)
    for t, s in zip(found, v, strict=True):
        expected = np.linalg.solve(M, s.reshape(layers, -1).numpy())
        np.testing.assert_allclose(t.reshape(layers, -1), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("controls", [None, Controls(4, "constant"), Controls(5, "linear")])
def test_it_is_the_inverse_of_the_hessian_of_the_time_derivative(controls: Any) -> None:
    one = trunk("dense", 6, comm=Comm(), controls=controls)
    v = [normal(*p.shape, seed=i) for i, p in enumerate(one.theta.values())]
    M = [Hv + 0.2 * t for Hv, t in zip(TimeDerivative(one, 0.7).hessian(v), v, strict=True)]
    np.testing.assert_allclose(flat(DCT(one, 0.7, 0.2).apply(M)), flat(v), rtol=1e-11, atol=1e-13)


def test_other_parameters_are_left_alone() -> None:
    net = nn.Sequential(nn.Linear(2, 4), trunk("dense", 3, comm=Comm()))
    theta = [net[0].weight, net[1].b, net[0].bias]
    v = [normal(*p.shape, seed=i) for i, p in enumerate(theta)]
    found = DCT(net[1], 0.5, 0.1, theta).apply(v)
    assert (flat([found[0], found[2]]) == flat([v[0], v[2]])).all()
    assert found[0] is not v[0]
    np.testing.assert_allclose(flat([found[1]]), flat(DCT(net[1], 0.5, 0.1, [net[1].b]).apply([v[1]])))


def test_that_of_the_penalties() -> None:
    one, other = trunk("dense", 3, comm=Comm()), trunk("dense", 3, comm=Comm())
    penalties = [Tikhonov(one, 0.2), TimeDerivative(one, 0.5), TimeDerivative(one, 0.25), TimeDerivative(other, 9.0)]
    made = matched(one, list(one.theta.values()), penalties)
    np.testing.assert_allclose(made.values, DCT(one, 0.75, 3.2 * one.h).values)


def test_iterations_do_not_grow_with_the_layers() -> None:
    """Where the regulariser is strong. Without it they do."""
    found: dict[bool, list[int]] = {True: [], False: []}
    for layers in (8, 32):
        net = nn.Sequential(trunk("dense", layers, width=3, comm=Comm(), init="constant"))
        model = Problem(net, normal(8, 3), normal(8, 3, seed=1), mse_loss, [TimeDerivative(net[0], 0.3)]).linearize()
        g = [t * torch.linspace(-1, 1, layers, dtype=F64).view(-1, *[1] * (t.ndim - 1)) for t in model.gradient]
        theta = list(net.parameters())
        for with_it, counts in found.items():
            M = matched(net[0], theta, model.problem.penalties).apply if with_it else None
            counts.append(PCG(100, 1e-3).solve(model.product, g, theta, M)[1].iterations)
    (few, more), (few_without, more_without) = found[True], found[False]
    assert more <= few < few_without < more_without == 100


@pytest.mark.parametrize(("key", "more"), [("alpha", (-1.0, 0.1)), ("alpha", (math.nan, 0.1)), ("shift", (1.0, 0.0))])
def test_bad_input(key: str, more: Any) -> None:
    with pytest.raises(InputError, match=rf"^{key}: .* given, .* allowed$"):
        DCT(trunk("dense", 3, comm=Comm()), *more)
