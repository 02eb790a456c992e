"""Solves of the trunk, unconverged: the forward one is Parareal, the adjoint Parareal with the transposes."""

import math
from itertools import pairwise
from typing import Any, ClassVar

import pytest
import torch
from reference import F64, KINDS, Iterate, Net, coarse, error, fine, lift, net_of, normal, parareal, run, trunk, twin
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, Serial
from lpnet.slab import Comm

N, M, BATCH, WIDTH = 22, 4, 5, 4
CUTS = [*range(0, N, M), N]
WAYS: dict[str, dict[str, Any]] = {
    "matched": {},
    "injected": {"coarse_weights": "inject"},
    "rediscretized": {"coarse": "rediscretized"},
    "samples": {"samples": 3},
    "FCF": {"relaxation": "FCF"},
}
each_way = pytest.mark.parametrize("way", list(WAYS))
each_kind = pytest.mark.parametrize("kind", KINDS)


def y_and_bar() -> tuple[Tensor, Tensor]:
    return normal(BATCH, WIDTH), normal(BATCH, WIDTH, seed=1)


def expected_forward(net: Net, options: MGRIT, cycles: int) -> list[Iterate]:
    """Iterates of Parareal on the formulas."""
    n = len(CUTS) - 1
    return parareal(
        lambda i, x: run(net, CUTS[i], CUTS[i + 1], x),
        lambda i, x: coarse(net, CUTS[i], CUTS[i + 1], x, options),
        lift(net, y_and_bar()[0]),
        n,
        cycles,
        options.relaxation == "FCF",
    )


def states(net: Net, c: list[Tensor]) -> list[Tensor]:
    """x_0, …, x_{N−1} as a sweep from the interval starts leaves them."""
    found: list[Tensor] = []
    for (a, b), x in zip(pairwise(CUTS), c, strict=True):
        for j in range(a, b):
            found.append(x)
            x = fine(net, j, x)
    return found


def transpose(step: Any, x: Tensor, z: Tensor) -> Tensor:
    leaf = x.clone().requires_grad_()
    return torch.autograd.grad(step(leaf), leaf, z)[0]


def expected_adjoint(net: Net, x: list[Tensor], options: MGRIT, cycles: int) -> list[Iterate]:
    """Iterates of Parareal on the reversed index, linearised at the states x."""
    n = len(CUTS) - 1

    def F(i: int, z: Tensor) -> Tensor:
        for j in reversed(range(CUTS[n - 1 - i], CUTS[n - i])):
            z = transpose(lambda u, j=j: fine(net, j, u), x[j], z)
        return z

    def G(i: int, z: Tensor) -> Tensor:
        a, b = CUTS[n - 1 - i], CUTS[n - i]
        return transpose(lambda u: coarse(net, a, b, u, options), x[a], z)

    bar = y_and_bar()[1]
    z = torch.stack([bar, torch.zeros_like(bar)]) if net.kind == "hamiltonian" else bar[None]
    return parareal(F, G, z, n, cycles, options.relaxation == "FCF")


