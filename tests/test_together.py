"""Intervals at once against the same intervals one by one, and how many go together."""

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from reference import ACTIVATIONS, F64, error, normal
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import lpnet
from lpnet import MGRIT, blocks, dynamics
from lpnet.blocks import Blocks, Bytes
from lpnet.propagator import Layers
from lpnet.slab import Comm
from lpnet.stack import Stack
from lpnet.steppers import AB3, RK4, Euler, Leapfrog, Stepper, Verlet
from lpnet.tape import Tape
from lpnet.together import Interval, pull_all, run_all

WIDTH, BATCH = 4, 5
CASES: dict[str, tuple[Stepper, Callable[..., nn.Module]]] = {
    "euler": (Euler(), dynamics.Dense),
    "euler, two matrices": (Euler(), lambda width, how="tanh": dynamics.TwoLayer(width, how, hidden=3)),
    "euler, a module": (Euler(), lambda width, how="tanh": nn.Sequential(nn.Linear(width, width), nn.Tanh())),
    "verlet": (Verlet(), dynamics.Hamiltonian),
    "leapfrog": (Leapfrog(), lambda width, how="tanh": dynamics.SecondOrder(width, how, hidden=3)),
    "rk4": (RK4(), dynamics.Dense),
    "ab3": (AB3(), dynamics.Antisymmetric),
}
EACH = [(name, "tanh") for name in CASES] + [(n, a) for n in ("euler", "leapfrog") for a in ACTIVATIONS[1:]]
ONE_BY_ONE = Bytes(0, 0)


class Found(NamedTuple):
    """Ends of the intervals, cotangents at their begins, a state within, and the gradients of all weights."""

    ends: list[Tensor]
    starts: list[Tensor]
    inside: Tensor
    grads: list[Tensor]


def made(name: str, activation: str, n: int) -> tuple[Layers, Stack, dict[str, Tensor]]:
    stepper, kind = CASES[name]
    module = kind(WIDTH, activation).to(F64)
    stack = Stack(module, stepper)
    theta = {k: 0.5 * normal(n, *p.shape, seed=i) for i, (k, p) in enumerate(module.named_parameters())}
    return Layers(stepper, stack.fields(theta), 0.3, 3, n), stack, theta


def solved(name: str, activation: str, intervals: list[Interval], adjoint: list[Interval], twice: int = 1) -> Found:
    """Layers 3, 4, …: a sweep of these intervals, and an adjoint one."""
    layers, stack, theta = made(name, activation, 13)
    xs = [layers.field.pack(normal(layers.stepper.memory, BATCH, WIDTH, seed=a)) for a, _ in intervals]
    zs = [layers.field.pack(normal(layers.stepper.memory, BATCH, WIDTH, seed=50 + a)) for a, _ in adjoint]
    tape = layers.tape(xs[0])
    ends = list(run_all(layers, intervals, xs, tape))
    inside = layers.state(8, tape)
    layers.reset_grads()
    for _ in range(twice):
        starts = list(pull_all(layers, adjoint, zs, tape, True))
    assert all(error(a, b) < 1e-13 for a, b in zip(pull_all(layers, adjoint, zs, tape, False), starts, strict=True))
    return Found(ends, starts, inside, stack.gradients(theta, dict(layers.fields)))


def assert_same(found: Found, expected: Found) -> None:
    for a, b in zip(found, expected, strict=True):
        for p, q in zip(a, b, strict=True):
            assert error(p, q) < 1e-12


FORWARD, BACK = [(15, 16), (11, 15), (7, 11), (3, 7)], [(3, 7), (7, 11), (11, 15), (15, 16)]


