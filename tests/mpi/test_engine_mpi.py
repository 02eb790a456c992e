"""Every result is that of one rank: outputs, gradients, regularisers, norms, residuals, for any options and ranks."""

import copy
import itertools
import math
from typing import Any, ClassVar

import pytest
import torch
from gradients import data, plain_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import F64, KINDS, error, normal, trunk
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, InputError, Serial, slab
from lpnet.slab import Comm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]
few = settings(max_examples=15)
WIDTH = 4


class Branch(nn.Module):
    """A layer of a user's own: nested, normalised, with dropout."""

    terms: ClassVar[tuple[str, ...]] = ()

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Dropout(rate), nn.Linear(6, WIDTH))

    def forward(self, y: Tensor) -> Tensor:
        return self.body(y)


def made(kind: str, layers: int, forward: Any, adjoint: Any, comm: Comm) -> lpnet.LayerParallel:
    if kind in KINDS:
        return trunk(kind, layers, forward, adjoint, comm=comm, seed=3)
    one = Branch(0.5 if kind == "dropout" else 0.0)
    settings: dict[str, Any] = {"forward": forward, "adjoint": adjoint, "init": "random", "dtype": F64}
    return lpnet.LayerParallel(one, layers, 2.0, comm=comm, seed=3, **settings)


@st.composite
def solvers(draw: Any, kind: str) -> Any:
    """Any solver that the dynamics allows."""
    if draw(st.integers(0, 5)) == 0:
        return Serial(2 if kind == "dropout" else draw(st.integers(1, 4)))
    m, levels = draw(st.integers(2, 6)), draw(st.integers(2, 4))
    initial = draw(st.sampled_from(["coarse", "warm", "constant"]))
    matched = draw(st.integers(0, 3)) > 0
    passes = draw(st.sampled_from([None, 1, 2, 3])) if matched and kind != "hamiltonian" else None
    return MGRIT(
        coarsening=(m, *draw(st.tuples(st.integers(2, 4), st.integers(2, 3)))),
        levels=levels,
        cycles=draw(st.integers(1 if initial == "constant" else 0, 3)),
        relaxation=draw(st.sampled_from(["F", "FCF"])),
        coarse="matched" if matched else "rediscretized",
        samples=draw(st.integers(1, 2)) if matched else 1,
        passes=passes,
        coarse_weights=draw(st.sampled_from(["mean", "inject"])),
        initial=initial,
        cycle_shape=draw(st.sampled_from(["V", "F"])),
        tol=draw(st.sampled_from([None, None, 1e-3])),
        micro_batches=1 if kind == "dropout" else draw(st.integers(1, 3)),
    )


def pairs(kind: str) -> Any:
    if kind == "dropout":  # whose masks belong to the parts of the batch
        return st.tuples(solvers(kind), solvers(kind)).filter(
            lambda p: isinstance(p[0], MGRIT) == isinstance(p[1], MGRIT)
        )
    return st.tuples(solvers(kind), solvers(kind))


def case(*kinds: str) -> Any:
    return st.sampled_from(kinds).flatmap(lambda kind: st.tuples(st.just(kind), pairs(kind)))


def results(net: lpnet.LayerParallel, calls: int) -> dict[str, Tensor]:
    """Of the last of some calls with regularisers in the loss."""
    torch.manual_seed(5 + net.comm.rank)  # where layers are random, the numbers of rank 0 count
    found: dict[str, Tensor] = {}
    for call in range(calls):
        net.zero_grad()
        y, c = data()
        leaf = (y * (1 + 0.01 * call)).requires_grad_()
        out = net(leaf)
        tikhonov = lpnet.regularizers.Tikhonov(net, 0.2)()
        derivative = lpnet.regularizers.TimeDerivative(net, 0.1)()
        ((out * c).sum() + tikhonov + derivative).backward()
        assert leaf.grad is not None
        found = {"out": out.detach(), "input": leaf.grad, "tikhonov": tikhonov.detach(), "ddt": derivative.detach()}
        found |= {name: net._slab.gather(p.grad) for name, p in net.theta.items()}
        found["norm"] = lpnet.grad_norm(net.parameters())
        for which, info in (("forward", net.info.forward), ("adjoint", net.info.adjoint)):
            found[which] = torch.tensor([*info.residuals, info.cycles, info.levels], dtype=F64)
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].shape == value.shape, name
        if name in ("forward", "adjoint"):  # residuals, which may be rounding themselves
            assert (found[name] - value).abs().max() < tolerance, name
        else:
            assert error(found[name], value) < tolerance, name


@few
@given(case(*KINDS), st.integers(1, 40))
def test_equal_to_one_rank(case: Any, layers: int) -> None:
    kind, (forward, adjoint) = case
    found, expected = (results(made(kind, layers, forward, adjoint, comm), 2) for comm in (slab.world(), Comm()))
    assert_same(found, expected)


