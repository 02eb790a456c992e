"""What is around a call of a trunk: autocast, transforms of `torch.func`, operations in place behind it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradients import CONVERGED, WIDTH, data, gradients, user_trunk
from reference import F64, error, normal
from torch import Tensor, nn
from torch.autograd import forward_ad

import lpnet
from lpnet import MGRIT, InputError, Serial
from lpnet.slab import Comm

F32, HALF = torch.float32, torch.bfloat16
MODULES: dict[str, Callable[[int], nn.Module]] = {
    "dense": lpnet.dynamics.Dense,
    "user": lambda width: nn.Sequential(nn.Linear(width, width), nn.Tanh()),
}
each_module = pytest.mark.parametrize("kind", list(MODULES))
each_solver = pytest.mark.parametrize("solver", [Serial(2), MGRIT(coarsening=3, cycles=1, samples=2)], ids=["S", "M"])


def made(kind: str, width: int = WIDTH, **more: Any) -> lpnet.LayerParallel:
    return user_trunk(MODULES[kind](width), **more)


def everything(trunk: lpnet.LayerParallel, y: Tensor, c: Tensor, around: Any, back: Any) -> list[Tensor]:
    """Output and gradients, forward and backward in contexts of their own."""
    trunk.zero_grad()
    leaf = y.clone().requires_grad_()
    with around:
        out = trunk(leaf)
    with back:
        out.backward(c)
    return [out.detach(), leaf.grad, *(p.grad for p in trunk.parameters())]


@each_module
@each_solver
@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("backward", [False, True])
def test_autocast_changes_nothing_inside(kind: str, solver: Any, dtype: torch.dtype, backward: bool) -> None:
    """To the last bit, also of products with the Jacobian; the trunk computes in the type of its weights."""
    trunk, (y, c) = made(kind, dtype=dtype, forward=solver, adjoint=solver), data(dtype=dtype)

    def autocast(enabled: bool) -> Any:
        return torch.autocast("cpu", HALF, enabled=enabled)

    found = everything(trunk, y, c, autocast(True), autocast(backward))
    expected = everything(trunk, y, c, autocast(False), autocast(False))
    assert all(a.dtype == dtype and torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    products = []
    for enabled in (True, False):
        with autocast(enabled):
            J = trunk.linearize(y)
            y_bar, theta_bar = J.pull(c)
            products.append([J.output, J.tangent(c, None), y_bar, *theta_bar])
    assert all(a.dtype == dtype and torch.equal(a, b) for a, b in zip(*products, strict=True))


@each_module
def test_a_trunk_between_layers_that_autocast_runs_in_its_type(kind: str) -> None:
    """Their output is taken as if it were of the weights' type; their gradient comes back in their own."""
    trunk, (y, c) = made(kind, dtype=F32), data(dtype=F32)
    first, last = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
    with torch.autocast("cpu", HALF):
        features = first(y)
        features.retain_grad()
        out = trunk(features)
        after = last(out)
        with pytest.raises(InputError, match=r"dtype torch\.float16 given, torch\.float32"):
            trunk(y.half())
    assert (features.dtype, out.dtype, after.dtype) == (HALF, F32, HALF)
    after.backward(c.to(HALF))
    assert features.grad is not None
    assert first.weight.grad is not None
    bar = torch.autograd.grad(last(leaf := out.detach().requires_grad_()), leaf, c)[0]
    expected, y_bar = gradients(trunk, features.detach().float(), bar)
    assert torch.equal(out, expected)
    assert features.grad.dtype == HALF
    assert error(features.grad.float(), y_bar) < 2e-2  # as the classifier in bfloat16 has it
    with pytest.raises(InputError, match=r"dtype torch\.bfloat16 given, torch\.float32"):
        trunk(features)


def test_warnings_point_at_the_line_of_the_user() -> None:
    settings: dict[str, Any] = {"stepper": lpnet.steppers.Verlet(), "init": "random", "comm": Comm()}
    trunk = lpnet.LayerParallel(lpnet.dynamics.Hamiltonian(WIDTH), 10, 2000.0, **settings)
    with pytest.warns(UserWarning, match="Verlet is unstable") as caught:
        trunk(torch.zeros(1, WIDTH))
    assert caught[0].filename == __file__


# ---- transforms ------------------------------------------------------------------------------------------------------


def dual(trunk: lpnet.LayerParallel, y: Tensor) -> None:
    with forward_ad.dual_level():
        trunk(forward_ad.make_dual(y, y))


@pytest.mark.parametrize(
    "transform",
    [
        lambda trunk, y: torch.func.grad(lambda y: trunk(y).sum())(y),
        lambda trunk, y: torch.func.jvp(trunk, (y,), (y,)),
        lambda trunk, y: torch.func.jvp(lambda y: trunk.linearize(y).output, (y,), (y,)),
        lambda trunk, y: torch.func.vmap(trunk)(y[None]),
        dual,
    ],
    ids=["grad", "jvp", "linearize", "vmap", "dual"],
)
def test_transforms_are_refused_in_words(transform: Any) -> None:
    trunk, (y, c) = made("user"), data()
    with pytest.raises(InputError, match=r"torch\.func .*linearize\(y\)"):
        transform(trunk, y)
    gradients(trunk, y, c)
    torch.func.functional_call(trunk, dict(trunk.named_parameters()), (y,))  # which is none


# ---- in place --------------------------------------------------------------------------------------------------------


@each_module
@pytest.mark.parametrize("how", ["serial", "micro-batches", "two levels"])
@pytest.mark.parametrize("store", ["all", "cpoints"])
@pytest.mark.parametrize(("batch", "width"), [(6, 4), (1, 4), (6, 1), (1, 1)])
def test_operations_in_place_behind_a_trunk(kind: str, how: str, store: Any, batch: int, width: int) -> None:
    """The output has no memory in common with what the adjoint needs."""
    trunk = made(kind, width, how=how, store=store)
    y, c = normal(batch, width), normal(batch, width, seed=1)
    plain = trunk.as_sequential()
    found = gradients(nn.Sequential(trunk, nn.LeakyReLU(0.3, inplace=True)), y, c)
    expected = gradients(nn.Sequential(plain, nn.LeakyReLU(0.3)), y, c)
    for a, b in zip(found, expected, strict=True):
        assert error(a, b) < 1e-10
    layers = [part.dynamics for part in plain if hasattr(part, "dynamics")]
    for name, p in trunk.theta.items():
        assert error(p.grad, torch.stack([layer.get_parameter(name).grad for layer in layers])) < 1e-10, name


@each_module
@pytest.mark.parametrize("how", list(CONVERGED)[::2])
def test_the_output_of_a_linearisation_is_the_users(kind: str, how: str) -> None:
    trunk, (y, c) = made(kind, how=how), data()
    expected, J = trunk.linearize(y), trunk.linearize(y)
    J.output.fill_(7.0)
    assert torch.equal(J.tangent(c, None), expected.tangent(c, None))
    assert torch.equal(J.pull(c)[0], expected.pull(c)[0])
