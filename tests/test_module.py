"""Laws of the trunk: converged gradients are those of autograd, and it behaves as an `nn.Module` should."""

import copy
import math
from typing import Any

import pytest
import torch
from gradients import BATCH, CONVERGED, WIDTH, assert_gradients, data, gradients
from reference import ACTIVATIONS, F64, KINDS, dynamics, error, normal, slope, stepper, twin
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, InputError
from lpnet.slab import Comm


@pytest.mark.parametrize("how", list(CONVERGED))
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("N", [1, 5, 22])
def test_converged_gradient_is_that_of_autograd(kind: str, how: str, N: int) -> None:
    assert_gradients(twin(kind, N, *CONVERGED[how], gamma=0.1))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_with_every_activation(kind: str, activation: str) -> None:
    assert_gradients(twin(kind, 13, *CONVERGED["two levels"], activation=activation))


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32(kind: str) -> None:
    trunk = twin(kind, 22, *CONVERGED["two levels"], dtype=torch.float32)
    assert all(p.dtype == torch.float32 for p in trunk.parameters())
    assert_gradients(trunk, 1e-5, torch.float32)
    with pytest.raises(InputError, match="dtype"):
        trunk(data()[0])


def test_verlet_from_zero() -> None:
    assert_gradients(twin("hamiltonian", 13, *CONVERGED["two levels"], start="zero"))


@pytest.mark.parametrize("how", ["two levels", "three levels", "mixed"])
@pytest.mark.parametrize("kind", KINDS)
def test_taylor(kind: str, how: str) -> None:
    """|J(x + εd) − J(x) − ε J'd| falls with ε²."""
    trunk, (y, c) = twin(kind, 22, *CONVERGED[how]), data()

    def J(y: Tensor) -> Tensor:
        return (c * trunk(y)).sum() + 0.5 * trunk(y).square().sum()

    leaf = y.clone().requires_grad_()
    J(leaf).backward()
    d = normal(BATCH, WIDTH, seed=5)
    ds = {n: normal(*p.shape, seed=6 + i) for i, (n, p) in enumerate(trunk.theta.items())}
    base = {n: p.detach().clone() for n, p in trunk.theta.items()}
    assert leaf.grad is not None
    derivative = (leaf.grad * d).sum() + sum((p.grad * ds[n]).sum() for n, p in trunk.theta.items())
    with torch.no_grad():
        at, sizes, errors = J(y), [1e-3, 5e-4, 2.5e-4], []
        for eps in sizes:
            trunk.load_state_dict({n: base[n] + eps * ds[n] for n in base})
            errors.append(abs(J(y + eps * d) - at - eps * derivative).item())
    assert slope(sizes, errors) == pytest.approx(2, abs=0.1)


# ---- as autograd expects ---------------------------------------------------------------------------------------------

SOLVERS = pytest.mark.parametrize("how", ["serial", "micro-batches", "two levels", "three levels", "mixed"])


@SOLVERS
@pytest.mark.parametrize("kind", KINDS)
def test_two_forwards_before_one_backward(kind: str, how: str) -> None:
    """Of other batches, sizes and modes; each gradient is its own, and together they add up."""
    trunk = twin(kind, 13, *CONVERGED[how])
    (y1, c1), (y2, c2) = data(), data(7)
    y2, c2 = y2[:4], c2[:4]
    singles = []
    for y, c in ((y1, c1), (y2, c2)):
        trunk.zero_grad()
        _, y_bar = gradients(trunk, y, c)
        singles.append([y_bar, *(p.grad.clone() for p in trunk.parameters())])
    trunk.zero_grad()
    a, b = y1.clone().requires_grad_(), y2.clone().requires_grad_()
    first, second = trunk(a), trunk(b)
    with torch.no_grad():
        trunk(y2)
    ((first * c1).sum() + (second * c2).sum()).backward()
    found = [a.grad, b.grad, *(p.grad for p in trunk.parameters())]
    expected = [singles[0][0], singles[1][0], *(p + q for p, q in zip(singles[0][1:], singles[1][1:], strict=True))]
    for f, e in zip(found, expected, strict=True):
        assert error(f, e) < 1e-12


