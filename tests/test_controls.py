"""Laws of the control grid: against splines by their recursion, and gradients against autograd on the plain network."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from gradients import data, gradients, plain_gradients, user_trunk
from reference import F64, error, normal, twin
from small_training import SOLVER, examples, network, with_ddt
from splines import DEGREES, matrix
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, Controls, InputError
from lpnet.multilevel import prolongate
from lpnet.oneshot import Descent
from lpnet.optim import LBFGS
from lpnet.sharded import slab_of

N = 13
each_basis = pytest.mark.parametrize("basis", DEGREES)
SOLVERS = {"serial": (None, None), "MGRIT": (MGRIT(coarsening=4, cycles=12), MGRIT(coarsening=3, cycles=16))}


@each_basis
@pytest.mark.parametrize("points", [1, 2, 3, 4, 7, 13])
def test_weights_of_layers_are_those_of_the_basis(basis: str, points: int) -> None:
    B = matrix(basis, points, N)
    assert error(B.sum(1), torch.ones(N, dtype=F64)) < 1e-14
    trunk = twin("two_layer", N, controls=Controls(points, basis))
    for name, p in trunk.theta.items():
        assert p.shape[0] == points
        assert slab_of(p) is None
        assert error(trunk.layer_weights()[name], torch.einsum("jc,c...->j...", B, p)) < 1e-13


@each_basis
@pytest.mark.parametrize("points", [1, 5, 13])
def test_reduction_is_the_transpose(basis: str, points: int) -> None:
    grid = twin("dense", N, controls=Controls(points, basis)).grid
    v = {"K": normal(points, 3, 2, seed=1), "s": normal(points, seed=2)}
    w = [normal(N, 3, 2, seed=3), normal(N, seed=4)]
    forth = sum(float((a * b).sum()) for a, b in zip(grid.expand(v).values(), w, strict=True))
    back = sum(float((a * b).sum()) for a, b in zip(v.values(), grid.reduce(w), strict=True))
    assert forth == pytest.approx(back, rel=1e-13)


@pytest.mark.parametrize("how", SOLVERS)
@pytest.mark.parametrize(("basis", "kind"), [("constant", "dense"), ("linear", "hamiltonian"), ("spline", "two_layer")])
def test_gradient_is_the_transpose_of_that_of_all_layers(basis: str, kind: str, how: str) -> None:
    """B^T g, with g by lpnet without controls at the same weights, and by autograd."""
    y, c = data()
    trunk = twin(kind, N, *SOLVERS[how], controls=Controls(5, basis))
    free = twin(kind, N, *SOLVERS[how])
    free.load_state_dict(trunk.layer_weights())
    out, bar = gradients(trunk, y, c)
    out_free, bar_free = gradients(free, y, c)
    assert error(out, out_free) < 1e-14
    assert error(bar, bar_free) < 1e-14
    true, true_bar, plain = plain_gradients(trunk, y, c)
    assert error(out, true) < 1e-11
    assert error(bar, true_bar) < 1e-11
    B = matrix(basis, 5, N)
    for name, p in trunk.theta.items():
        assert p.grad is not None
        assert p.grad.shape == p.shape
        assert error(p.grad, torch.einsum("jc,j...->c...", B, free.theta[name].grad)) < 1e-12
        assert error(p.grad, torch.einsum("jc,j...->c...", B, plain[name])) < 1e-10


class Sine(nn.Module):
    """A layer of a user's own, with a number among its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.inner = nn.Parameter(torch.tensor(0.5)), nn.Linear(4, 4)

    def forward(self, y: Tensor) -> Tensor:
        return self.scale * torch.sin(self.inner(y))


def test_modules_of_a_user_have_controls_too() -> None:
    y, c = data()
    trunk = user_trunk(Sine(), N, "two levels", init="constant", controls=Controls(4, "linear"))
    with torch.no_grad():
        for i, p in enumerate(trunk.parameters()):
            p += 0.3 * normal(*p.shape, seed=i)
    gradients(trunk, y, c)
    _, _, plain = plain_gradients(trunk, y, c)
    for name, p in trunk.theta.items():
        assert error(p.grad, torch.einsum("jc,j...->c...", matrix("linear", 4, N), plain[name])) < 1e-10


