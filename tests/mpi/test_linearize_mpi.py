"""Products with the Jacobian are those of one rank, and adjoint to each other, for any options and ranks."""

from typing import Any

import pytest
import torch
from gradients import WIDTH, data
from reference import F64, KINDS, error, normal, trunk
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, Serial
from lpnet.slab import Comm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]
SOLVERS = {
    "serial": Serial(),
    "pipelined": Serial(3),
    "inexact": MGRIT(coarsening=3, cycles=1),
    "until": MGRIT(coarsening=2, cycles=8, tol=1e-3, initial="warm"),
    "levels": MGRIT(coarsening=(3, 2), levels=3, cycles=1, relaxation="FCF", initial="constant", samples=2),
}


def made(kind: str, layers: int, options: Any, comm: Comm) -> lpnet.LayerParallel:
    if kind in KINDS:
        return trunk(kind, layers, options, options, comm=comm, seed=3)
    one = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Linear(6, WIDTH))
    one, stepper, store = {
        "user": (one, lpnet.steppers.Euler(), "all"),
        "ab3": (lpnet.dynamics.Antisymmetric(WIDTH), lpnet.steppers.AB3(), "cpoints"),
        "leapfrog": (lpnet.dynamics.SecondOrder(WIDTH), lpnet.steppers.Leapfrog(), "reverse"),
    }[kind]
    more: dict[str, Any] = {"init": "random", "dtype": F64, "store": store}
    return lpnet.LayerParallel(one, layers, 2.0, stepper, options, options, 3, comm, **more)


def products(net: lpnet.LayerParallel) -> tuple[Tensor, Tensor, list[Tensor], float]:
    """J v, and Jᵀ w with all layers, on every rank; the relative defect of ⟨Jv, w⟩ = ⟨v, Jᵀw⟩."""
    y, w = data()
    net(y).backward(w)  # a step before, from which a solve may start
    J, dy = net.linearize(y), normal(*y.shape, seed=5)
    dtheta = [
        torch.stack([normal(*p.shape[1:], seed=100 + j) for j in range(net.layers)])[list(net.local_layers)]
        for p in net.theta.values()
    ]
    Jv = J.tangent(dy, dtheta)
    y_bar, theta_bar = J.pull(w)
    rows = [(a * b).flatten(1).sum(1) for a, b in zip(dtheta, theta_bar, strict=True)]
    pulled = net._slab.sums(torch.stack(rows, dim=1)).sum() + (dy * y_bar).sum()
    defect = float(abs((Jv * w).sum() - pulled) / abs(pulled))
    return Jv, y_bar, [net._slab.gather(bar) for bar in theta_bar], defect


@pytest.mark.parametrize("how", SOLVERS)
@pytest.mark.parametrize(
    ("kind", "layers"),
    [("two_layer", 13), ("hamiltonian", 13), ("hamiltonian", 2), ("user", 7), ("ab3", 13), ("leapfrog", 13)],
)
def test_products_are_those_of_one_rank(kind: str, layers: int, how: str, comm: Comm) -> None:
    if kind == "ab3" and how == "levels":
        pytest.skip("takes no samples")
    found, expected = (products(made(kind, layers, SOLVERS[how], c)) for c in (comm, Comm()))
    assert error(found[0], expected[0]) < 1e-12
    assert error(found[1], expected[1]) < 1e-12
    assert all(error(a, b) < 1e-11 for a, b in zip(found[2], expected[2], strict=True))
    if isinstance(SOLVERS[how], Serial) or how == "until":
        assert found[3] < 1e-12
