"""Laws of starts from earlier solves: with fixed weights calls are cycles, with slowly changing ones they keep up."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from gradients import data, gradients
from reference import F64, coarse, error, lift, net_of, normal, run, slope, stepper, twin
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, Serial
from lpnet.memory import LastSolve, Solve
from lpnet.slab import Comm

KINDS = ("dense", "two_layer", "antisymmetric", "hamiltonian", "user", "user kicks")
N, M = 22, 4


class Kicks(nn.Module):
    """A user's module with the two terms that Verlet needs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def kick(self, y: Tensor) -> Tensor:
        return -torch.tanh(self.a(y))

    def drift(self, z: Tensor) -> Tensor:
        return torch.tanh(self.b(z))


def trunk(kind: str, forward: Any, adjoint: Any, layers: int = N, **more: Any) -> lpnet.LayerParallel:
    if not kind.startswith("user"):
        return twin(kind, layers, forward, adjoint, **more)
    module = Kicks() if kind == "user kicks" else nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4))
    how = stepper("hamiltonian" if kind == "user kicks" else "dense")
    settings = {"init": "random", "dtype": F64, "comm": Comm()} | more
    return lpnet.LayerParallel(module, layers, 3.0, how, forward, adjoint, **settings)


def solve(made: lpnet.LayerParallel, seed: int = 0) -> list[Tensor]:
    """Output, input gradient and weight gradients of one call."""
    made.zero_grad()
    found = [*gradients(made, *data(seed))]
    return found + [p.grad.clone() for p in made.theta.values()]


def close(a: list[Tensor], b: list[Tensor], tolerance: float) -> None:
    for one, other in zip(a, b, strict=True):
        assert error(one, other) < tolerance


def tau(**more: Any) -> MGRIT:
    return MGRIT(coarsening=M, initial="tau", **({"cycles": 0} | more))