@SOLVERS
@pytest.mark.parametrize("kind", KINDS)
def test_backward_twice_through_a_retained_graph(kind: str, how: str) -> None:
    trunk, (y, c) = twin(kind, 13, *CONVERGED[how]), data()
    leaf = y.clone().requires_grad_()
    loss = (trunk(leaf) * c).sum()
    loss.backward(retain_graph=True)
    once = [leaf.grad.clone(), *(p.grad.clone() for p in trunk.parameters())]
    loss.backward()
    for f, e in zip([leaf.grad, *(p.grad for p in trunk.parameters())], once, strict=True):
        assert error(f, 2 * e) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_stay_when_others_are_computed(kind: str) -> None:
    """What `autograd.grad` has returned is not overwritten by the next call."""
    trunk, (y, c) = twin(kind, 13), data()
    weights, losses = list(trunk.parameters()), [(trunk(y) * c).sum(), trunk(y).square().sum()]
    first = torch.autograd.grad(losses[0], weights)
    kept = [g.clone() for g in first]
    torch.autograd.grad(losses[1], weights)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_weights_changed_in_place_before_backward_are_an_error() -> None:
    trunk, (y, c) = twin("dense", 9), data()
    loss = (trunk(y) * c).sum()
    with torch.no_grad():
        trunk.theta["K"].add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


@pytest.mark.parametrize("way", ["no_grad", "optimizer", "data", "set data", "load", "vector"])
def test_changed_weights_are_used_at_once(way: str) -> None:
    trunk, (y, c) = twin("dense", 9, *CONVERGED["two levels"]), data()
    for _ in range(3):
        gradients(trunk, y, c)
        if way == "no_grad":
            with torch.no_grad():
                trunk.theta["K"].mul_(0.7)
        elif way == "optimizer":
            torch.optim.SGD(trunk.parameters(), lr=0.1).step()
        elif way == "data":
            trunk.theta["K"].data.mul_(0.7)
        elif way == "set data":
            trunk.theta["K"].data = 0.7 * trunk.theta["K"].data
        elif way == "load":
            trunk.load_state_dict({n: 0.7 * p.detach() for n, p in trunk.theta.items()})
        else:
            vector = torch.nn.utils.parameters_to_vector(trunk.parameters()).detach()
            torch.nn.utils.vector_to_parameters(0.7 * vector, trunk.parameters())
        trunk.zero_grad()
        assert_gradients(trunk)
        trunk.zero_grad()


def test_second_derivatives_are_refused() -> None:
    trunk, (y, _) = twin("dense", 9), data()
    (g,) = torch.autograd.grad(trunk(y).square().sum(), [trunk.theta["K"]], create_graph=True)
    with pytest.raises(RuntimeError):
        g.sum().backward()


@SOLVERS
def test_frozen_trunks_pass_gradients_on(how: str) -> None:
    trunk, (y, c) = twin("dense", 13, *CONVERGED[how]), data()
    _, expected = gradients(trunk, y, c)
    trunk.zero_grad()
    trunk.theta["b"].requires_grad_(False)
    _, half = gradients(trunk, y, c)
    assert trunk.theta["b"].grad is None
    assert trunk.theta["K"].grad is not None
    trunk.requires_grad_(False)
    trunk.zero_grad()
    _, frozen = gradients(trunk, y, c)
    assert all(p.grad is None for p in trunk.parameters())
    assert error(half, expected) < 1e-13
    assert error(frozen, expected) < 1e-13


@SOLVERS
def test_without_gradients(how: str) -> None:
    trunk, (y, _) = twin("dense", 13, *CONVERGED[how]), data()
    with torch.no_grad():
        silent = trunk(y)
    assert not silent.requires_grad
    assert error(silent, trunk(y).detach()) < 1e-14
    with torch.inference_mode():
        assert error(trunk(y), silent) < 1e-14
    trunk.requires_grad_(False)
    assert not trunk(y).requires_grad
    assert y.grad is None


def test_the_caller_keeps_his_tensors() -> None:
    trunk, (y, c) = twin("hamiltonian", 13, *CONVERGED["two levels"]), data()
    leaf, seed = y.clone().requires_grad_(), c.clone()
    out = trunk(leaf)
    kept = out.detach().clone()
    out.backward(seed)
    trunk(normal(BATCH, WIDTH, seed=8))
    assert torch.equal(leaf.detach(), y)
    assert torch.equal(seed, c)
    assert torch.equal(out.detach(), kept)


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_any_batch(batch: int) -> None:
    trunk, y = twin("dense", 13, *CONVERGED["micro-batches"]), normal(batch, WIDTH)
    out, _ = gradients(trunk, y, y)
    assert out.shape == (batch, WIDTH)
    for rows in (y, normal(WIDTH, 2 * batch).T[::2]):
        assert error(trunk(rows).detach(), trunk.as_sequential()(rows).detach()) < 1e-13