@pytest.mark.parametrize("method", ["sgd", "lbfgs", "one-shot"])
def test_constant_cells_as_many_as_layers_are_no_controls(method: str) -> None:
    """The same run: weights, steps, and what error control decides."""
    x, label = examples(number=20)
    ends, told = [], []
    for controls in (None, Controls(16, "constant")):
        net = network(16, init="random", forward=SOLVER, adjoint=SOLVER, controls=controls)
        if method == "lbfgs":
            optimizer: Any = LBFGS(net.parameters())
        else:
            optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        kind = lpnet.OneShot if method == "one-shot" else Descent
        descent = kind(net, optimizer, with_ddt(net))
        told.append([descent.step(x, label) for _ in range(4)])
        ends.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
    assert error(ends[0], ends[1]) < 1e-11
    for a, b in zip(*told, strict=True):
        assert (a.exact, a.checked) == (b.exact, b.checked)
        assert a.loss == pytest.approx(b.loss, rel=1e-12)
        assert a.gradient_norm == pytest.approx(b.gradient_norm, rel=1e-11)


def test_error_control_estimates_the_error_of_the_gradient_of_the_controls() -> None:
    y, c = data()
    rough = MGRIT(coarsening=8, cycles=0)
    made = {"T": 8.0, "controls": Controls(3, "linear")}
    plain, chain = twin("dense", 32, rough, rough, **made), twin("dense", 32, **made)
    bars = [gradients(one, y, c)[1] for one in (plain, chain)]
    weights = [torch.cat([p.grad.flatten() for p in one.parameters()]) for one in (plain, chain)]
    true = max(error(*weights), error(*bars))
    assert true > 1e-4
    controlled = twin("dense", 32, rough, rough, **made, control=lpnet.Adaptive(gradient_tol=0.5, every=1))
    gradients(controlled, y, c)
    report = controlled.info.control
    assert report is not None
    assert report.checked
    assert report.gradient_error == pytest.approx(true, rel=0.3)


def test_cells_that_are_the_coarse_intervals_make_coarse_steps_of_smooth_weights() -> None:
    """Rough weights that are constant within each interval cost no accuracy, where rough layers do."""
    y, c = data()
    m, errors = MGRIT(coarsening=8, cycles=1), {}
    for points in (None, 8):
        controls = None if points is None else Controls(points, "constant")
        one, chain = (twin("dense", 64, s, s, T=5.0, controls=controls) for s in (m, lpnet.Serial()))
        for trunk in (one, chain):
            gradients(trunk, y, c)
        errors[points] = error(*(torch.cat([p.grad.flatten() for p in t.parameters()]) for t in (one, chain)))
    assert errors[8] < 0.02 * errors[None]


def test_state_goes_through_copies_dtypes_and_files_of_weights() -> None:
    trunk = twin("two_layer", N, controls=Controls(4, "spline"))
    whole = trunk.gather_state_dict()
    assert {name: len(t) for name, t in whole.items()} == dict.fromkeys(trunk.theta, 4)
    other = copy.deepcopy(trunk)
    with torch.no_grad():
        for p in other.parameters():
            p.zero_()
    assert not any(torch.equal(trunk.theta[name], p) for name, p in other.theta.items())
    other.load_state_dict(whole, assign=True)
    y, _ = data()
    assert torch.equal(other(y), trunk(y))
    assert error(trunk.as_sequential()(y), trunk(y)) < 1e-13
    small = copy.deepcopy(trunk).float()
    assert error(small(y.float()).double(), trunk(y)) < 1e-5
    assert all(p.dtype == torch.float32 for p in small.layer_weights().values())
    with pytest.raises(RuntimeError, match="size mismatch"):
        trunk.load_state_dict(dict(twin("two_layer", N).state_dict()))