# ---- fixed weights ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [1, 3, M])
@pytest.mark.parametrize("cycles", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_is_a_cycle(kind: str, cycles: int, samples: int) -> None:
    """On two levels k calls of c cycles are one call of k(c + 1) − 1 cycles from a coarse start, either direction."""
    options = tau(cycles=cycles, samples=samples)
    for forward, adjoint in ((options, Serial()), (Serial(), options)):
        again = trunk(kind, forward, adjoint)
        for k in range(1, 4):
            deep = replace(options, cycles=k * (cycles + 1) - 1, initial="coarse")
            once = trunk(kind, *(deep if o is options else o for o in (forward, adjoint)))
            compared = slice(1 if forward is options else None)  # the gradient depends on the states of this solve
            close(solve(again)[compared], solve(once)[compared], 1e-13)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"relaxation": "FCF"},
        {"coarsening": 2, "levels": 3},
        {"coarsening": (3, 2, 2), "levels": 4, "relaxation": "FCF", "cycles": 1},
        {"coarsening": 2, "levels": 4, "cycle_shape": "F", "cycles": 1},
        {"coarse": "rediscretized", "coarse_weights": "inject"},
        {"samples": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", ["dense", "hamiltonian", "user"])
def test_calls_converge_to_the_serial_solution_and_stay(kind: str, more: dict[str, Any]) -> None:
    options = replace(tau(), **more)
    made = trunk(kind, options, options)
    for _ in range(35):
        found = solve(made)
    close(found, solve(trunk(kind, Serial(), Serial())), 1e-12)
    residuals = made.info.forward.residuals[-1], made.info.adjoint.residuals[-1]
    assert max(residuals) < 1e-13
    for _ in range(2):
        close(solve(made), found, 1e-13)


@pytest.mark.parametrize("layers", [1, 2, M, M + 1, 2 * M, 2 * M + 1])
def test_few_layers(layers: int) -> None:
    """Down to one interval, where the solve is the chain."""
    made, true = (trunk("dense", o, o, layers) for o in (tau(), Serial()))
    for _ in range(4):
        found = solve(made)
    close(found, solve(true), 1e-12)


# ---- changing weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dense", "antisymmetric", "hamiltonian"])
def test_start_by_hand(kind: str) -> None:
    """c_{k+1} = G_k(c_k) + F_k(c'_k) − G'_k(c'_k) with the primes those of the weights before."""
    options = tau()
    made, (y, _) = twin(kind, N, options, options), data()
    cuts = [*range(0, N, M), N]
    c: list[Tensor] = []
    defects: list[Any] = [0.0] * len(cuts)
    for step in range(3):
        net = net_of(made, kind)
        c = [lift(net, y)]
        for k in range(len(cuts) - 2):
            c.append(coarse(net, cuts[k], cuts[k + 1], c[k], options) + defects[k])
        defects = [
            run(net, a, b, u) - coarse(net, a, b, u, options) for a, b, u in zip(cuts, cuts[1:], c, strict=False)
        ]
        with torch.no_grad():
            assert error(made(y), run(net, cuts[-2], N, c[-1])[0]) < 1e-13
            for i, p in enumerate(made.theta.values()):
                p += 0.1 * normal(*p.shape, seed=10 * step + i)


def solve_by(made: lpnet.LayerParallel, forward: MGRIT) -> None:
    """Other options for the same memory, as error control has them."""
    memory = made.memory
    made.steer(forward, made.adjoint_solver, None)
    made.memory = memory


def errors_after_a_change(kind: str, initial: str, eps: float) -> float:
    """Error of the output with no cycle after a converged solve and a change of all weights by eps."""
    options = MGRIT(coarsening=8, cycles=8, initial=initial)
    # Weights that change slowly from layer to layer, as trained ones do.
    made = twin(kind, 64, options, Serial(), init="constant")
    y = data()[0]
    j = torch.linspace(0, 3, 64, dtype=F64)
    with torch.no_grad():
        for i, p in enumerate(made.theta.values()):
            p += 0.3 * normal(*p.shape[1:], seed=i) * torch.sin(j + i).reshape(-1, *[1] * (p.ndim - 1))
        made(y)
        solve_by(made, options.with_cycles(0))
        for i, p in enumerate(made.theta.values()):
            p += eps * normal(*p.shape[1:], seed=9 + i) * torch.cos(j + i).reshape(-1, *[1] * (p.ndim - 1))
        found = made(y)
        with lpnet.exact(made):
            return error(found, made(y))


@pytest.mark.parametrize("kind", ["dense", "antisymmetric", "hamiltonian"])
def test_small_changes_leave_small_errors(kind: str) -> None:
    """The error of a τ start is of first order in the change, and far below those of a warm and a coarse start."""
    sizes = [1e-2, 3e-3, 1e-3]
    found = {initial: [errors_after_a_change(kind, initial, eps) for eps in sizes] for initial in ("tau", "warm")}
    assert slope(sizes, found["tau"]) == pytest.approx(1, abs=0.15)
    assert slope(sizes, found["warm"]) == pytest.approx(1, abs=0.15)
    assert all(t < w / 5 for t, w in zip(found["tau"], found["warm"], strict=True))
    assert all(t < errors_after_a_change(kind, "coarse", eps) / 5 for t, eps in zip(found["tau"], sizes, strict=True))


# ---- what is remembered ----------------------------------------------------------------------------------------------


def test_loading_forgets() -> None:
    made = trunk("dense", tau(), tau())
    first = solve(made)
    solve(made)
    made.load_state_dict(made.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(solve(made), first, strict=True))
    nn.Sequential(made).load_state_dict({f"0.{n}": p for n, p in made.gather_state_dict().items()})
    assert all(torch.equal(a, b) for a, b in zip(solve(made), first, strict=True))


def test_another_shape_forgets() -> None:
    made, fresh = (trunk("dense", tau(), tau()) for _ in range(2))
    y = data()[0]
    with torch.no_grad():
        made(y)
        made(y)
        assert torch.equal(made(y[:3]), fresh(y[:3]))
        first = trunk("dense", tau(), tau())(y)
        assert torch.equal(made(y), first)


def test_other_options_forget_and_other_cycles_do_not() -> None:
    made, y = trunk("dense", tau(), tau()), data()[0]
    with torch.no_grad():
        made(y)
        solve_by(made, tau(cycles=1))
        assert error(made(y), trunk("dense", MGRIT(coarsening=M, cycles=2), None)(y)) < 1e-13
        solve_by(made, tau(samples=2))
        assert torch.equal(made(y), trunk("dense", tau(samples=2), None)(y))


def test_solves_that_are_not_finite_forget() -> None:
    made, (y, _) = trunk("dense", tau(), tau()), data()
    first = solve(made)
    for which in ("forward", "adjoint"):
        bad = y.clone()
        bad[0, 0] = float("nan")
        if which == "forward":
            made(bad)
        else:
            leaf = y.clone().requires_grad_()
            (made(leaf) * float("nan")).sum().backward()
        assert error(solve(made)[1], first[1]) < 1.0  # finite again, in the next call
        solve(made)
        made.memory.clear()
        assert all(torch.equal(a, b) for a, b in zip(solve(made), first, strict=True))


def test_copies_remember_for_themselves() -> None:
    made = trunk("dense", tau(), tau())
    first = solve(made)
    other = copy.deepcopy(made)
    assert other.memory is not made.memory
    assert all(torch.equal(a, b) for a, b in zip(solve(other), first, strict=True))


@pytest.mark.parametrize("change", [{"dtype": torch.float32}, {"coarsening": 3}, {"size": 5}, {"cycles": 3}])
def test_last_solve(change: dict[str, Any]) -> None:
    """What is kept is given to a solve of the same kind alone, whatever its cycles."""
    memory, size = LastSolve(), change.get("size", 4)
    one = Solve("forward", tau(), normal(1, 3, 4), 2)
    options = replace(tau(), **{k: v for k, v in change.items() if k in ("coarsening", "cycles")})
    other = Solve("forward", options, normal(1, 3, size).to(change.get("dtype", F64)), 2)
    carry = [normal(1, 3, 4)]
    memory.save(one, carry)
    assert memory.load(one) is carry
    assert (memory.load(other) is carry) == ("cycles" in change)
    assert memory.load(replace(one, which="adjoint")) is None
    memory.save(one, None)
    assert memory.load(one) is None
