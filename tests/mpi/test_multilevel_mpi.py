"""Prolongation on several ranks is prolongation on one: weights, outputs, states of optimizers, and reports."""

from typing import Any

import pytest
import torch
from small_training import examples, network
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT
from lpnet.multilevel import Cascade, prolongate, prolongate_net, prolongate_state
from lpnet.sharded import slab_of
from lpnet.slab import Comm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]


def whole(tensors: Any, parameters: Any) -> list[Tensor]:
    """All layers of what is kept for each parameter; collective."""
    slabs = [slab_of(p) for p in parameters]
    return [t.detach() if s is None else s.gather(t) for t, s in zip(tensors, slabs, strict=True)]


def cascade(first: int, levels: int, solver: MGRIT, comm: Comm) -> tuple[list[Tensor], list[float]]:
    """Weights and first moments on the finest level, and objectives and work of all."""
    x, label = examples()
    net = network(first, comm, forward=solver, adjoint=solver, init="random")
    kept: list[Any] = []

    def train(net: nn.Module, level: int) -> None:
        old, adam = kept[-1] if kept else (net, torch.optim.Adam(net.parameters(), lr=0.01))
        adam = prolongate_state(adam, old, net) if kept else adam
        for _ in range(2):
            adam.zero_grad()
            nn.functional.cross_entropy(net(x), label).backward()
            adam.step()
        kept.append((net, adam))

    layers = tuple(first << k for k in range(levels))
    fine, found = Cascade(layers).run(net, train, lambda net: nn.functional.cross_entropy(net(x), label))
    parameters, adam = list(fine.parameters()), kept[-1][1]
    moments = [adam.state[p]["exp_avg"] for p in parameters]
    numbers = [n for level in found for n in (level.start, level.end, level.work)]
    return whole(parameters, parameters) + whole(moments, parameters), numbers


@pytest.mark.parametrize(("first", "levels", "coarsening"), [(1, 3, 2), (5, 2, 3)])
def test_a_cascade_is_the_same_on_any_number_of_ranks(first: int, levels: int, coarsening: int, comm: Comm) -> None:
    solver = MGRIT(coarsening=coarsening, cycles=1)
    tensors, numbers = cascade(first, levels, solver, comm)
    alone, expected = cascade(first, levels, solver, Comm())
    for k, (number, other) in enumerate(zip(numbers, expected, strict=True)):
        if k % 3 == 2 and comm.size > 1:  # work: an exact chain pulls layers twice on all ranks but one
            assert other <= number * (1 + 1e-10) <= 4 / 3 * other * (1 + 1e-10)
        else:
            assert number == pytest.approx(other, rel=1e-10)
    for a, b in zip(tensors, alone, strict=True):
        assert (a - b).norm() <= 1e-9 * b.norm() + 1e-13


def test_a_control_grid_is_fitted_alike(comm: Comm) -> None:
    fitted = []
    for ranks in (comm, Comm()):
        free = network(6, ranks, init="random")[1]
        grid = prolongate(free, 13, controls=lpnet.Controls(5, "spline"))
        fitted.append([*grid.theta.values(), *prolongate(grid, 13, controls=None).gather_state_dict().values()])
    for a, b in zip(*fitted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("coarse", "fine"), [(7, 16), (3, 3), (4, 8)])
def test_prolongated_weights_have_the_same_bits(coarse: int, fine: int, comm: Comm) -> None:
    nets = [network(coarse, ranks, init="random", forward=MGRIT(3), adjoint=MGRIT(3)) for ranks in (comm, Comm())]
    mine, alone = (prolongate_net(net, fine) for net in nets)
    for name, value in mine[1].gather_state_dict().items():
        assert torch.equal(value, alone[1].theta[name])
    x, _ = examples()
    with lpnet.exact(mine), lpnet.exact(alone), torch.no_grad():
        torch.testing.assert_close(mine(x), alone(x), rtol=1e-12, atol=1e-13)
