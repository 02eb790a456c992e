"""Memory of a step is used again by the next one, and never while anyone holds it."""

import gc
import weakref
from typing import Any

import pytest
import torch
from reference import F64, normal
from torch import Tensor

import lpnet
from lpnet.gradient import solved_of
from lpnet.how import Store
from lpnet.options import SolverOptions
from lpnet.pool import LARGE, WHILE, Pool


class Holder:
    """Someone who holds a loan."""


def test_a_loan_ends_with_its_holder() -> None:
    pool, one, two = Pool(), Holder(), Holder()
    first = pool.take("kind", lambda: [0], one)
    second = pool.take("kind", lambda: [1], two)
    assert second is not first
    del one
    assert pool.take("kind", lambda: [2], two) is first
    assert pool.take("other", lambda: [3], two) == [3]


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_memory_comes_back_when_no_tensor_uses_it(dtype: torch.dtype) -> None:
    pool, shape = Pool(), (3, LARGE // 8)
    made = pool.empty(shape, torch.empty(0, dtype=dtype))
    view, place = made.fill_(1.0)[1], made.data_ptr()
    assert made.shape == shape
    assert made.dtype == dtype
    assert place % 64 == 0
    del made
    assert pool.empty(shape, view).fill_(2.0).data_ptr() != place
    assert bool((view == 1.0).all())
    like = torch.empty(0, dtype=dtype)
    del view
    assert pool.empty(shape, like).data_ptr() == place


def test_what_nobody_asks_for_any_more_is_given_up() -> None:
    pool, like = Pool(), torch.empty(0)
    for n in (1, 2):
        pool.empty((n, LARGE), like)
    assert sum(len(free) for free in pool._free.values()) == 2
    for _ in range(2 * WHILE):
        pool.empty((2, LARGE), like)
    assert sum(len(free) for free in pool._free.values()) == 1


def test_entries_are_made_once_and_leave_the_loan_alone() -> None:
    pool, shape, like = Pool(), (2, LARGE // 4), torch.empty(0)
    made, entries = pool.stacked(shape, like)
    for entry, value in zip(entries, (1.0, 2.0), strict=True):
        entry.fill_(value)
    assert made.mean(1).tolist() == [1.0, 2.0]
    place = made.data_ptr()
    del made  # its entries are still there
    again, same = pool.stacked(shape, like)
    assert (again.data_ptr(), same) == (place, entries)
    assert pool.stacked(shape, like)[0].data_ptr() != place


def kept(pool: Pool, stack: Tensor) -> tuple[Tensor, ...]:
    return pool.lasting("views", stack, lambda t: t.unbind())


def test_views_last_as_long_as_the_memory_is_the_same() -> None:
    pool, stack = Pool(), normal(3, 2)
    kept(pool, stack)
    views = kept(pool, stack)
    assert kept(pool, stack.detach()) is views
    stack.add_(1.0)
    assert torch.equal(torch.stack(kept(pool, stack)), stack)
    others = (stack.clone(), stack.view(torch.int64), stack.t(), stack[1:])
    for other in others:
        kept(pool, stack)
        kept(pool, stack)
        assert all(map(torch.equal, kept(pool, other), other.unbind()))


@pytest.mark.parametrize("moved", [False, True], ids=["new storage", "resized storage"])
def test_views_of_memory_that_is_gone_are_not_used(moved: bool) -> None:
    pool, p = Pool(), torch.nn.Parameter(normal(3, 2))
    for _ in range(2):
        kept(pool, p)
    value = normal(3, 2, seed=1)
    if moved:
        p.untyped_storage().resize_(0)
        p.untyped_storage().resize_(value.nbytes)
        p.data.copy_(value)
    else:
        p.data = value.clone()
    assert torch.equal(torch.stack(kept(pool, p)), value)


def test_memory_that_is_met_once_is_not_held() -> None:
    pool = Pool()
    for seed in range(3):
        copy = normal(3, 2, seed=seed)
        storage = weakref.ref(copy.untyped_storage())
        kept(pool, copy)
        del copy
        assert storage() is None


def test_views_that_nobody_asks_for_any_more_are_given_up() -> None:
    pool, p = Pool(), normal(3, 2)
    storage = weakref.ref(p.untyped_storage())
    for _ in range(2):
        kept(pool, p)
    del p
    for _ in range(2 * WHILE):
        pool.take("kind", list, Holder())
    assert storage() is None


def trunk(
    width: int, batch: int, solver: SolverOptions, store: Store = "all", layers: int = 16
) -> tuple[lpnet.LayerParallel, Tensor]:
    made = lpnet.LayerParallel(
        lpnet.dynamics.Dense(width), layers, 1.0, forward=solver, adjoint=solver, init="random", store=store
    )
    return made, normal(batch, width).float()


@pytest.mark.parametrize("solver", [lpnet.Serial(), lpnet.MGRIT(coarsening=4)], ids=["serial", "mgrit"])
@pytest.mark.parametrize(("width", "batch"), [(4, 70), (20, 30)], ids=["packed", "direct"])
@pytest.mark.parametrize("store", ["all", "cpoints"])
@pytest.mark.parametrize("parts", [1, 2], ids=["one size", "two sizes"])
def test_a_step_makes_no_tape_and_no_weights_anew(
    width: int, batch: int, solver: SolverOptions, store: Store, parts: int
) -> None:
    """The loss of the step before is still held, as in any training loop, when the next forward pass begins."""
    made, y = trunk(width, batch, solver, store, layers=23)
    asked: list[str] = []
    fresh = Pool._fresh
    for step in range(3):
        asked.clear()
        for part in range(parts):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(Pool, "_fresh", lambda pool, make: asked.append("") or fresh(pool, make))
                loss = made(y[part:]).square().sum()
                loss.backward()
        assert bool(asked) == (step == 0)


def test_two_forward_passes_before_one_backward_pass() -> None:
    made, y = trunk(4, 70, lpnet.Serial())
    expected = []
    for scale in (1.0, -2.0):
        made.zero_grad()
        made(scale * y).square().sum().backward()
        expected.append([p.grad.clone() for p in made.parameters()])
    losses = [made(scale * y).square().sum() for scale in (1.0, -2.0)]
    for loss, grads in zip(losses, expected, strict=True):
        made.zero_grad()
        loss.backward(retain_graph=True)
        again = [p.grad.clone() for p in made.parameters()]
        made.zero_grad()
        loss.backward()
        for one, other, p in zip(grads, again, made.parameters(), strict=True):
            assert torch.equal(one, other)
            assert torch.equal(other, p.grad)


def test_gradients_keep_their_values_when_the_next_step_is_done() -> None:
    made, y = trunk(160, 8, lpnet.Serial())  # weights large enough for lent memory
    made(y).square().sum().backward()
    held = [p.grad for p in made.parameters()]
    copies = [g.clone() for g in held]
    made.zero_grad()
    made(3 * y).square().sum().backward()
    gc.collect()
    for one, copy, p in zip(held, copies, made.parameters(), strict=True):
        assert torch.equal(one, copy)
        assert not torch.equal(one, p.grad)


def test_the_tape_is_gone_after_the_backward_pass() -> None:
    made, y = trunk(4, 70, lpnet.Serial())
    out = made(y)
    tape = weakref.ref(solved_of(out).solution.tapes[0])
    loss = out.square().sum()
    loss.backward(retain_graph=True)
    assert tape() is not None
    loss.backward()
    assert tape() is None
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("pack", [lambda t: t.clone(), lambda t: t.numpy()], ids=["copied", "offloaded"])
def test_hooks_may_replace_what_is_saved(pack: Any) -> None:
    made, y = trunk(4, 70, lpnet.MGRIT(coarsening=4))
    made(y).square().sum().backward()
    expected = [p.grad for p in made.parameters()]
    made.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(lambda t: pack(t.detach()), torch.as_tensor):
        loss = made(y).square().sum()
    loss.backward()
    for p, grad in zip(made.parameters(), expected, strict=True):
        assert torch.equal(p.grad, grad)