@pytest.mark.parametrize(("name", "activation"), EACH)
@pytest.mark.parametrize("twice", [1, 2])
def test_together_is_one_by_one(name: str, activation: str, twice: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """From right to left and from left to right, with a last interval that is shorter; gradients add up."""
    found = solved(name, activation, FORWARD, BACK, twice)
    monkeypatch.setattr(blocks, "ON_CPU", ONE_BY_ONE)
    assert_same(found, solved(name, activation, FORWARD, BACK, twice))


def test_an_adjoint_with_other_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    """They do not fit those of the sweep, and some are in two of its groups."""
    for back in ([(3, 5), (5, 7), (7, 9), (9, 11), (11, 13), (13, 15), (15, 16)], [(3, 7), (7, 11), (11, 16)]):
        found = solved("verlet", "tanh", FORWARD, back)
        with monkeypatch.context() as patch:
            patch.setattr(blocks, "ON_CPU", ONE_BY_ONE)
            assert_same(found, solved("verlet", "tanh", FORWARD, back))


def trunk(name: str, layers: int, options: MGRIT) -> lpnet.LayerParallel:
    stepper, kind = CASES[name]
    more = {"forward": options, "adjoint": options, "comm": Comm(), "dtype": F64}
    net = lpnet.LayerParallel(kind(WIDTH), layers, 2.0, stepper=stepper, **more)
    net.load_state_dict({n: 0.5 * normal(*p.shape, seed=i) for i, (n, p) in enumerate(net.theta.items())})
    return net


class Launches(TorchDispatchMode):
    """Counts operators that are more than views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aliases = [out.alias_info for out in func._schema.returns]
        self.count += not any(alias is not None and not alias.is_write for alias in aliases)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [name for name in CASES if name != "euler, a module"])
def test_launches_do_not_grow_with_the_number_of_intervals(name: str) -> None:
    def launches(count: int) -> int:
        layers = made(name, "tanh", 4 * count)[0]
        intervals = [(3 + 4 * k, 7 + 4 * k) for k in range(count)]
        xs = [layers.field.pack(normal(layers.stepper.memory, BATCH, WIDTH, seed=k)) for k in range(count)]
        tape = layers.tape(xs[0])
        layers.reset_grads()
        with Launches() as counted:
            list(run_all(layers, intervals, xs, tape))
            list(pull_all(layers, intervals, xs, tape, True))
        return counted.count

    assert launches(3) == launches(16)


@pytest.mark.parametrize("name", ["euler", "verlet"])
def test_reruns_have_the_same_bits(name: str) -> None:
    y, c = normal(BATCH, WIDTH), normal(BATCH, WIDTH, seed=1)

    def gradients() -> list[Tensor]:
        net = trunk(name, 19, MGRIT(coarsening=3, levels=3))
        (net(y) * c).sum().backward()
        return [p.grad for p in net.theta.values() if p.grad is not None]

    first = gradients()
    assert first
    assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))


def test_memory_of_one_group_at_a_time() -> None:
    layers = made("verlet", "tanh", 16)[0]
    first = weakref.ref(layers.many(Blocks(0, 2, 4, 4)))
    assert first() is layers.many(Blocks(0, 2, 4, 4))
    layers.many(Blocks(8, 2, 4, 4))
    assert first() is None


def groups(number: int, state: int, weights: int) -> list[int]:
    """How many of so many intervals of four layers go together where there is room for so many states and layers."""

    class Watched(Layers):
        ran: list[int]

        def run(self, a: int, b: int, x: Tensor, tape: Tape) -> Tensor:
            self.ran.append(1)
            return super().run(a, b, x, tape)

        def many(self, at: Any) -> Layers | None:
            self.ran.append(at.number)
            return super().many(at)

    layers, _, _ = made("euler", "tanh", 4 * number)
    watched = Watched(layers.stepper, layers.fields, 0.3, 0, 4 * number)
    watched.ran = []
    x = layers.field.pack(normal(1, BATCH, WIDTH))
    limit = Bytes(state * BATCH * WIDTH * 8, weights * WIDTH * (WIDTH + 1) * 8)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "ON_CPU", limit)
        list(run_all(watched, [(4 * k, 4 * k + 4) for k in range(number)], [x] * number, watched.tape(None)))
    return watched.ran


def test_as_many_go_together_as_there_is_room_for() -> None:
    assert groups(7, 100, 400) == [7]
    assert groups(7, 4, 400) == [3, 4]
    assert groups(7, 100, 8) == [1, 2, 2, 2]
    assert groups(7, 1, 400) == [1] * 7
    assert groups(1, 100, 400) == [1]