# ---- construction, state, copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "given"),
    [
        *(("layers", v) for v in (0, -1, 2.0, True, "8", None)),
        *((key, v) for key in ("forward", "adjoint") for v in ("mgrit", lpnet.MGRIT, 3)),
        *(("stepper", v) for v in ("rk4", lpnet.steppers.RK4)),
        *(("comm", v) for v in (3, Comm)),
        *(("device", v) for v in ("tpu", "cuda:99", [])),
        *(("T", v) for v in (True, 0, -1.0, math.nan, math.inf, "1", None)),
        *(("seed", v) for v in (-1, 0.5, None)),
        ("init", "zeros"),
    ],
)
def test_bad_arguments(key: str, given: Any) -> None:
    arguments: dict[str, Any] = {"layers": 8, "T": 1.0, "comm": Comm()} | {key: given}
    with pytest.raises(InputError, match=rf"^{key}: .* given, .* allowed$"):
        lpnet.LayerParallel(dynamics("dense"), **arguments)


@pytest.mark.parametrize("given", ["x", None, [[0.0]]])
def test_inputs_that_are_no_tensors(given: Any) -> None:
    trunk = lpnet.LayerParallel(dynamics("dense"), 4, 1.0, comm=Comm())
    for call in (trunk, trunk.linearize):
        with pytest.raises(InputError, match=r"^input: .* given, a tensor \(batch, \*features\) needed$"):
            call(given)


@pytest.mark.parametrize("shape", [(WIDTH,), (BATCH, WIDTH + 1), (BATCH, 2, WIDTH)])
def test_inputs_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"^input: shape .* given, .* needed$"):
        twin("dense", 8)(normal(*shape))


@pytest.mark.parametrize("kind", KINDS)
def test_initial_weights(kind: str) -> None:
    """Constant in j, or drawn from (seed, layer) whatever N; another seed draws others."""

    def drawn(layers: int, seed: int, init: Any) -> dict[str, Tensor]:
        made = lpnet.LayerParallel(dynamics(kind, 64), layers, 1.0, stepper(kind), seed=seed, init=init, comm=Comm())
        return made.gather_state_dict()

    constant, random, longer, other = (
        drawn(*how) for how in ((5, 1, "constant"), (5, 1, "random"), (9, 1, "random"), (5, 2, "random"))
    )
    for name, K in constant.items():
        assert all(torch.equal(K[0], K[j]) for j in range(5))
        assert torch.equal(random[name], longer[name][:5])
        if name != "b":
            assert not any(torch.equal(random[name][0], random[name][j]) for j in range(1, 5))
            assert not torch.equal(random[name], other[name])
            assert random[name].std().item() == pytest.approx(1 / math.sqrt(K.shape[-1]), rel=0.1)


def test_state_in_and_out() -> None:
    trunk, other = twin("two_layer", 9, seed=1), twin("two_layer", 9, seed=2)
    assert set(trunk.state_dict()) == {"K1", "b", "K2"}
    assert trunk.state_dict()["K1"].shape == (9, 3, WIDTH)
    other.load_state_dict(trunk.gather_state_dict())
    y, _ = data()
    assert torch.equal(trunk(y), other(y))
    with pytest.raises(InputError, match=r"^state dict: weights of 8 layers given, 9 allowed$"):
        other.load_state_dict(twin("two_layer", 8).gather_state_dict())
    with pytest.raises(RuntimeError, match="size mismatch"):  # of a plain dict, which does not say
        other.load_state_dict(dict(twin("two_layer", 8).gather_state_dict()))
    with pytest.raises(RuntimeError, match="Missing key"):
        other.load_state_dict({"K1": trunk.state_dict()["K1"]})
    plain, before = trunk.as_sequential(), trunk(y).detach()
    with torch.no_grad():
        trunk.theta["K1"].zero_()
    assert error(plain(y).detach(), before) < 1e-14  # it is detached


def test_a_copy_has_weights_of_its_own() -> None:
    trunk, (y, c) = twin("dense", 9, *CONVERGED["two levels"]), data()
    other = copy.deepcopy(nn.Sequential(nn.Linear(WIDTH, WIDTH).double(), trunk))[1]
    assert torch.equal(trunk(y), other(y))
    with torch.no_grad():
        other.theta["K"].zero_()
    assert not torch.equal(trunk(y), other(y))
    gradients(other, y, c)
    assert all(p.grad is None for p in trunk.parameters())
    other.zero_grad()
    assert_gradients(other)


def test_moving_to_another_precision() -> None:
    trunk = twin("dense", 9).float()
    assert trunk(data(dtype=torch.float32)[0]).dtype == torch.float32
    assert trunk.double()(data()[0]).dtype == F64


def test_repr_says_what_it_is() -> None:
    text = repr(twin("antisymmetric", 9, MGRIT(coarsening=3)))
    for part in ("layers=9", "T=3.0", "Euler()", "coarsening=3", "micro_batches=1", "Antisymmetric"):
        assert part in text
