"""Stages on stacked layers against autograd on the module's own forward, for all dynamics and activations."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from reference import ACTIVATIONS, ALL_KINDS, F64, KINDS, dynamics, error, normal, stepper
from torch import Tensor, nn
from torch.func import functional_call

from lpnet.dynamics import REGISTRY
from lpnet.fields import Field, Slot
from lpnet.stack import Stack

N, WIDTH, BATCH, W = 3, 4, 5, 0.37


class Plain(nn.Module):
    """The same dynamics as a module that the package knows nothing of."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, y: Tensor) -> Tensor:
        return self.inner(y)


class Kicked(Plain):
    """The same for dynamics of second order,"""

    def kick(self, y: Tensor) -> Tensor:
        return self.inner.kick(y)


class Partitioned(Kicked):
    """and for partitioned ones."""

    def drift(self, z: Tensor) -> Tensor:
        return self.inner.drift(z)


class Case(NamedTuple):
    """A field, the module it comes from, and its stacked weights by the names of that module."""

    field: Field
    fields: dict[str, Field]
    stack: Stack
    module: nn.Module
    theta: dict[str, Tensor]
    term: str


def cases() -> Iterator[Any]:
    for kind in ALL_KINDS:
        for activation in ACTIVATIONS:
            for term in stepper(kind).terms:
                for fast in (True, False):
                    yield pytest.param(kind, activation, term, fast, id=f"{kind}-{activation}-{term}-{fast}")


def made(kind: str, activation: str, term: str, fast: bool) -> Case:
    module = dynamics(kind, WIDTH, activation, gamma=0.2).to(F64)
    if not fast:
        module = {"hamiltonian": Partitioned, "second_order": Kicked}.get(kind, Plain)(module)
    stack = Stack(module, stepper(kind))
    theta = {n: normal(N, *p.shape, seed=i) for i, (n, p) in enumerate(module.named_parameters())}
    fields = stack.fields(theta)
    return Case(fields[term], fields, stack, module, theta, term)


