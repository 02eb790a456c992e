"""Coarse steps at once against the same steps one by one."""

from typing import Any

import pytest
import torch
from reference import F64, error, normal
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lpnet import MGRIT, blocks, coarse_steps, dynamics
from lpnet.blocks import Bytes
from lpnet.coarse_steps import CoarseSteps
from lpnet.stack import Stack
from lpnet.steppers import AB3, RK4, Euler, Leapfrog, Stepper, Verlet

WIDTH, BATCH = 4, 5
CASES: dict[str, tuple[Stepper, Any, MGRIT]] = {
    "euler": (Euler(), lambda: dynamics.Dense(WIDTH), MGRIT()),
    "euler, three passes": (Euler(), lambda: dynamics.Dense(WIDTH), MGRIT(passes=3)),
    "euler, two samples": (Euler(), lambda: dynamics.TwoLayer(WIDTH, hidden=3), MGRIT(samples=2)),
    "euler, a module": (Euler(), lambda: nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()), MGRIT()),
    "verlet": (Verlet(), lambda: dynamics.Hamiltonian(WIDTH), MGRIT(samples=2)),
    "leapfrog": (Leapfrog(), lambda: dynamics.SecondOrder(WIDTH, hidden=3), MGRIT()),
    "rk4": (RK4(), lambda: dynamics.Dense(WIDTH, "gelu"), MGRIT()),
    "ab3": (AB3(), lambda: dynamics.Antisymmetric(WIDTH), MGRIT()),
}
FIRST = 2
"""Index of the first step, of those that there are."""


def made(name: str, count: int) -> tuple[CoarseSteps, Any]:
    """Steps over four layers each, the last of them over three, and a change of their weights."""
    stepper, module, options = CASES[name]
    lengths = [(4,) if options.samples == 1 else (2, 2)] * (count - 1) + [(3,) if options.samples == 1 else (2, 1)]
    programs = {cut: stepper.coarse(cut, 0.1, options) for cut in set(lengths)}
    rows = [len(stepper.rows(cut, options)) for cut in lengths]
    stack = Stack(module().to(F64), stepper)
    named = list(stack.module.named_parameters())
    theta, delta = ({n: normal(sum(rows), *p.shape, seed=i + s) for i, (n, p) in enumerate(named)} for s in (0, 50))
    steps = CoarseSteps(stepper.memory, stack.fields(theta), [programs[cut] for cut in lengths], rows, FIRST)
    return steps, stack.directions(theta, delta)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any two go together."""
    monkeypatch.setattr(coarse_steps, "FEW", 2)


def states(name: str, ks: list[int], seed: int) -> list[torch.Tensor]:
    shape = (BATCH, WIDTH) if "module" in name else (WIDTH, BATCH)
    return [normal(CASES[name][0].memory, *shape, seed=seed + k) for k in ks]


@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("ks", [[2, 3, 4, 5, 6, 7], [7, 6, 5, 4, 3], [2, 4, 6], [6, 4, 2], [5], [2, 3, 5, 6]])
def test_at_once_is_one_by_one(name: str, ks: list[int]) -> None:
    """Next to each other or not, in either order, with a last one that is shorter."""
    (steps, delta), (alone, _) = made(name, 6), made(name, 6)
    xs, zs = states(name, ks, 0), states(name, ks, 100)
    for k, x, found in zip(ks, xs, steps.step_all(ks, xs), strict=True):
        assert error(found, alone.step(k, x)) < 1e-13
        alone.linearize(k, x)
    steps.linearize_all(ks, xs)
    for k, z, found in zip(ks, zs, steps.pull_all(ks, zs), strict=True):
        expected = alone.pull(k, z)
        assert error(found, expected) < 1e-13
        assert error(steps.pull(k, z), expected) < 1e-13
        assert error(steps.tangent(k, z, delta), alone.tangent(k, z, delta)) < 1e-13


@pytest.mark.parametrize("room", [0, 2, 3])
def test_only_as_many_as_there_is_room_for(room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "ON_CPU", Bytes(room * BATCH * WIDTH * 8, 1 << 22))
    test_at_once_is_one_by_one("verlet", [2, 3, 4, 5, 6, 7])


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += "mm" in str(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["euler", "verlet", "rk4", "ab3"])
def test_products_do_not_grow_with_the_number_of_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def products(count: int) -> int:
        steps, _ = made(name, count + 1)
        ks = list(range(FIRST, FIRST + count))
        with Products() as counted:
            steps.step_all(ks, states(name, ks, 0))
            steps.linearize_all(ks, states(name, ks, 0))
            steps.pull_all(ks, states(name, ks, 100))
        return counted.count

    assert products(2) == products(9) > 0
    monkeypatch.undo()
    assert products(coarse_steps.FEW - 1) > products(coarse_steps.FEW)  # a few go one by one
