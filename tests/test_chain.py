"""The exact chain on ranks that are threads: exact gradients, and what each rank does when."""

from typing import Any, NamedTuple

import pytest
import torch
from reference import normal
from torch import Tensor
from virtual_ranks import BATCH, WIDTH

from lpnet import Serial
from lpnet.crew import Crew, ThreadComm
from lpnet.dynamics import Dense, Hamiltonian
from lpnet.engine import Engine
from lpnet.how import How
from lpnet.slab import Comm, Slab
from lpnet.stack import Stack
from lpnet.steppers import Euler, Verlet

N = 12
MODULES = {"euler": (Euler(), Dense), "verlet": (Verlet(), Hamiltonian)}


class Found(NamedTuple):
    """Of one rank: its layers' gradients, the input's, what it did in the adjoint, and evaluations of layers."""

    grads: dict[str, Tensor]
    bar: Tensor
    events: list[str]
    layers: int
    n: int


class Telling(ThreadComm):
    """Notes what is posted, waited for and sent."""

    events: list[str]

    def send(self, x: Tensor, to: int) -> None:
        self.events.append("send")
        super().send(x, to)

    def post(self, like: Tensor, source: int) -> Any:
        self.events.append("post")
        return super().post(like, source)


def adjoint(name: str, ranks: int, Q: int, store: Any = "all") -> list[Found]:
    """Of all ranks."""
    stepper, module = MODULES[name]
    stack, crew = Stack(module(WIDTH), stepper), Crew(ranks)
    shapes = {name: p.shape for name, p in module(WIDTH).named_parameters()}
    theta = {name: 0.5 * normal(N, *shape, seed=i) for i, (name, shape) in enumerate(shapes.items())}
    x, z = (normal(stepper.memory, WIDTH, BATCH, seed=seed) for seed in (7, 8))

    def rank(comm: Comm) -> Found:
        telling = Telling(crew, comm.rank)
        telling.events = []
        engine = Engine(stepper, 2.0 / N, Slab(N, telling), How(store))
        local = {name: value[engine.slab.lo : engine.slab.hi] for name, value in theta.items()}
        prepared = engine.prepare(local, lambda weights, _: stack.fields(weights))
        _, solution, _ = engine.forward(prepared, x, Serial(Q), True)
        telling.events.clear()
        pull = prepared.layers.pull

        def told(a: int, b: int, z: Tensor, tape: Any, gradients: bool) -> Tensor:
            telling.events.append("graded" if gradients else "plain")
            return pull(a, b, z, tape, gradients)

        prepared.layers.pull = told  # type: ignore[method-assign]
        bar, info, _ = engine.adjoint(prepared, solution, z, Serial(Q))
        grads = stack.gradients(local, dict(prepared.layers.fields))
        return Found(dict(zip(local, grads, strict=True)), bar, telling.events, info.layers, prepared.layers.n)

    return crew.run(rank)


@pytest.mark.parametrize("name", list(MODULES))
@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize("Q", [1, 2, 4])
def test_gradients_are_those_of_one_rank(name: str, ranks: int, Q: int) -> None:
    alone, *_ = adjoint(name, 1, Q)
    found = adjoint(name, ranks, Q)
    for key, expected in alone.grads.items():
        whole = torch.cat([one.grads[key] for one in found])
        torch.testing.assert_close(whole, expected, rtol=1e-13, atol=1e-14)
    for one in found:
        torch.testing.assert_close(one.bar, alone.bar, rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("Q", [1, 3])
def test_the_same_bits_again(Q: int) -> None:
    first, second = adjoint("euler", 3, Q), adjoint("euler", 3, Q)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.bar, other.bar)
        assert all(torch.equal(one.grads[key], other.grads[key]) for key in one.grads)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("Q", [1, 2, 4])
def test_gradients_wait_where_later_ranks_would(ranks: int, Q: int) -> None:
    """The first P − 1 − p parts of the p-th rank are sent on without; every receive is posted before any work."""
    for p, one in enumerate(reversed(adjoint("euler", ranks, Q))):
        late = min(Q, ranks - 1 - p)
        sends = ["send"] if p + 1 < ranks else []
        expected = (["plain", *sends] * late) + (["graded", *sends] * (Q - late)) + ["graded"] * late
        assert one.events == ["post"] * (Q if p else 0) + expected
        assert one.layers == one.n * (Q + late)


@pytest.mark.parametrize("store", ["cpoints", "reverse"])
def test_a_pull_can_be_repeated_whatever_is_stored(store: str) -> None:
    """And what is run again for it is counted."""
    found, expected = adjoint("verlet", 3, 2, store), adjoint("verlet", 3, 2)
    for one, other in zip(found, expected, strict=True):
        for key, value in other.grads.items():
            torch.testing.assert_close(one.grads[key], value, rtol=1e-11, atol=1e-13)
        assert one.layers > other.layers