def test_weights_of_another_grid_are_refused_though_their_shapes_fit(tmp_path: Path) -> None:
    grids = (None, Controls(4, "constant"), Controls(4, "linear"))
    trunks = [nn.Sequential(nn.Linear(3, 3), twin("dense", 4, controls=controls)).double() for controls in grids]
    for i, a in enumerate(trunks):
        torch.save(a.state_dict(), tmp_path / "weights.pt")
        saved = torch.load(tmp_path / "weights.pt", weights_only=True)
        for j, b in enumerate(trunks):
            for net, weights in ((b, saved), (b[1], a[1].gather_state_dict())):
                if i == j:
                    net.load_state_dict(weights)
                    continue
                with pytest.raises(RuntimeError, match=r"^Error(?s:.*)controls: weights of .* given, .* allowed"):
                    net.load_state_dict(weights)
                net.load_state_dict(dict(weights))  # a plain dict does not say of which grid it is


def test_constant_initial_weights_are_constant() -> None:
    trunk = lpnet.LayerParallel(lpnet.dynamics.Dense(4), N, 1.0, dtype=F64, controls=Controls(5, "spline"))
    K = trunk.layer_weights()["K"]
    assert error(K, K[:1].expand_as(K)) < 1e-15
    assert K.norm() > 0


@pytest.mark.parametrize("how", SOLVERS)
def test_products_with_the_jacobian_take_changes_of_the_controls(how: str) -> None:
    """Adjoint identity, and the products of a trunk without controls for the change of its layers."""
    y, c = data()
    trunk, free = twin("dense", N, *SOLVERS[how], controls=Controls(5)), twin("dense", N, *SOLVERS[how])
    free.load_state_dict(trunk.layer_weights())
    J, J_free = trunk.linearize(y), free.linearize(y)
    d = {name: normal(*p.shape, seed=i) for i, (name, p) in enumerate(trunk.theta.items())}
    dot = J.tangent(c, list(d.values()))
    assert error(dot, J_free.tangent(c, list(trunk.grid.expand(d).values()))) < 1e-13
    back, grads = J.pull(c)
    pulled = float((back * c).sum()) + sum(float((d[n] * g).sum()) for n, g in zip(d, grads, strict=True))
    assert float((dot * c).sum()) == pytest.approx(pulled, rel=1e-10)


def test_more_layers_have_the_same_controls() -> None:
    trunk = twin("dense", N, controls=Controls(5, "spline"))
    fine = prolongate(trunk, 2 * N)
    assert fine.controls == trunk.controls
    assert all(torch.equal(fine.theta[name], p) for name, p in trunk.theta.items())
    B = matrix("spline", 5, 2 * N)
    assert error(fine.layer_weights()["K"], torch.einsum("jc,cab->jab", B, trunk.theta["K"])) < 1e-13


def test_frozen_controls_get_no_gradient() -> None:
    y, c = data()
    trunk = twin("dense", N, controls=Controls(5))
    trunk.theta["b"].requires_grad_(False)
    gradients(trunk, y, c)
    assert trunk.theta["b"].grad is None
    assert trunk.theta["K"].grad is not None


def test_plan_weighs_the_solvers_of_a_trunk_with_controls() -> None:
    trunk = twin("dense", 32, SOLVER, SOLVER, controls=Controls(5))
    found = lpnet.plan(trunk, data()[0], 0.1, plan_ranks=8)
    assert found.gradient_error <= 0.05


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: twin("dense", 9, controls=Controls(40)), "controls.points: 40 given for 9 layers, at most 9 allowed"),
        (lambda: Controls(0), "controls.points: 0 given, a whole number of at least 1 allowed"),
        (lambda: Controls(True), "controls.points: True given, a whole number of at least 1 allowed"),
        (lambda: Controls(3, "cubic"), "controls.basis: 'cubic' given, one of constant, linear, spline allowed"),
        (lambda: twin("dense", 32, controls=5), "controls: 5 given, an lpnet.Controls or None allowed"),
    ],
)
def test_bad_controls(make: Any, text: str) -> None:
    with pytest.raises(InputError) as found:
        make()
    assert str(found.value) == text
