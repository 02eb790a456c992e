"""Laws of prolongation (linear in time, the same flow) and of the cascade."""

from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import pytest
import torch
from reference import F64, error, normal, slope, trunk
from small_training import examples, network
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, InputError, Serial, regularizers
from lpnet.controls import Controls
from lpnet.crew import Crew
from lpnet.hierarchy import bounds
from lpnet.multilevel import Cascade, coarser, halved, prolongate, prolongate_net, prolongate_state
from lpnet.multilevel.prolong import interpolated
from lpnet.oneshot import Descent
from lpnet.slab import Comm, Slab


def middles(layers: int, T: float = 1.0) -> Tensor:
    return (torch.arange(layers, dtype=F64) + 0.5) * T / layers


def of_time(made: lpnet.LayerParallel, how: Any) -> lpnet.LayerParallel:
    """The trunk with weights that are functions of time: how(t, seed) for t of shape (N, 1, …)."""
    with torch.no_grad():
        for i, p in enumerate(made.theta.values()):
            t = middles(made.layers, made.T).reshape(-1, *[1] * (p.ndim - 1))
            p.copy_(how(t, normal(2, *p.shape[1:], seed=i)))
    return made


def line(t: Tensor, c: Tensor) -> Tensor:
    return c[0] + t * c[1]


def wave(t: Tensor, c: Tensor) -> Tensor:
    return 0.5 * (c[0] * torch.cos(2 * t) + c[1] * torch.sin(3 * t))


@pytest.mark.parametrize(("coarse", "fine"), [(8, 16), (5, 7), (1, 2), (6, 6), (3, 20)])
def test_prolongation_is_linear_in_time_and_constant_beyond_the_ends(coarse: int, fine: int) -> None:
    old = of_time(trunk("antisymmetric", coarse, comm=Comm()), line)
    new, wanted = prolongate(old, fine), of_time(trunk("antisymmetric", fine, comm=Comm()), line)
    t, (first, last) = middles(fine, old.T), middles(coarse, old.T)[[0, -1]]
    for name, p in new.theta.items():
        inside = (t >= first) & (t <= last)
        torch.testing.assert_close(p[inside], wanted.theta[name][inside], rtol=1e-13, atol=1e-14)
        assert bool((p[t < first] == old.theta[name][0]).all())
        assert bool((p[t > last] == old.theta[name][-1]).all())