def autograd(case: Case, j: int, y: Tensor, bar: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """f_j(y), (∂f_j/∂y)ᵀ bar and (∂f_j/∂θ)ᵀ bar by the module's own forward."""
    y = y.clone().requires_grad_()
    w = {n: t[j].clone().requires_grad_() for n, t in case.theta.items()}

    class Call(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.m = case.module

        def forward(self, y: Tensor) -> Tensor:
            return self.m(y) if case.term == "f" else getattr(self.m, case.term)(y)

    k = functional_call(Call(), {f"m.{n}": t for n, t in w.items()}, (y,))
    bars = torch.autograd.grad(k, [y, *w.values()], bar)
    return k.detach(), bars[0], dict(zip(w, bars[1:], strict=True))


def packed(field: Field, rows: Tensor) -> Tensor:
    return field.pack(rows[None])[0]


def stage(case: Case, j: int, seed: int = 0) -> tuple[list[Slot], list[Any], Tensor, Tensor]:
    """Slots after target += W f_j(source), the tape, and what was in them before, examples in rows."""
    source, target = normal(BATCH, WIDTH, seed=seed), normal(BATCH, WIDTH, seed=seed + 1)
    x = case.field.pack(torch.stack([source, target]))
    slots = case.field.slots(2, x)
    for slot, value in zip(slots, x, strict=True):
        slot.view.copy_(value)
    tape = case.field.tape(N, x)
    case.field.add(slots[0], slots[1], W, tape, j, j)
    return slots, tape, source, target


each = pytest.mark.parametrize(("kind", "activation", "term", "fast"), list(cases()))


def test_all_dynamics_are_here() -> None:
    assert set(ALL_KINDS) == set(REGISTRY)


@each
def test_add_and_remove(kind: str, activation: str, term: str, fast: bool) -> None:
    case = made(kind, activation, term, fast)
    for j in range(N):
        slots, tape, source, target = stage(case, j, 10 * j)
        k, _, _ = autograd(case, j, source, source)
        torch.testing.assert_close(slots[1].view, packed(case.field, target + W * k), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(slots[0].view, packed(case.field, source), rtol=0, atol=0)
        slots[0].view.fill_(torch.nan)  # undone from the tape alone
        case.field.remove(slots[0], slots[1], W, tape, j, j)
        torch.testing.assert_close(slots[1].view, packed(case.field, target), rtol=1e-13, atol=1e-14)


@each
def test_pull(kind: str, activation: str, term: str, fast: bool) -> None:
    case = made(kind, activation, term, fast)
    for j in range(N):
        slots, tape, source, _ = stage(case, j, 10 * j)
        bar, before = normal(BATCH, WIDTH, seed=50 + j), normal(BATCH, WIDTH, seed=60 + j)
        _, y_bar, _ = autograd(case, j, source, bar)
        source_bar = packed(case.field, before).clone()
        case.field.pull(slots[0], packed(case.field, bar), source_bar, W, tape, j, j)
        assert error(source_bar, packed(case.field, before + W * y_bar)) < 1e-12


@each
def test_pull_grad_collects_the_gradients_of_all_layers(kind: str, activation: str, term: str, fast: bool) -> None:
    """Twice for the same layer adds up; once reset, what was there is forgotten."""
    case = made(kind, activation, term, fast)
    for _ in range(2):
        expected = {n: torch.zeros_like(t) for n, t in case.theta.items()}
        for field in case.fields.values():
            field.reset_grads()
        for j, seed in ((0, 0), (2, 20), (0, 40)):  # layer 1 is never met
            slots, tape, source, _ = stage(case, j, seed)
            bar, before = normal(BATCH, WIDTH, seed=50 + seed), normal(BATCH, WIDTH, seed=60 + seed)
            _, y_bar, grads = autograd(case, j, source, bar)
            source_bar = packed(case.field, before).clone()
            case.field.pull_grad(slots[0], packed(case.field, bar), source_bar, W, tape, j, j)
            assert error(source_bar, packed(case.field, before + W * y_bar)) < 1e-12
            for name, grad in grads.items():
                expected[name][j] += W * grad
        found = dict(zip(case.theta, case.stack.gradients(case.theta, case.fields), strict=True))
        for name in expected:
            assert found[name].shape == expected[name].shape
            assert error(found[name], expected[name]) < 1e-12, name


@each
def test_linearized_stages_can_be_pulled_again(kind: str, activation: str, term: str, fast: bool) -> None:
    case = made(kind, activation, term, fast)
    source, begin = normal(BATCH, WIDTH), normal(BATCH, WIDTH, seed=1)
    y, start = (packed(case.field, value) for value in (source, begin))
    out, tape = torch.empty_like(start), case.field.tape(1, y[None])
    k, _, _ = autograd(case, 1, source, source)
    for plus in (case.field.plus, case.field.plus_linear):
        plus(y, start, out, W, tape, 1, 0)
        assert error(out, packed(case.field, begin + W * k)) < 1e-13
        plus(y, out, out, W, tape, 1, 0)
        assert error(out, packed(case.field, begin + 2 * W * k)) < 1e-13
    slots = case.field.slots(1, y[None])
    slots[0].view.fill_(torch.nan)  # the tape is enough
    for seed in (2, 3):
        bar = normal(BATCH, WIDTH, seed=seed)
        source_bar = torch.zeros_like(y)
        case.field.pull(slots[0], packed(case.field, bar), source_bar, W, tape, 1, 0)
        assert error(source_bar, packed(case.field, W * autograd(case, 1, source, bar)[1])) < 1e-12


@each
@pytest.mark.parametrize("shared", [False, True], ids=["own", "shared"])
def test_batch_evaluates_parts_at_once(kind: str, activation: str, term: str, fast: bool, shared: bool) -> None:
    """With a state for each part, or one for all of them."""
    case = made(kind, activation, term, fast)
    parts = range(1, N)
    rows = normal(1 if shared else len(parts), BATCH, WIDTH)
    bars = normal(len(parts), BATCH, WIDTH, seed=1)
    k, kept = case.field.batch(parts, case.field.pack(rows))
    y_bar = case.field.batch_pull(parts, case.field.pack(bars), kept)
    for i, j in enumerate(parts):
        expected, expected_bar, _ = autograd(case, j, rows[0 if shared else i], bars[i])
        assert error(k[i], packed(case.field, expected)) < 1e-12
        assert error(y_bar[i], packed(case.field, expected_bar)) < 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fast", [True, False])
def test_pack_and_unpack(kind: str, fast: bool) -> None:
    field = made(kind, "tanh", stepper(kind).terms[0], fast).field
    x = normal(2, BATCH, WIDTH)
    there = field.pack(x)
    assert torch.equal(field.unpack(there), x)
    assert torch.equal(field.unpack(there.narrow(field.batch_dim(there), 1, 2)), x[:, 1:3])
