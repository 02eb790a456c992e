"""Laws of what is remembered of examples: their order and batches, its place, the scale of the loss do not matter."""

import gc
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from gradients import gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import F64, error, normal, twin
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, InputError, WarmStates
from lpnet.memory import Solve
from lpnet.recall import KINDS, ExampleMemory
from lpnet.slab import Comm

N, M, WIDTH, EXAMPLES = 22, 4, 4, 12
TAU = MGRIT(coarsening=M, cycles=0, initial="tau")
Y, C = normal(EXAMPLES, WIDTH, seed=0), normal(EXAMPLES, WIDTH, seed=1)
LABELS = torch.arange(EXAMPLES) % 3


def made(dynamics: str = "dense", examples: int | None = EXAMPLES, **options: Any) -> lpnet.LayerParallel:
    """A trunk that remembers so many examples, or its last solve."""
    trunk = twin(dynamics, N, TAU, TAU)
    if examples is not None:
        trunk.memory = ExampleMemory(Comm(), examples, WarmStates(**({"kind": "examples"} | options)))
    return trunk


def visit(
    trunk: lpnet.LayerParallel, index: Tensor, labels: Tensor | None = None, scale: float = 1.0
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Output, input gradient and weight gradients for some of the examples."""
    trunk.zero_grad()
    if isinstance(trunk.memory, ExampleMemory):
        trunk.memory.batch(index, labels)
    out, bar = gradients(trunk, Y[index], scale * C[index])
    return out, bar, [p.grad.clone() for p in trunk.theta.values()]


def forward_only(trunk: lpnet.LayerParallel) -> None:
    assert isinstance(trunk.memory, ExampleMemory)
    trunk.memory.batch(ALL, None)
    with torch.no_grad():
        trunk(Y)


def residuals(trunk: lpnet.LayerParallel) -> tuple[float, float]:
    assert trunk.info.forward is not None
    assert trunk.info.adjoint is not None
    return trunk.info.forward.residuals[-1], trunk.info.adjoint.residuals[-1]


def drift(trunk: lpnet.LayerParallel, seed: int, eps: float = 1e-2) -> None:
    with torch.no_grad():
        for i, p in enumerate(trunk.theta.values()):
            p += eps * normal(*p.shape, seed=100 * seed + i)


ALL = torch.arange(EXAMPLES)
kinds = pytest.mark.parametrize("kind", ["dense", "hamiltonian"])


@kinds
def test_the_same_batch_is_the_last_solve(kind: str, tmp_path: Path) -> None:
    """In memory and in a file, bit for bit but for the scale of the adjoint, which is 1 for the same cotangent."""
    trunks = [made(kind, None), made(kind), made(kind, scratch=str(tmp_path))]
    for step in range(4):
        last, host, scratch = (visit(t, ALL) for t in trunks)
        assert torch.equal(last[0], host[0])
        assert error(host[1], last[1]) < 1e-6  # z_N is the same: c is fixed
        assert all(torch.equal(a, b) for a, b in zip([*host[:2], *host[2]], [*scratch[:2], *scratch[2]], strict=True))
        for trunk in trunks:
            drift(trunk, step, 1e-3)


@kinds
def test_the_same_batch_and_weights_are_the_same_gradients(kind: str) -> None:
    last, host = made(kind, None), made(kind)
    for _ in range(4):
        for a, b in zip(visit(last, ALL)[1:2], visit(host, ALL)[1:2], strict=True):
            assert error(b, a) < 1e-13


@settings(max_examples=15)
@given(st.permutations(range(EXAMPLES)), st.sampled_from(["dense", "hamiltonian"]))
def test_order_does_not_matter(order: list[int], kind: str) -> None:
    """A permuted batch gets permuted τ."""
    one, other, index = made(kind), made(kind), torch.tensor(order)
    for step in range(2):
        visit(one, ALL)
        visit(other, ALL if step else index)
        drift(one, step)
        drift(other, step)
    out, bar, grads = visit(one, ALL)
    permuted_out, permuted_bar, permuted_grads = visit(other, index)
    assert error(permuted_out, out[index]) < 1e-13
    assert error(permuted_bar, bar[index]) < 1e-12
    assert all(error(a, b) < 1e-12 for a, b in zip(permuted_grads, grads, strict=True))


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (5, 5, 2), (11, 1), (1,) * 12])
@pytest.mark.parametrize("where", ["host", "scratch"])
def test_mini_batches_are_the_whole_batch(sizes: tuple[int, ...], where: str, tmp_path: Path) -> None:
    """With fixed weights each epoch is a cycle, however the examples are dealt into batches of whatever sizes."""
    whole, parts = made(), made(scratch=str(tmp_path) if where == "scratch" else None)
    for epoch in range(4):
        order = torch.randperm(EXAMPLES, generator=torch.Generator().manual_seed(epoch))
        out, bar, grads = visit(whole, ALL)
        found, total = torch.empty_like(out), [torch.zeros_like(g) for g in grads]
        bars = torch.empty_like(bar)
        for index in order.split(list(sizes)):
            found[index], bars[index], g = visit(parts, index)
            total = [a + b for a, b in zip(total, g, strict=True)]
        assert error(found, out) < 1e-13
        assert error(bars, bar) < 1e-12
        assert all(error(a, b) < 1e-12 for a, b in zip(total, grads, strict=True))


def test_the_file_goes_with_the_memory(tmp_path: Path) -> None:
    trunk = made(scratch=str(tmp_path))
    visit(trunk, ALL)
    assert len(list(tmp_path.rglob("*.h5"))) == 2
    trunk.memory.clear()
    gc.collect()
    assert list(tmp_path.iterdir()) == []
    visit(trunk, ALL)
    del trunk
    gc.collect()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("scale", [1e-3, 0.5, 4.0])
def test_the_scale_of_the_loss_does_not_matter(scale: float) -> None:
    """τ of the adjoint is scaled with the cotangent (up to 10 times)."""
    found = []
    for s in (1.0, scale):
        trunk = made()
        visit(trunk, ALL)
        out = visit(trunk, ALL, scale=s)
        found.append((residuals(trunk)[1], out[1] / s))
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-10)
    assert error(found[1][1], found[0][1]) < 1e-12


def test_a_reversed_cotangent_starts_anew() -> None:
    """A scale below zero is none: the adjoint of examples whose cotangent has turned round starts without τ."""
    found = []
    for first in (visit, lambda trunk, index: forward_only(trunk)):
        trunk = made()
        first(trunk, ALL)
        found.append(visit(trunk, ALL, scale=-1.0)[1])
    assert torch.equal(*found)


@pytest.mark.parametrize("labelled", [False, True])
def test_unseen_examples_start_from_none_or_their_class(labelled: bool) -> None:
    kind = "auto" if labelled else "examples"
    trunk, fresh = made(kind=kind), made()
    labels = LABELS if labelled else None
    seen, unseen = ALL[:9], ALL[9:]
    for _ in range(3):
        visit(trunk, seen, labels[seen] if labels is not None else None)
    out = visit(trunk, unseen, labels[unseen] if labels is not None else None)[0]
    plain = visit(fresh, unseen)[0]
    assert torch.equal(out, plain) == (not labelled)


def test_the_mean_of_a_class_is_what_all_its_examples_start_from() -> None:
    """Equal examples in a class: the mean is the τ of each, so that a call is a cycle again, even for unseen ones."""
    y = normal(3, WIDTH, seed=5)[LABELS]
    trunk = made(kind="class")
    memory = trunk.memory
    assert isinstance(memory, ExampleMemory)
    with torch.no_grad():
        for index in (ALL[:6], ALL[9:]):
            memory.batch(index, LABELS[index])
            out = trunk(y[index])
        true = twin("dense", N, MGRIT(coarsening=M, cycles=1), None)(y[ALL[9:]])
        first = twin("dense", N, MGRIT(coarsening=M, cycles=0), None)(y[ALL[9:]])
    assert error(out, true) < 1e-13
    assert error(first, true) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_none_is_a_coarse_start(kind: str) -> None:
    trunk, coarse = made(kind=kind), made(kind="none")
    differ = False
    for _ in range(3):
        a, b = visit(trunk, ALL, LABELS)[0], visit(coarse, ALL, LABELS)[0]
        differ |= not torch.equal(a, b)
        assert torch.equal(b, twin("dense", N, MGRIT(coarsening=M, cycles=0), None)(Y))
    assert differ == (kind != "none")


# ---- which start serves best -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [-1.0, 1.0])
def test_what_serves_worse_than_nothing_is_not_used(factor: float) -> None:
    """τ that turns round at each visit is a wrong start: measured ratios are above 1, and none of them is used."""
    memory = ExampleMemory(Comm(), EXAMPLES, WarmStates(examples=EXAMPLES))
    x = normal(1, WIDTH, EXAMPLES)
    solve = Solve("forward", TAU, x, 2)
    tau = [normal(1, WIDTH, EXAMPLES, seed=k) for k in range(3)]
    used = []
    for step in range(6):
        memory.batch(ALL, LABELS)
        used.append(memory.load(solve) is not None)
        memory.save(solve, [factor**step * t for t in tau])
        ratios = memory.kept["forward"].ratio
        assert all(0 <= r < math.inf for r in ratios.values())
    assert used == ([False] + [True] * 5 if factor > 0 else [False, True] + [False] * 4)


@settings(max_examples=30)
@given(st.lists(st.floats(-2, 2), min_size=2, max_size=8))
def test_only_candidates_below_one_are_used(factors: list[float]) -> None:
    """Whatever τ does, a start that is taken has a measured ratio below 1 (or none yet), and the smallest."""
    memory = ExampleMemory(Comm(), EXAMPLES, WarmStates(examples=EXAMPLES))
    solve = Solve("forward", TAU, normal(1, WIDTH, EXAMPLES), 2)
    for step, factor in enumerate(factors):
        index = ALL[step % 2 :: 2] if step < 2 else ALL[:6]
        solve = Solve("forward", TAU, normal(1, WIDTH, 6), 2)
        memory.batch(index, LABELS[index])
        kept = memory.kept.get("forward")
        before = dict(kept.ratio) if kept is not None else {}
        start = memory.load(solve)
        if kept is not None:
            least = min(before.get(name, 0.0) for name in kept.candidates)
            assert (start is None) == (least >= 1)
        memory.save(solve, [factor * normal(1, WIDTH, 6, seed=k) for k in range(3)])


# ---- limits and failures ---------------------------------------------------------------------------------------------


def test_more_than_the_limit_is_refused(tmp_path: Path) -> None:
    """By one line; what is allowed is enough, and a file has no limit."""
    trunk = made(limit_mib=1e-3)
    with pytest.raises(InputError, match="limit_mib") as caught:
        visit(trunk, ALL)
    assert "\n" not in str(caught.value)
    visit(made(limit_mib=1e-3, scratch=str(tmp_path)), ALL)
    visit(made(kind="class", limit_mib=1e-3), ALL, LABELS)
    points = -(-N // M)
    needed = 2 * (points + 1) * WIDTH * 8 * EXAMPLES / 2**20
    visit(made(limit_mib=1.001 * needed), ALL)
    with pytest.raises(InputError, match="limit_mib"):
        visit(made(limit_mib=0.999 * needed), ALL)


def test_a_folder_that_cannot_be_written_to() -> None:
    with pytest.raises(InputError, match="scratch: '/nonexistent' given"):
        visit(made(scratch="/nonexistent"), ALL)


@pytest.mark.parametrize(("key", "value"), [
    ("kind", "all"), ("kind", None), ("examples", 0), ("examples", True), ("examples", 2.0), ("limit_mib", 0),
    ("limit_mib", math.nan), ("limit_mib", "x"), ("limit_mib", True),
])  # fmt: skip
def test_bad_options(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"^{key}: .* given, .* allowed$"):
        WarmStates(**{key: value})


def test_solves_that_are_not_finite_forget() -> None:
    trunk, fresh = made(), made()
    visit(trunk, ALL)
    memory = trunk.memory
    assert isinstance(memory, ExampleMemory)
    memory.batch(ALL[:3], None)
    trunk(torch.full((3, WIDTH), math.nan, dtype=F64))
    assert torch.equal(visit(trunk, ALL)[0], visit(fresh, ALL)[0])


@pytest.mark.parametrize("kind", ["examples", "class", "auto"])
def test_another_shape_or_type_forgets(kind: Any, tmp_path: Path) -> None:
    """Longer examples, other features of as many numbers, a net in float32: as if there had been none before."""
    y = normal(EXAMPLES, 2, 6, WIDTH, seed=3)
    shapes = (y[:, :, :3], y[:, :, :5], y.reshape(EXAMPLES, 6, 2, WIDTH), y)
    one = nn.Sequential(nn.Linear(WIDTH, WIDTH, dtype=F64), nn.Tanh())
    trunk, fresh = (lpnet.LayerParallel(one, N, 1.0, None, TAU, TAU, 0, Comm(), dtype=F64) for _ in range(2))
    trunk.memory, fresh.memory = (
        ExampleMemory(Comm(), EXAMPLES, WarmStates(kind, scratch=scratch)) for scratch in (str(tmp_path), None)
    )

    def step(on: lpnet.LayerParallel, y: Tensor) -> tuple[Tensor, ...]:
        assert isinstance(on.memory, ExampleMemory)
        on.memory.batch(ALL, LABELS)
        return gradients(on, y, torch.ones_like(y))[:2]

    for i, batch in enumerate([*shapes, y.float()]):
        if i == len(shapes):
            trunk.float(), fresh.float()
        fresh.memory.clear()
        for _ in range(3):
            assert all(torch.equal(a, b) for a, b in zip(step(trunk, batch), step(fresh, batch), strict=True))


def test_loading_weights_forgets() -> None:
    trunk = made()
    first = visit(trunk, ALL)[0]
    assert not torch.equal(visit(trunk, ALL)[0], first)
    trunk.load_state_dict(trunk.state_dict())
    assert torch.equal(visit(trunk, ALL)[0], first)