def weight_gradients(net: Net, x: list[Tensor], c: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Input gradient, and g_j = (∂Φ_j/∂θ)ᵀ z_{j+1} with z as a sweep from the adjoint's interval starts leaves it."""
    theta = {n: t.clone().requires_grad_() for n, t in net.theta.items()}
    live = net._replace(theta=theta)
    for (a, b), z in zip(pairwise(CUTS), reversed(c), strict=True):
        for j in reversed(range(a, b)):
            leaf = x[j].clone().requires_grad_()
            fine(live, j, leaf).backward(z)
            assert leaf.grad is not None
            z = leaf.grad
        if a == 0:
            y = y_and_bar()[0].requires_grad_()
            lift(live, y).backward(z)
    assert y.grad is not None
    return y.grad, {n: t.grad for n, t in theta.items() if t.grad is not None}


@each_kind
@each_way
def test_forward_is_parareal_cycle_by_cycle(kind: str, way: str) -> None:
    for cycles in range(4):
        options = MGRIT(coarsening=M, cycles=cycles, **WAYS[way])
        made = twin(kind, N, options)
        iterates = expected_forward(net_of(made, kind), options, cycles)
        out = made(y_and_bar()[0]).detach()
        end = iterates[-1].end[0]
        assert error(out, end) < 1e-12
        info = made.info.forward
        assert info is not None
        assert info.residuals == pytest.approx([it.residual for it in iterates], rel=1e-8)


@each_kind
@each_way
@pytest.mark.parametrize("forward_cycles", [0, 2])
def test_adjoint_is_parareal_with_the_transposes(kind: str, way: str, forward_cycles: int) -> None:
    """At the states of the last forward sweep, whatever their error."""
    for cycles in range(3):
        ahead = MGRIT(coarsening=M, cycles=forward_cycles)
        back = MGRIT(coarsening=M, cycles=cycles, **WAYS[way])
        made, (y, bar) = twin(kind, N, ahead, back), y_and_bar()
        net = net_of(made, kind)
        x = states(net, expected_forward(net, ahead, forward_cycles)[-1].c)
        iterates = expected_adjoint(net, x, back, cycles)
        y_bar, grads = weight_gradients(net, x, iterates[-1].c)
        leaf = y.clone().requires_grad_()
        made(leaf).backward(bar)
        assert leaf.grad is not None
        assert error(leaf.grad, y_bar) < 1e-12
        for name, p in made.theta.items():
            assert error(p.grad, grads[name]) < 1e-12, name
        assert made.info.adjoint is not None
        assert made.info.adjoint.residuals == pytest.approx([it.residual for it in iterates], rel=1e-8)


def smooth(kind: str, forward: Any, adjoint: Any) -> lpnet.LayerParallel:
    """64 layers with weights smooth in j."""
    made = trunk(kind, 64, forward, adjoint, comm=Comm())
    t = torch.arange(64, dtype=F64) / 64
    made.load_state_dict(
        {
            n: torch.stack([0.6 * normal(*p.shape[1:], seed=i) * (1 + s) for s in t])
            for i, (n, p) in enumerate(made.theta.items())
        }
    )
    return made


@each_kind
def test_the_adjoint_converges_as_fast_as_the_forward_solve(kind: str) -> None:
    """Errors of the output and of the gradient fall by about the same factor a cycle."""
    y, bar = y_and_bar()

    def solved(forward: Any, adjoint: Any) -> tuple[Tensor, Tensor]:
        made, leaf = smooth(kind, forward, adjoint), y.clone().requires_grad_()
        out = made(leaf)
        out.backward(bar)
        assert leaf.grad is not None
        return out.detach(), torch.cat([leaf.grad.flatten(), *(p.grad.flatten() for p in made.parameters())])

    out, gradient = solved(Serial(), Serial())
    cycles = [MGRIT(coarsening=8, cycles=k) for k in range(5)]
    ahead = [error(solved(options, Serial())[0], out) for options in cycles]
    back = [error(solved(Serial(), options)[1], gradient) for options in cycles]
    for errors in (ahead, back):
        assert all(b < 0.5 * a for a, b in pairwise(errors))
    rates = [math.log(errors[0] / errors[3]) / 3 for errors in (ahead, back)]
    assert 0.5 < rates[0] / rates[1] < 2


class Counted(nn.Module):
    """A layer of a user's own that counts its evaluations."""

    calls: ClassVar[list[int]] = [0]

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, y: Tensor) -> Tensor:
        self.calls[0] += 1
        return torch.sin(self.inner(y))


@pytest.mark.parametrize("relaxation", ["F", "FCF"])
@pytest.mark.parametrize("levels", [2, 3])
@pytest.mark.parametrize("cycles", [0, 1, 3])
def test_layers_are_evaluated_as_often_as_info_says(cycles: int, levels: int, relaxation: Any) -> None:
    """A layer once a sweep, forward and back; a matched coarse step twice, but back it is linearised once for all."""
    options = MGRIT(coarsening=4, levels=levels, cycles=cycles, relaxation=relaxation)
    solvers = {"forward": options, "adjoint": options}
    made = lpnet.LayerParallel(Counted(), N, 2.0, **solvers, init="random", comm=Comm(), dtype=F64)
    y, bar = y_and_bar()
    made(y)  # the first call looks at the module
    sweeps = (2 if relaxation == "FCF" else 1) * cycles + 1
    Counted.calls[0] = 0
    out = made(y)
    ahead = made.info.forward
    assert ahead is not None
    assert Counted.calls[0] == N * sweeps + 2 * (ahead.evaluations - N * sweeps)
    Counted.calls[0] = 0
    out.backward(bar)
    coarse_steps = (len(CUTS) - 2) + (1 if levels == 3 else 0)
    assert Counted.calls[0] == N * sweeps + 2 * coarse_steps
    assert made.info.adjoint is not None
    if levels == 2:  # else shorter last intervals lie elsewhere on the reversed index
        assert made.info.adjoint.evaluations == ahead.evaluations


