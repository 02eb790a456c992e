"""Activations: in place and from the tape the same numbers as the definition, with the derivative of autograd."""

import pytest
import torch
from reference import F64, normal, sigma
from torch import Tensor

from lpnet.activations import ACTIVATIONS, ETA, kernels

TINY = torch.finfo(F64).tiny
KINKS = torch.tensor([-ETA, -ETA / 2, -1e-9, -TINY, 0.0, TINY, 1e-9, ETA / 2, ETA, 2 * ETA, -30.0, 30.0], dtype=F64)

each = pytest.mark.parametrize("name", list(ACTIVATIONS))


def points(seed: int = 0) -> Tensor:
    """Of all sizes, and the places where a definition changes."""
    return torch.cat([KINKS, normal(100, seed=seed), 0.2 * normal(100, seed=seed + 1), 20 * normal(20, seed=seed + 2)])


@each
def test_plain_is_the_definition(name: str) -> None:
    u = points()
    torch.testing.assert_close(ACTIVATIONS[name].plain(u), sigma(name, u), rtol=1e-12, atol=1e-15)


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_apply_leaves_a_tape_that_gives_the_value_again(name: str, dtype: torch.dtype) -> None:
    one, u = ACTIVATIONS[name], points().to(dtype)
    tape = u.clone()
    a = one.apply(tape, tape)
    tolerance = {"rtol": 1e-5, "atol": 1e-7} if dtype == torch.float32 else {"rtol": 1e-13, "atol": 1e-16}
    torch.testing.assert_close(a, one.plain(u), **tolerance)
    assert torch.equal(one.value(tape), a)


@each
def test_the_tape_may_be_elsewhere(name: str) -> None:
    """In memory that is not contiguous; the same as in place, in the form of each device."""
    for one in (ACTIVATIONS[name], kernels(name, torch.device("cpu"))):
        u = points()
        tape, other = one.scale * u, torch.full((len(u), 2), torch.nan, dtype=F64)[:, 0]
        a, b = one.apply(tape, tape), one.apply(one.scale * u, other)
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-16)
        torch.testing.assert_close(tape, other, rtol=1e-14, atol=1e-16)
        torch.testing.assert_close(a, one.plain(u), rtol=1e-12, atol=1e-15)


@each
def test_pull_is_the_derivative_of_autograd(name: str) -> None:
    one = ACTIVATIONS[name]
    u, bar = points(), normal(len(points()), seed=9)
    leaf = u.clone().requires_grad_()
    # Autograd of smooth_relu's two-part form has no one answer at the ends of the quadratic; the definition has.
    value = sigma(name, leaf) if name == "smooth_relu" else one.plain(leaf)
    (expected,) = torch.autograd.grad(value, leaf, bar)
    tape = u.clone()
    one.apply(tape, tape)
    out = torch.full_like(u, torch.nan)
    found = one.pull(bar, tape, out)
    assert found is out
    torch.testing.assert_close(out, expected, rtol=1e-7 if name == "smooth_relu" else 1e-12, atol=1e-9)


@each
def test_plain_is_differentiable_where_it_is_smooth(name: str) -> None:
    u = points()
    u = u[(u.abs() > 1e-3) & ((u.abs() - ETA).abs() > 1e-3)].clone().requires_grad_()
    assert torch.autograd.gradcheck(ACTIVATIONS[name].plain, [u], eps=1e-6, atol=1e-7)


def test_smooth_relu_joins_smoothly() -> None:
    plain = ACTIVATIONS["smooth_relu"].plain
    for place, value, derivative in ((-ETA, 0.0, 0.0), (ETA, ETA, 1.0)):
        for side in (-1, 1):
            u = torch.tensor(place + side * 1e-9, dtype=F64, requires_grad=True)
            a = plain(u)
            a.backward()
            assert a.item() == pytest.approx(value, abs=2e-9)
            assert u.grad is not None
            assert u.grad.item() == pytest.approx(derivative, abs=1e-7)
