"""Laws of the control grid that hold on any number of ranks: the serial twin's results, and equal bits on all ranks."""

from typing import Any

import pytest
import torch
from gradients import data, gradients
from reference import error, normal, trunk, twin
from small_training import examples, network, with_ddt

import lpnet
from lpnet import MGRIT, Controls
from lpnet.oneshot import Descent
from lpnet.optim import LBFGS
from lpnet.regularizers import Tikhonov, TimeDerivative
from lpnet.slab import Comm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]

SOLVERS = MGRIT(coarsening=4, cycles=1), MGRIT(coarsening=3, cycles=1)
CASES = [(2, 2, "linear"), (11, 11, "constant"), (17, 3, "constant"), (17, 6, "linear"), (29, 9, "spline")]


def same_everywhere(comm: Comm, t: torch.Tensor) -> bool:
    return torch.equal(comm.bcast_(t.clone(), 0), t)


@pytest.mark.parametrize(("layers", "points", "basis"), CASES)
def test_equal_to_the_serial_twin(comm: Comm, layers: int, points: int, basis: Any) -> None:
    y, c = data()
    found = []
    for make, more in ((trunk, {"comm": comm}), (twin, {})):
        one = make("dense", layers, *SOLVERS, controls=Controls(points, basis), **more)
        penalties = Tikhonov(one, 0.2), TimeDerivative(one, 0.3)
        sum(penalty() for penalty in penalties).backward()
        out, bar = gradients(one, y, c)
        v = [normal(*p.shape, seed=i) for i, p in enumerate(one.parameters())]
        grads = [p.grad for p in one.parameters()]
        products = [t for penalty in penalties for t in penalty.hessian(v)]
        norm = lpnet.grad_norm(one.parameters())
        state = list(one.gather_state_dict().values())
        layer_weights = list(one.grid.every_layer(one.theta).values())
        assert [len(w) for w in one.layer_weights().values()] == [len(one.local_layers)] * len(state)
        found.append([out, bar, *grads, *products, norm, *state, *layer_weights])
    for mine, true in zip(*found, strict=True):
        assert error(mine, true) < 1e-12
        assert same_everywhere(comm, mine)


@pytest.mark.parametrize("kind", [Descent, lpnet.OneShot])
def test_a_run_takes_the_same_steps_and_all_ranks_hold_the_same_weights(comm: Comm, kind: Any) -> None:
    x, label = examples(number=20)
    told, ends = [], []
    for ranks in (comm, Comm()):
        net = network(24, comm=ranks, controls=Controls(6, "linear"))
        descent = kind(net, LBFGS(net.parameters()), with_ddt(net))
        told.append([descent.step(x, label) for _ in range(4)])
        ends.append([p.detach() for p in net.parameters()])
    for mine, true in zip(*told, strict=True):
        assert mine.loss == pytest.approx(true.loss, rel=1e-9)
        assert (mine.exact, mine.checked) == (true.exact, true.checked)
    for mine, true in zip(*ends, strict=True):
        assert same_everywhere(comm, mine)
        assert error(mine, true) < 1e-8


def test_synchronize_and_decisions_reach_the_control_points(comm: Comm) -> None:
    one = trunk("dense", 9, comm=comm, controls=Controls(4))
    assert not lpnet.synchronize(one)
    with torch.no_grad():
        for p in one.parameters():
            p.add_(comm.rank)
    assert lpnet.synchronize(one) == (comm.size > 1)
    assert all(same_everywhere(comm, p.detach()) for p in one.parameters())
    mine = torch.tensor([float(comm.rank)], dtype=torch.float64)
    assert lpnet.optim.vector.of_rank_0(one.parameters(), mine).item() == 0