def test_a_layer_is_the_mean_of_its_halves_where_weights_are_linear() -> None:
    old = of_time(trunk("dense", 6, comm=Comm()), line)
    for name, p in prolongate(old, 12).theta.items():
        means = 0.5 * (p[0::2] + p[1::2])
        torch.testing.assert_close(means[1:-1], old.theta[name][1:-1], rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize("kind", ["dense", "hamiltonian"])
def test_the_flow_changes_by_the_error_of_the_steps(kind: str) -> None:
    """|y_2N − y_N| is of order h, where weights are smooth: what has been learnt on N layers is worth as much on 2N.

    That holds for Verlet as well: its kick is centred at the beginning of a layer, and the weights at the middle.
    """
    y, steps, errors = normal(5, 4), [], []
    for layers in (32, 64, 128):
        old = of_time(trunk(kind, layers, Serial(), Serial(), comm=Comm()), wave)
        with torch.no_grad():
            steps.append(old.h)
            errors.append(error(prolongate(old, 2 * layers)(y), old(y)))
    assert slope(steps, errors) == pytest.approx(1, abs=0.25)
    assert errors[-1] < 0.1


@pytest.mark.parametrize("ranks", [2, 3, 5])
@pytest.mark.parametrize(("coarse", "fine"), [(12, 24), (7, 15), (2, 9), (4, 4)])
def test_any_ranks_hold_the_rows_of_one(ranks: int, coarse: int, fine: int) -> None:
    stack = normal(coarse, 2, 3)

    def on(comm: Comm) -> Tensor:
        old, new = Slab(coarse, comm, 3), Slab(fine, comm, 4)
        return interpolated(stack[old.lo : old.hi], old, new)

    alone = interpolated(stack, Slab(coarse, Comm()), Slab(fine, Comm()))
    assert torch.equal(torch.cat(Crew(ranks).run(on)), alone)


class Own(nn.Module):
    """A user's layer with a part that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 4, dtype=F64)
        self.inner.bias.requires_grad_(False)

    def forward(self, y: Tensor) -> Tensor:
        return torch.tanh(self.inner(y))


def test_all_but_the_layers_stays_as_it_is() -> None:
    settings = {"stepper": lpnet.steppers.Euler(), "control": lpnet.Adaptive(0.1), "seed": 4, "dtype": F64}
    old = lpnet.LayerParallel(Own(), 6, 3.0, init="random", comm=Comm(), **settings)
    net = nn.Sequential(nn.Linear(2, 4, dtype=F64), old, nn.Linear(4, 3, dtype=F64)).eval()
    before = [p.detach().clone() for p in net.parameters()]
    fine = prolongate_net(net, 12)
    new = fine[1]
    for key in ("T", "stepper", "forward_solver", "adjoint_solver", "control", "seed", "training"):
        assert getattr(new, key) == getattr(old, key)
    assert (new.layers, new.h) == (12, old.h / 2)
    assert [p.requires_grad for p in fine.parameters()] == [p.requires_grad for p in net.parameters()]
    for p, q in zip(net[::2].parameters(), fine[::2].parameters(), strict=True):
        assert torch.equal(p, q)
    with torch.no_grad():
        for p in fine.parameters():
            p.add_(1.0)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert error(prolongate(old, 12)(normal(3, 4)), old(normal(3, 4))) < 0.1


@pytest.mark.parametrize("basis", ["constant", "linear", "spline"])
def test_control_points_stay_as_they_are_unless_asked(basis: Any) -> None:
    grid = Controls(8, basis)
    old = lpnet.LayerParallel(lpnet.dynamics.Dense(4), 16, 3.0, comm=Comm(), dtype=F64, controls=grid)
    with torch.no_grad():
        for i, p in enumerate(old.theta.values()):
            p.copy_(normal(*p.shape, seed=i))
    same, free = prolongate(old, 32), prolongate(old, 32, controls=None)
    finer = prolongate(old, 32, controls=Controls(8 + grid.cells, basis))  # each cell in two
    for name, p in old.theta.items():
        assert torch.equal(same.theta[name], p)
        assert free.theta[name].shape == (32, *p.shape[1:])
        for one in (free, finer):
            torch.testing.assert_close(one.layer_weights()[name], same.layer_weights()[name], rtol=1e-9, atol=1e-10)
    back = prolongate(free, 32, controls=grid)  # the best fit of what such a grid can be
    for name, p in old.theta.items():
        torch.testing.assert_close(back.theta[name], p, rtol=1e-9, atol=1e-10)
    adam = torch.optim.Adam(old.parameters())
    old(normal(3, 4)).square().sum().backward()
    adam.step()
    moved = prolongate_state(adam, old, same)
    assert all(torch.equal(moved.state[q]["exp_avg"], adam.state[p]["exp_avg"])
               for p, q in zip(old.parameters(), same.parameters(), strict=True))
    with pytest.raises(InputError, match=r"^new: a network with another control grid given"):
        prolongate_state(adam, old, finer)


def test_store_and_gradient_stay() -> None:
    solver = Serial()
    settings = {"forward": solver, "adjoint": solver, "comm": Comm(), "dtype": F64}
    one = lpnet.LayerParallel(lpnet.dynamics.Dense(4), 4, 1.0, gradient="continuous", **settings)
    other = lpnet.LayerParallel(
        lpnet.dynamics.Hamiltonian(4), 4, 1.0, lpnet.steppers.Verlet(), store="reverse", **settings
    )
    assert prolongate(one, 8).gradient == "continuous"
    assert prolongate(other, 8).store == "reverse"


# ---- the cascade ---------------------------------------------------------------------------------------------------


def test_a_cascade_descends_and_counts_its_work() -> None:
    x, label = examples("ellipses")
    net, seen = network(8, classes=2), []

    def objective(net: Any) -> Tensor:
        penalty = regularizers.TimeDerivative(net[1], 1e-4)
        return nn.functional.cross_entropy(net(x), label) + penalty()

    def train(net: Any, level: int) -> None:
        optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
        seen.append((level, net[1].layers))
        for _ in range(6):
            optimizer.zero_grad()
            with lpnet.exact(net):
                objective(net).backward()
            optimizer.step()

    def accuracy(net: Any) -> Tensor:
        return (net(x).argmax(1) == label).double().mean()

    fine, levels = Cascade((8, 16, 32)).run(net, train, objective, accuracy)
    assert seen == [(0, 8), (1, 16), (2, 32)]
    assert fine[1].layers == 32
    assert [level.work for level in levels] == pytest.approx([6 / 4, 6 / 2, 6])
    for one, other in pairwise(levels):
        assert other.before == one.end
        assert other.jump is not None
        assert abs(other.jump) < 0.1
        assert other.start > other.end
    assert levels[0].before is levels[0].jump is None
    with lpnet.exact(fine), torch.no_grad():
        assert float(objective(fine)) == levels[-1].end
    assert 0 <= levels[-1].accuracy <= 1


def test_a_cascadic_start_for_one_shot_training() -> None:
    """Exact gradients on the coarse level, simultaneous training on the fine one: better than the latter alone."""
    x, label = examples("ellipses")

    def train(net: Any, level: int) -> None:
        adam = torch.optim.Adam(net.parameters(), lr=0.02)
        descent = Descent(net, adam) if level == 0 else lpnet.OneShot(net, adam)
        with lpnet.exact(net) if level == 0 else nullcontext():
            for _ in range(30 if level == 0 else 10):
                descent.step(x, label)

    def objective(net: Any) -> Tensor:
        return nn.functional.cross_entropy(net(x), label)

    _, levels = Cascade((32, 64)).run(network(32, classes=2), train, objective)
    _, alone = Cascade((64,)).run(network(64, classes=2), lambda net, _: train(net, 1), objective)
    assert levels[1].start < alone[0].start
    assert levels[1].end < min(levels[1].start, alone[0].end)
    assert levels[1].jump is not None
    assert abs(levels[1].jump) < 0.1


def test_the_work_that_training_returns_is_weighted_by_layers() -> None:
    net = network(4)
    _, levels = Cascade([4, 8]).run(net, lambda net, level: 10.0 + level, lambda net: 1.0)
    assert [level.work for level in levels] == [5.0, 11.0]
    assert levels[1].jump == 0.0
    assert levels[1].accuracy is None


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: Cascade((16, 24)), "layers: (16, 24) given, whole numbers, each twice the one before, allowed"),
        (lambda: Cascade(()), "layers: () given, whole numbers"),
        (lambda: Cascade((2.0, 4.0)), "layers: (2.0, 4.0) given"),
        (lambda: halved(100, 4), "levels: 4 given for 100 layers, at most 3 allowed"),
        (lambda: halved(8, 0), "levels: 0 given, a whole number of at least 1 allowed"),
        (lambda: prolongate(trunk("dense", 8, comm=Comm()), 4), "layers: 4 given for a trunk of 8"),
        (lambda: prolongate(trunk("dense", 8, comm=Comm()), 16.0), "layers: 16.0 given for a trunk of 8"),
        (lambda: prolongate_net(nn.Linear(2, 2), 16), "net: a Linear with 0 LayerParallel given, exactly one allowed"),
        (lambda: Cascade((8, 16)).run(network(4), lambda *_: None, lambda _: 0.0), "net: 4 layers given, the 8 of"),
    ],
)  # fmt: skip
def test_bad_input_is_named(bad: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        bad()
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("solver", "layers"),
    [(MGRIT(8), 64), (MGRIT((4, 2, 4), 4), 64), (MGRIT((2, 8), 3, samples=2), 64), (MGRIT(8, samples=8), 40)],
)
@pytest.mark.parametrize("factor", [1, 2, 4, 8])
def test_coarser_solvers_have_the_same_coarse_points_in_time(solver: MGRIT, layers: int, factor: int) -> None:
    found = coarser(solver, factor)
    lpnet.steppers.Euler().check(found)
    times = [{j * factor for j in points} for points in bounds(layers // factor, found)]
    wanted = [set(points) for points in bounds(layers, solver)]
    assert times[0] == set(range(0, layers + 1, factor))
    assert times[1:] == [points for points in wanted if points < times[0]]


def test_coarsening_is_rounded() -> None:
    assert coarser(MGRIT(3), 2) == MGRIT((2,))
    assert coarser(MGRIT(5, 3), 4) == MGRIT((5,))
    assert coarser(MGRIT(5), 4) == MGRIT(5, levels=1)


def test_halved_ends_with_all_layers() -> None:
    assert halved(96, 4) == (12, 24, 48, 96)
    assert halved(7, 1) == (7,)
