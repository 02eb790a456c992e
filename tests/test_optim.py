"""L-BFGS as an optimizer of torch, its vectors, its line search, and what input they refuse."""

import copy
import io
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from descent import closure_of, fitting, flat, network, same_state
from hypothesis import given
from hypothesis import strategies as st
from reference import F64, normal
from torch import Tensor, nn

import lpnet
from lpnet import InputError
from lpnet.optim import LBFGS, Armijo, Result, vector
from lpnet.sharded import slab_of

# ---- vectors ---------------------------------------------------------------------------------------------------------


def test_inner_products_are_those_of_the_flat_vectors() -> None:
    theta = list(network().parameters())
    assert {slab_of(p) is None for p in theta} == {True, False}
    u, v, w = ([normal(*p.shape, seed=10 * k + i) for i, p in enumerate(theta)] for k in range(3))
    pairs = [(u, v), (v, w), (w, w)]
    found = vector.dots(theta, pairs)
    assert found.dtype == F64
    np.testing.assert_allclose(found, [flat(a) @ flat(b) for a, b in pairs], rtol=1e-13)
    assert found.tolist() == [vector.dot(theta, a, b) for a, b in pairs]
    assert vector.norm(theta, u) == pytest.approx(np.linalg.norm(flat(u)), rel=1e-14)
    assert vector.dots(theta, []).shape == (0,)
    np.testing.assert_allclose(flat(vector.axpy(-0.3, u, v)), flat(v) - 0.3 * flat(u), atol=1e-15)
    together = flat(vector.combination([1.0, -2.0, 0.5], [u, v, w]))
    np.testing.assert_allclose(together, flat(u) - 2 * flat(v) + 0.5 * flat(w), rtol=1e-14, atol=1e-15)


def test_copies_share_no_memory() -> None:
    theta = list(network().parameters())
    before = flat(theta)
    kept = vector.copies(theta)
    vector.assign(theta, vector.axpy(1.0, kept, kept))
    assert (flat(kept) == before).all()
    assert (flat(theta) == 2 * before).all()
    assert not any(t.requires_grad for t in kept)


def test_sums_of_float32_are_taken_in_float64() -> None:
    theta = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(1))]
    a = [torch.tensor([1e8, 1.0, -1e8]), torch.tensor([2.0])]
    assert vector.dot(theta, a, [torch.ones(3), torch.ones(1)]) == 3.0


# ---- line search -----------------------------------------------------------------------------------------------------


@given(
    st.floats(-5, 5), st.floats(-10, -1e-3), st.floats(-50, 50), st.floats(0.01, 0.99), st.floats(0.1, 0.9),
    st.floats(1e-3, 10), st.integers(1, 12),
)  # fmt: skip
def test_armijo_is_the_first_step_with_sufficient_decrease(
    phi0: float, slope: float, bend: float, decrease: float, factor: float, start: float, most: int
) -> None:
    asked: list[float] = []

    def phi(a: float) -> float:
        asked.append(a)
        return phi0 + slope * a + bend * a * a

    result = Armijo(decrease, factor, most).search(phi, phi0, slope, start)
    tried = list(asked)
    enough = [phi(a) <= phi0 + decrease * a * slope for a in tried]
    assert tried == pytest.approx([start * factor**i for i in range(len(tried))])
    assert not any(enough[:-1])
    assert result.evaluations == len(tried) <= most
    assert result.accepted == enough[-1]
    if result.accepted:
        assert (result.step, result.value) == (tried[-1], phi(tried[-1]))
    else:
        assert (result.step, result.value, len(tried)) == (0.0, phi0, most)


@pytest.mark.parametrize("start", [1e-6, 1e-3, 1.0, 1e3])
def test_the_decrease_asked_for_is_in_proportion_to_the_step(start: float) -> None:
    assert Armijo(decrease=0.4).search(lambda a: -0.5 * a, 0.0, -1.0, start).evaluations == 1
    assert not Armijo(decrease=0.6).search(lambda a: -0.5 * a, 0.0, -1.0, start).accepted


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_no_decrease(bad: float) -> None:
    result = Armijo().search(lambda a: bad if a > 0.3 else -a, 0.0, -1.0)
    assert result == Result(0.25, -0.25, 3, True)


