"""The laws that hold on any number of ranks: everything equals the serial twin, and, converged, autograd."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import lpnet
from lpnet import slab

pytestmark = pytest.mark.mpi

KINDS = {
    "dense": (lpnet.dynamics.Dense, lpnet.steppers.Euler()),
    "two_layer": (lpnet.dynamics.TwoLayer, lpnet.steppers.Euler()),
    "antisymmetric": (lpnet.dynamics.Antisymmetric, lpnet.steppers.Euler()),
    "hamiltonian": (lpnet.dynamics.Hamiltonian, lpnet.steppers.Verlet()),
}


class Sine(torch.nn.Module):
    """A layer of a user's own."""

    def __init__(self, width):
        super().__init__()
        self.inner = torch.nn.Sequential(torch.nn.Linear(width, width))

    def forward(self, y):
        return torch.sin(self.inner(y))


@st.composite
def solvers(draw, kind):
    """MGRIT or Serial, with options that the dynamics allows."""
    if draw(st.integers(0, 4)) == 0:
        return lpnet.Serial(draw(st.integers(1, 3)))
    m = draw(st.integers(2, 6))
    return lpnet.MGRIT(
        coarsening=m,
        levels=draw(st.integers(2, 4)),
        cycles=draw(st.integers(1, 3)),
        relaxation=draw(st.sampled_from(["F", "FCF"])),
        samples=draw(st.integers(1, 2)),
        coarse_weights=draw(st.sampled_from(["mean", "inject"])),
        initial=draw(st.sampled_from(["coarse", "constant", "warm"])),
        cycle_shape=draw(st.sampled_from(["V", "F"])),
    )


def measured(kind, layers, forward, adjoint, comm=None, calls=1):
    """Output, gradients and residuals of a trunk whose weights differ from layer to layer."""
    width, batch = 4, 5
    module, stepper = KINDS.get(kind, (Sine, lpnet.steppers.Euler()))
    one = module(width)
    if kind == "user":
        with torch.no_grad():
            for p in one.parameters():
                p.fill_(0.1)
    trunk = lpnet.LayerParallel(
        one, layers, 2.0, stepper, forward, adjoint, seed=3, comm=comm, init="random", dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(7)
    y, c = (torch.randn(batch, width, generator=generator, dtype=torch.float64) for _ in range(2))
    for _ in range(calls):
        trunk.zero_grad()
        x = y.clone().requires_grad_()
        out = trunk(x)
        penalty = lpnet.regularizers.TimeDerivative(trunk, 0.1)() + lpnet.regularizers.Tikhonov(trunk, 0.2)()
        ((out * c).sum() + penalty).backward()
    grads = [trunk._slab.gather(p.grad) for p in trunk.theta.values()]
    norm = lpnet.grad_norm(trunk.parameters())
    residuals = torch.tensor(trunk.info.forward.residuals + trunk.info.adjoint.residuals, dtype=torch.float64)
    return trunk, [out.detach(), x.grad, *grads, norm, residuals, penalty.detach()]


@given(
    st.sampled_from([*KINDS, "user"]).flatmap(lambda k: st.tuples(st.just(k), solvers(k), solvers(k))),
    st.integers(1, 29),
)
@pytest.mark.filterwarnings("ignore:lpnet")
def test_equal_to_the_serial_twin(case, layers):
    kind, forward, adjoint = case
    _, mine = measured(kind, layers, forward, adjoint, calls=2)
    _, twin = measured(kind, layers, forward, adjoint, comm=slab.Comm(), calls=2)
    for a, b in zip(mine, twin, strict=True):
        assert torch.allclose(a, b, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("kind", [*KINDS, "user"])
@pytest.mark.parametrize("layers", [1, 7, 18])
@pytest.mark.filterwarnings("ignore:lpnet")
def test_converged_gradient_equals_autograd(kind, layers):
    forward = lpnet.MGRIT(coarsening=4, levels=3, cycles=20)
    adjoint = lpnet.MGRIT(coarsening=3, cycles=20)
    trunk, mine = measured(kind, layers, forward, adjoint)
    plain = trunk.as_sequential()
    generator = torch.Generator().manual_seed(7)
    y, c = (torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    x = y.clone().requires_grad_()
    bodies = [m.dynamics for m in plain if hasattr(m, "dynamics")][-layers:]
    h = trunk.h
    penalty = sum(0.1 * h * p.square().sum() for one in bodies for p in one.parameters())
    for one, other in pairwise(bodies):
        penalty = penalty + sum(
            0.05 / h * (q - p).square().sum() for p, q in zip(one.parameters(), other.parameters(), strict=True)
        )
    out = plain(x)
    ((out * c).sum() + penalty).backward()
    true = [out.detach(), x.grad]
    true += [torch.stack([one.get_parameter(name).grad for one in bodies]) for name in trunk.theta]
    for a, b in zip(mine, true, strict=False):
        assert (a - b).norm() <= 1e-10 * b.norm()


def test_same_seed_same_ranks_same_bits():
    options = lpnet.MGRIT(coarsening=3, cycles=1)
    first, second = (measured("dense", 20, options, options)[1] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_state_goes_through_any_rank_count():
    trunk, _ = measured("dense", 17, lpnet.Serial(), lpnet.Serial())
    whole = trunk.gather_state_dict()
    assert whole["K"].shape == (17, 4, 4)
    net = torch.nn.Sequential(torch.nn.Linear(4, 4), lpnet.LayerParallel(lpnet.dynamics.Dense(4), 17, 2.0).double())
    state = {f"1.{name}": value for name, value in whole.items()}
    net.load_state_dict({**{f"0.{k}": v for k, v in net[0].state_dict().items()}, **state})
    assert all(torch.equal(a, whole[name]) for name, a in net[1].gather_state_dict().items())
    net.load_state_dict(net.state_dict())  # this rank's own layers
    assert all(torch.equal(a, whole[name]) for name, a in net[1].gather_state_dict().items())


def test_clipping_takes_the_norm_over_all_ranks():
    trunk, _ = measured("dense", 11, lpnet.Serial(), lpnet.Serial())
    true = torch.cat([trunk._slab.gather(p.grad).flatten() for p in trunk.theta.values()]).norm()
    norm = lpnet.clip_grad_norm_(trunk.parameters(), 0.5)
    assert torch.isclose(norm, true, rtol=1e-12)
    assert torch.isclose(lpnet.grad_norm(trunk.parameters()), torch.tensor(0.5, dtype=torch.float64), rtol=1e-4)


def test_synchronize_says_whether_replicas_differed():
    comm = slab.world()
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), lpnet.LayerParallel(lpnet.dynamics.Dense(4), 8, 1.0, comm=comm))
    lpnet.synchronize(net)
    assert not lpnet.synchronize(net)
    with torch.no_grad():
        net[0].weight += comm.rank
    assert lpnet.synchronize(net) == (comm.size > 1)


def test_exact_inside_the_context_only():
    trunk, _ = measured("dense", 24, lpnet.MGRIT(coarsening=4, cycles=1), lpnet.Serial())
    plain = trunk.as_sequential()
    y = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with lpnet.exact(trunk), torch.no_grad():
        inside = trunk(y)
    with torch.no_grad():
        outside, true = trunk(y), plain(y)
    assert (inside - true).norm() <= 1e-14 * true.norm()
    assert (outside - true).norm() > 1e-8 * true.norm()