@settings(max_examples=8)
@given(case("user"), st.integers(1, 25))
def test_user_modules_are_equal_to_one_rank(case: Any, layers: int) -> None:
    kind, (forward, adjoint) = case
    found, expected = (results(made(kind, layers, forward, adjoint, comm), 2) for comm in (slab.world(), Comm()))
    assert_same(found, expected)


@settings(max_examples=8)
@given(case("dropout"), st.integers(1, 14))
def test_dropout_masks_belong_to_layers_and_not_to_ranks(case: Any, layers: int) -> None:
    """Also in coarse steps, whose masks are seen in every solve that has not converged."""
    kind, (forward, adjoint) = case
    found, expected = (results(made(kind, layers, forward, adjoint, comm), 2) for comm in (slab.world(), Comm()))
    assert_same(found, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("options", [Serial(3), MGRIT(coarsening=2, levels=3, cycles=1), MGRIT(coarsening=5, cycles=1)])
def test_more_ranks_than_intervals_or_layers(kind: str, layers: int, options: Any) -> None:
    found, expected = (results(made(kind, layers, options, options, comm), 1) for comm in (slab.world(), Comm()))
    assert_same(found, expected)


@few
@given(st.sampled_from(KINDS), st.integers(1, 30), st.integers(2, 5), st.integers(2, 3), st.sampled_from(["F", "FCF"]))
def test_converged_gradients_are_those_of_autograd(
    kind: str, layers: int, m: int, levels: int, relaxation: Any
) -> None:
    options = MGRIT(coarsening=m, levels=levels, cycles=30, relaxation=relaxation, tol=1e-14)
    net, (y, c) = made(kind, layers, options, options, slab.world()), data()
    leaf = y.clone().requires_grad_()
    out = net(leaf)
    (out * c).sum().backward()
    expected, y_bar, grads = plain_gradients(net, y, c)
    assert error(out.detach(), expected) < 1e-10
    assert error(leaf.grad, y_bar) < 1e-10
    for name, p in net.theta.items():
        assert error(net._slab.gather(p.grad), grads[name]) < 1e-10


@pytest.mark.parametrize("kind", ["dense", "hamiltonian", "dropout"])
def test_same_seed_same_ranks_same_bits(kind: str) -> None:
    options = MGRIT(coarsening=3, levels=3, cycles=2)
    first, second = (results(made(kind, 22, options, options, slab.world()), 2) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_one_state_per_boundary_and_sweep(monkeypatch: Any, comm: Comm) -> None:
    """Forward: a message for each sweep and each coarse solve. The adjoint the same, on slabs cut at C-points."""
    P, cycles = comm.size, 2
    options = MGRIT(coarsening=4, cycles=cycles)
    net, (y, c) = made("dense", 4 * 2 * P, options, options, comm), data()
    net(y)  # has prepared the coarse weights
    sent: list[tuple[int, ...]] = []
    send = type(comm).send
    monkeypatch.setattr(type(comm), "send", lambda self, x, to: (sent.append((to, *x.shape)), send(self, x, to)))
    out = net(y)
    shape = (1, WIDTH, len(y))
    assert sent == ([(comm.rank + 1, *shape)] * 2 * (cycles + 1) if comm.rank + 1 < P else [])
    sent.clear()
    net.info.adjoint = None
    (out * c).sum().backward()
    states = [s for s in sent if s[1:] == shape]
    assert states == ([(comm.rank - 1, *shape)] * 2 * (cycles + 1) if comm.rank else [])


# ---- networks --------------------------------------------------------------------------------------------------------


def network(layers: int = 13, comm: Any = None, options: Any = None) -> nn.Sequential:
    ends = [nn.Linear(3, WIDTH, dtype=F64), nn.Linear(WIDTH, 2, dtype=F64)]
    with torch.no_grad():
        for i, p in enumerate([*ends[0].parameters(), *ends[1].parameters()]):
            p.copy_(normal(*p.shape, seed=i))
    options = options or MGRIT(coarsening=4, cycles=12)
    return nn.Sequential(ends[0], made("two_layer", layers, options, options, comm or slab.world()), ends[1])


def loss(net: nn.Module) -> Tensor:
    return (net(normal(6, 3)) - normal(6, 2, seed=1)).square().sum()


@pytest.mark.parametrize("layers", [2, 13])
@pytest.mark.parametrize("factor", [0.1, 2.0])
def test_clipping_is_that_of_torch_on_the_plain_network(layers: int, factor: float) -> None:
    net = network(layers)
    plain = nn.Sequential(copy.deepcopy(net[0]), net[1].as_sequential(), copy.deepcopy(net[2]))
    for each in (net, plain):
        loss(each).backward()
    size = factor * math.sqrt(sum(p.grad.square().sum().item() for p in plain.parameters()))
    found = lpnet.clip_grad_norm_(net.parameters(), size)
    expected = torch.nn.utils.clip_grad_norm_(plain.parameters(), size)
    assert error(found, expected) < 1e-12
    for name, p in net[1].theta.items():
        grads = torch.stack([layer.dynamics.get_parameter(name).grad for layer in plain[1]])
        assert error(net[1]._slab.gather(p.grad), grads) < 1e-10
    assert error(net[0].weight.grad, plain[0].weight.grad) < 1e-10


@pytest.mark.parametrize("layers", [2, 13])
def test_training_is_that_of_one_rank(layers: int) -> None:
    """With clipping, weight decay and an unconverged solver; replicated parameters stay equal by themselves."""
    ends = []
    for comm in (slab.world(), Comm()):
        net = network(layers, comm, MGRIT(coarsening=3, cycles=1, initial="warm"))
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
        for _ in range(4):
            optimizer.zero_grad()
            loss(net).backward()
            lpnet.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        assert lpnet.synchronize(net) is False
        ends.append([*net[1].gather_state_dict().values(), net[0].weight.detach(), net[2].bias.detach()])
    for a, b in zip(*ends, strict=True):
        assert error(a, b) < 1e-9


def test_lbfgs_is_refused() -> None:
    net = network()
    with pytest.raises(InputError, match="LBFGS"):
        torch.optim.LBFGS(net.parameters()).step(lambda: loss(net))


@pytest.mark.parametrize("layers", [1, 4, 13])
@pytest.mark.parametrize("assign", [False, True])
def test_state_on_any_number_of_ranks(layers: int, assign: bool) -> None:
    """What one rank has saved, any number of ranks loads, and the other way round; also through the network."""
    alone, net = network(layers, Comm()), network(layers)
    with torch.no_grad():
        for p in alone.parameters():
            p.add_(normal(*p.shape, seed=11))
    whole = alone.state_dict()
    assert net[1].local_layers == range(net[1]._slab.lo, net[1]._slab.hi)
    assert net[1].theta["K1"].shape[0] == len(net[1].local_layers)
    net.load_state_dict(copy.deepcopy(whole), assign=assign)
    assert all(p.shape[0] == len(net[1].local_layers) for p in net[1].theta.values())
    for name, stack in net[1].gather_state_dict().items():
        assert torch.equal(stack, whole[f"1.{name}"])
    local = copy.deepcopy(net.state_dict())
    other = network(layers)
    other.load_state_dict(local, assign=assign)
    back = network(layers, Comm())
    back[1].load_state_dict(other[1].gather_state_dict(), assign=assign)
    for name, stack in back[1].theta.items():
        assert torch.equal(stack, whole[f"1.{name}"])
    loss(other).backward()
    loss(alone).backward()
    assert error(lpnet.grad_norm(other.parameters()), lpnet.grad_norm(alone.parameters())) < 1e-10


def test_exact_is_the_serial_chain() -> None:
    net = network(13, options=MGRIT(coarsening=4, cycles=0))
    chain = network(13, Comm(), Serial())
    with lpnet.exact(net):
        value = loss(net)
    assert error(value.detach(), loss(chain).detach()) < 1e-14
    assert error(loss(net).detach(), value.detach()) > 1e-8
    value.backward()
    loss(chain).backward()
    assert error(lpnet.grad_norm(net.parameters()), lpnet.grad_norm(chain.parameters())) < 1e-13


def test_weights_are_drawn_from_seed_and_layer() -> None:
    options: Any = MGRIT(coarsening=4)
    for init, kind in itertools.product(("constant", "random"), ("dense", "two_layer")):
        nets = [trunk(kind, 13, options, options, comm=comm, seed=5, init=init) for comm in (slab.world(), Comm())]
        found, expected = (net.gather_state_dict() for net in nets)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_constant_weights_of_a_user_module_are_those_of_rank_0(comm: Comm) -> None:
    """Whose generators the user seeded differently on every rank."""
    torch.manual_seed(comm.rank)
    net = lpnet.LayerParallel(nn.Linear(WIDTH, WIDTH), 13, 1.0, comm=comm)
    K = net.gather_state_dict()["weight"]
    assert all(torch.equal(K[0], k) for k in K)
    torch.manual_seed(0)
    assert torch.equal(K[0], nn.Linear(WIDTH, WIDTH).weight)


def test_synchronize_takes_the_replicated_parameters_of_rank_0(comm: Comm) -> None:
    net = network()
    before = net[1].gather_state_dict()
    expected = net[0].weight.detach().clone()
    with torch.no_grad():
        net[0].weight.add_(float(comm.rank))
        for p in net[1].theta.values():
            p.add_(1.0)
    assert lpnet.synchronize(net) == (comm.size > 1)
    assert torch.equal(net[0].weight, expected)
    assert all(torch.equal(stack, before[name] + 1.0) for name, stack in net[1].gather_state_dict().items())
    assert lpnet.synchronize(net) is False