@pytest.mark.parametrize(
    ("key", "call"),
    [
        ("decrease", lambda: Armijo(decrease=0.0)),
        ("decrease", lambda: Armijo(decrease=1.0)),
        ("factor", lambda: Armijo(factor=math.nan)),
        ("factor", lambda: Armijo(factor=2)),
        ("most", lambda: Armijo(most=0)),
        ("most", lambda: Armijo(most=2.0)),  # type: ignore[arg-type]
        ("slope", lambda: Armijo().search(lambda a: 0.0, 1.0, 0.0)),
        ("slope", lambda: Armijo().search(lambda a: 0.0, 1.0, 1.0)),
        ("slope", lambda: Armijo().search(lambda a: 0.0, 1.0, math.nan)),
        ("phi0", lambda: Armijo().search(lambda a: 0.0, math.nan, -1.0)),
        ("start", lambda: Armijo().search(lambda a: 0.0, 1.0, -1.0, math.inf)),
        ("start", lambda: Armijo().search(lambda a: 0.0, 1.0, -1.0, -1.0)),
        ("lr", lambda: LBFGS([nn.Parameter(torch.ones(1))], lr=0.0)),
        ("lr", lambda: LBFGS([nn.Parameter(torch.ones(1))], lr=math.inf)),
        ("memory", lambda: LBFGS([nn.Parameter(torch.ones(1))], memory=0)),
        ("memory", lambda: LBFGS([nn.Parameter(torch.ones(1))], memory=True)),
        ("curvature", lambda: LBFGS([nn.Parameter(torch.ones(1))], curvature=-1.0)),
        ("curvature", lambda: LBFGS([nn.Parameter(torch.ones(1))], curvature=1.0)),
        ("search", lambda: LBFGS([nn.Parameter(torch.ones(1))], search="armijo")),  # type: ignore[arg-type]
        ("parameters", lambda: LBFGS([{"params": [nn.Parameter(torch.ones(1))]} for _ in range(2)])),  # type: ignore
    ],
)
def test_bad_input(key: str, call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=rf"^{key}: .* given, .* allowed.*$"):
        call()


# ---- an optimizer of torch -------------------------------------------------------------------------------------------


class Taken:
    """A search that takes the step first tried and keeps what it was asked."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def search(self, phi: Callable[[float], float], phi0: float, slope: float, start: float = 1.0) -> Result:
        self.starts.append(start)
        return Result(start, phi(start), 1, True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_run_that_is_resumed_goes_on_as_if_it_had_not_stopped(dtype: torch.dtype) -> None:
    net = network().to(dtype)
    loss_of = lambda one: lambda: (one(normal(6, 2, dtype=dtype)) - 1).square().mean()  # noqa: E731
    optimizer = LBFGS(net.parameters(), memory=4)
    for _ in range(7):  # more than the memory holds
        optimizer.step(closure_of(optimizer, loss_of(net)), loss_of(net))
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(net)
    resumed = LBFGS(other.parameters(), memory=4)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in range(6):
        losses = [o.step(closure_of(o, loss_of(n)), loss_of(n)) for o, n in ((optimizer, net), (resumed, other))]
        assert losses[0] == losses[1]
        assert optimizer.report == resumed.report
    assert (flat(net.parameters()) == flat(other.parameters())).all()
    same_state(optimizer.state_dict(), resumed.state_dict())
    for p in net.parameters():  # whatever is kept of a parameter is of its shape, so that layers can be redistributed
        assert {t.shape for t in optimizer.state[p].values()} == {p.shape}
        assert len(optimizer.state[p]) == 2 + 2 * 4


def test_the_learning_rate_multiplies_the_step_tried_first() -> None:
    net = network()
    search = Taken()
    optimizer = LBFGS(net.parameters(), lr=0.5, search=search)  # type: ignore[arg-type]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    closure = closure_of(optimizer, fitting(net))
    closure()
    size = float(lpnet.grad_norm(net.parameters()))
    for _ in range(4):
        optimizer.step(closure)
        schedule.step()
    assert search.starts == pytest.approx([0.5 * min(1.0, 1 / size), 0.25, 0.125, 0.0625])


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_first_step_moves_by_the_gradient_but_not_by_more_than_one(scale: float) -> None:
    x = nn.Parameter(torch.zeros(4, dtype=F64))
    c = normal(4)
    optimizer = LBFGS([x], search=None)
    optimizer.step(closure_of(optimizer, lambda: scale * (c @ x)))
    size = scale * c.norm().item()
    assert x.detach().norm().item() == pytest.approx(min(1.0, size), rel=1e-12)


def test_one_gradient_a_step_and_the_objective_for_the_rest() -> None:
    net = network()
    optimizer, loss = LBFGS(net.parameters(), lr=8.0), fitting(net)  # a long trial, so that the search has to work
    closure, gradients, values = closure_of(optimizer, loss), [], []

    def counted() -> Tensor:
        gradients.append(torch.is_grad_enabled())
        return closure()

    def objective() -> float:
        values.append(torch.is_grad_enabled())
        return loss().item()

    evaluations = 0
    for step in range(1, 6):
        before = loss().item()
        assert optimizer.step(counted, objective) == before
        evaluations += optimizer.report.evaluations
        assert (gradients, values) == ([True] * step, [False] * evaluations)
    assert evaluations > 5
    optimizer.step(counted)
    assert len(gradients) == 6 + optimizer.report.evaluations


@pytest.mark.parametrize("solver", [lpnet.Serial(), lpnet.MGRIT(coarsening=4, cycles=2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_training_a_trunk_decreases_the_loss_in_every_step(solver: Any, dtype: torch.dtype) -> None:
    net = network()
    net[1].steer(solver, solver, None)
    net = net.to(dtype)
    x, y = normal(6, 2, seed=5, dtype=dtype), normal(6, 2, seed=6, dtype=dtype)
    loss = lambda: (net(x) - y).square().mean()  # noqa: E731
    optimizer = LBFGS(net.parameters())
    losses = [optimizer.step(closure_of(optimizer, loss), loss) for _ in range(15)]
    assert all(b < a for a, b in itertools.pairwise(losses))
    assert losses[-1] < 0.2 * losses[0]
    assert optimizer.report.pairs == 10