def test_info_of_every_solver() -> None:
    made, (y, bar) = twin("dense", N, MGRIT(coarsening=M, cycles=2), Serial(2)), y_and_bar()
    assert made.info.forward is None
    assert made.info.adjoint is None
    made(y).backward(bar)
    ahead, back = made.info.forward, made.info.adjoint
    assert (ahead.solver, ahead.cycles, ahead.levels, len(ahead.residuals)) == ("mgrit", 2, 2, 3)
    assert ahead.convergence_factor == ahead.residuals[2] / ahead.residuals[1] < 1
    assert (back.solver, back.cycles, back.residuals, back.convergence_factor) == ("serial", 0, [0.0], None)
    assert back.evaluations == 2 * N


@pytest.mark.parametrize("options", [MGRIT(coarsening=30), MGRIT(coarsening=22), MGRIT(levels=1), MGRIT(cycles=0)])
def test_too_few_points_for_two_levels_are_the_exact_chain(options: MGRIT) -> None:
    """Down to a single interval of at least all the layers."""
    layers = 16 if options == MGRIT(cycles=0) else N
    made, exact, (y, _) = twin("dense", layers, options, options), twin("dense", layers), y_and_bar()
    assert torch.equal(made(y), exact(y))
    assert made.info.forward.solver == "serial"


@each_kind
@pytest.mark.parametrize("tol", [1e-2, 1e-6])
def test_tolerance(kind: str, tol: float) -> None:
    """Stops as soon as the residual is small, forward and back; the gradient is as good as that of so many cycles."""
    options = MGRIT(coarsening=2, cycles=20, tol=tol)
    made, (y, bar) = twin(kind, N, options, options), y_and_bar()
    made(y).backward(bar)
    ahead, back = made.info.forward, made.info.adjoint
    for info in (ahead, back):
        assert 0 < info.cycles < 20
        assert info.residuals[-1] <= tol < min(info.residuals[:-1])
    fixed = [MGRIT(coarsening=2, cycles=info.cycles) for info in (ahead, back)]
    same = twin(kind, N, *fixed)
    same(y).backward(bar)
    for p, q in zip(made.parameters(), same.parameters(), strict=True):
        assert error(p.grad, q.grad) < 1e-13


def test_warm_starts_go_on_where_the_last_solve_ended() -> None:
    """So calls with one cycle each are cycles of one solve; a batch of another size starts anew."""
    one = MGRIT(coarsening=M, cycles=1, initial="warm")
    made, (y, bar) = twin("dense", N, one, one), y_and_bar()
    residuals: list[tuple[list[float], list[float]]] = []
    for _ in range(3):
        made(y).backward(bar)
        residuals.append((made.info.forward.residuals, made.info.adjoint.residuals))
    many = twin("dense", N, MGRIT(coarsening=M, cycles=3), Serial())
    many(y)
    assert [r[0][-1] for r in residuals] == pytest.approx(many.info.forward.residuals[1:], rel=1e-6)
    for before, after in pairwise(residuals):
        assert after[0][0] == pytest.approx(before[0][-1], rel=1e-6)
        assert after[0][-1] < 0.5 * before[0][-1]
        assert after[1][-1] < before[1][-1]
    made(y[:3])
    assert made.info.forward.residuals[0] > residuals[0][0][1]


def test_warm_starts_take_the_new_input() -> None:
    """Only later points are guessed: so with two intervals one cycle is exact, whatever the batch before."""
    options = MGRIT(coarsening=M, cycles=1, initial="warm")
    made, exact = twin("hamiltonian", 2 * M, options, options), twin("hamiltonian", 2 * M)
    for seed in range(3):
        y, bar = normal(BATCH, WIDTH, seed=seed), normal(BATCH, WIDTH, seed=seed + 10)
        bars = []
        for net in (made, exact):
            leaf = y.clone().requires_grad_()
            out = net(leaf)
            out.backward(bar)
            bars.append((out.detach(), leaf.grad))
        assert all(error(a, b) < 1e-13 for a, b in zip(*bars, strict=True))


@pytest.mark.parametrize("cycles", [1, 3])
def test_a_constant_start_is_the_lifted_input_everywhere(cycles: int) -> None:
    options = MGRIT(coarsening=M, cycles=cycles, initial="constant")
    made, (y, _) = twin("hamiltonian", N, options), y_and_bar()
    net = net_of(made, "hamiltonian")
    c = [lift(net, y)] * (len(CUTS) - 1)
    for _ in range(cycles):
        F = [run(net, a, b, x) for (a, b), x in zip(pairwise(CUTS), c, strict=True)]
        new = [c[0]]
        for i, (a, b) in enumerate(list(pairwise(CUTS))[:-1]):
            new.append(coarse(net, a, b, new[i], options) + F[i] - coarse(net, a, b, c[i], options))
        c = new
    assert error(made(y).detach(), run(net, CUTS[-2], N, c[-1])[0]) < 1e-12
