"""Recomputed and reversed states, the new steppers, and the continuous adjoint on any number of ranks."""

import pytest
import torch
from torch import nn

import lpnet
from lpnet import MGRIT, Serial, dynamics, slab
from lpnet.steppers import AB3, RK4, Euler, Leapfrog, Verlet

pytestmark = pytest.mark.mpi

WIDTH, BATCH = 3, 5


def dropping():
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Dropout(0.5))


class Dropping(nn.Module):
    """Kick and drift with dropout."""

    def __init__(self):
        super().__init__()
        self.kick, self.drift = dropping(), dropping()


CASES = {
    "euler": (Euler(), lambda: dynamics.Dense(WIDTH)),
    "rk4": (RK4(), lambda: dynamics.Antisymmetric(WIDTH)),
    "ab3": (AB3(), lambda: dynamics.TwoLayer(WIDTH)),
    "verlet": (Verlet(), lambda: dynamics.Hamiltonian(WIDTH)),
    "leapfrog": (Leapfrog(), lambda: dynamics.SecondOrder(WIDTH)),
    "ab3, dropout": (AB3(), dropping),
    "verlet, dropout": (Verlet(), Dropping),
}
SOLVERS = {
    "serial": (Serial(2), Serial(2)),
    "two levels": (MGRIT(coarsening=4, cycles=1), MGRIT(coarsening=3, cycles=1)),
    "three levels": (MGRIT(coarsening=(3, 2), levels=3, relaxation="FCF"), MGRIT(coarsening=2, levels=3)),
}


def found(name, layers, how, comm=None, **more):
    """Output and gradients, those of the weights of all layers."""
    stepper, module = CASES[name]
    one, (forward, adjoint) = module(), SOLVERS[how]
    made = lpnet.LayerParallel(one, layers, 2.0, stepper, forward, adjoint, comm=comm, dtype=torch.float64, **more)
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    made.load_state_dict({n: 0.5 * normal(layers, *p.shape[1:]) for n, p in made.theta.items()})
    y, c = normal(BATCH, WIDTH).requires_grad_(), normal(BATCH, WIDTH)
    torch.manual_seed(5 + made.comm.rank)  # the numbers of rank 0 count
    out = made(y)
    out.backward(c)
    undone = more.get("store") == "reverse" and len(made.local_layers) > 0
    assert 0 <= made.info.round_trip < 1e-12 if undone else made.info.round_trip is None
    return [out.detach(), y.grad, *(made._slab.gather(p.grad) for p in made.theta.values())]


def assert_same(mine, twin):
    for a, b in zip(mine, twin, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)


EACH = [(name, how, 10) for name in CASES for how in SOLVERS if "dropout" not in name or how == "two levels"]


@pytest.mark.parametrize(("name", "how", "layers"), [*EACH, ("rk4", "serial", 2), ("verlet", "serial", 2)])
@pytest.mark.filterwarnings("ignore:lpnet")
def test_every_store_gives_what_one_rank_gives(comm, name, how, layers):
    """Layers that no rank count divides, and fewer layers than ranks."""
    stores = ("all", "cpoints", "reverse") if CASES[name][0].reversible else ("all", "cpoints")
    twin = found(name, layers, how, slab.Comm())
    for store in stores:
        assert_same(found(name, layers, how, store=store), twin)


@pytest.mark.parametrize("how", list(SOLVERS))
@pytest.mark.parametrize("store", ["all", "cpoints"])
@pytest.mark.filterwarnings("ignore:lpnet")
def test_the_continuous_adjoint_is_that_of_one_rank(comm, how, store):
    twin = found("euler", 10, how, slab.Comm(), gradient="continuous")
    assert_same(found("euler", 10, how, store=store, gradient="continuous"), twin)
