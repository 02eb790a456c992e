"""What the adjoint finds of the states: kept, run again, or undone; the gradient is the same, the memory is not."""

from functools import lru_cache
from typing import Any

import pytest
import torch
from counting import Living
from gradients import WIDTH, assert_gradients, data, gradients
from reference import F64, error, normal
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, Serial, dynamics
from lpnet.dense_field import DenseField
from lpnet.gradient import solved_of
from lpnet.slab import Comm
from lpnet.steppers import AB3, RK4, Euler, Leapfrog, Stepper, Verlet


def dropping() -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, WIDTH))


class Dropping(nn.Module):
    """Kick and drift with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.kick, self.drift = dropping(), dropping()


class DroppingKick(nn.Module):
    """Second order."""

    def __init__(self) -> None:
        super().__init__()
        self.kick = dropping()


CASES: dict[str, tuple[Stepper, Any]] = {
    "euler": (Euler(), lambda: dynamics.TwoLayer(WIDTH, hidden=3)),
    "rk4": (RK4(), lambda: dynamics.Dense(WIDTH)),
    "ab3": (AB3(), lambda: dynamics.Antisymmetric(WIDTH)),
    "verlet": (Verlet(), lambda: dynamics.Hamiltonian(WIDTH)),
    "verlet from zero": (Verlet("zero"), lambda: dynamics.Hamiltonian(WIDTH)),
    "leapfrog": (Leapfrog(), lambda: dynamics.SecondOrder(WIDTH, hidden=3)),
    "euler, dropout": (Euler(), dropping),
    "rk4, dropout": (RK4(), dropping),
    "ab3, dropout": (AB3(), dropping),
    "verlet, dropout": (Verlet(), Dropping),
    "leapfrog, dropout": (Leapfrog(), DroppingKick),
}
PAIRS = [
    (name, store)
    for name, (stepper, _) in CASES.items()
    for store in ("cpoints", "reverse")
    if store == "cpoints" or stepper.reversible
]
SOLVERS: dict[str, tuple[Any, Any]] = {
    "serial": (Serial(), Serial()),
    "micro-batches": (Serial(4), Serial(4)),
    "two levels": (MGRIT(coarsening=4, cycles=1), MGRIT(coarsening=3, cycles=1)),
    "three levels, FCF": (
        MGRIT(coarsening=(3, 2), levels=3, cycles=1, relaxation="FCF"),
        MGRIT(coarsening=2, levels=3, cycles=1, relaxation="FCF", tol=1e-9),
    ),
    "mixed": (Serial(), MGRIT(coarsening=5, cycles=1)),
    "mixed the other way": (MGRIT(coarsening=5, cycles=1), Serial()),
}


def trunk(name: str, layers: int, store: Any, how: str = "serial", **more: Any) -> lpnet.LayerParallel:
    """Weights that differ from layer to layer; no bias is zero."""
    stepper, module = CASES[name]
    forward, adjoint = SOLVERS[how]
    settings = {"T": 2.0, "comm": Comm(), "dtype": F64} | more
    solvers = {"forward": forward, "adjoint": adjoint}
    made = lpnet.LayerParallel(module(), layers, stepper=stepper, store=store, **solvers, **settings)
    made.load_state_dict({n: 0.5 * normal(*p.shape, seed=i) for i, (n, p) in enumerate(made.theta.items())})
    return made


def all_gradients(made: lpnet.LayerParallel) -> list[Tensor]:
    """Output and gradients, from one state of torch's generator."""
    torch.manual_seed(5)
    made.zero_grad()
    return [*gradients(made, *data()), *(p.grad for p in made.parameters())]


@lru_cache
def stored(name: str, how: str, layers: int = 11) -> list[Tensor]:
    return all_gradients(trunk(name, layers, "all", how))


@pytest.mark.parametrize(("name", "store"), [p for p in PAIRS if "dropout" not in p[0]])
@pytest.mark.parametrize("how", list(SOLVERS))
def test_the_gradient_is_that_of_stored_states(name: str, store: str, how: str) -> None:
    """Of iterated solves too, converged or not."""
    for a, b in zip(all_gradients(trunk(name, 11, store, how)), stored(name, how), strict=True):
        assert error(a, b) < 1e-12


@pytest.mark.parametrize(("name", "store"), [p for p in PAIRS if "dropout" in p[0]])
@pytest.mark.parametrize("how", ["micro-batches", "two levels"])
def test_dropout_draws_the_same_masks_again(name: str, store: str, how: str) -> None:
    for a, b in zip(all_gradients(trunk(name, 8, store, how)), stored(name, how, 8), strict=True):
        assert error(a, b) < 1e-12


@pytest.mark.parametrize(("name", "store"), [p for p in PAIRS if "dropout" not in p[0]])
@pytest.mark.parametrize("layers", [1, 2, 11])
def test_gradients_are_those_of_the_plain_twin(name: str, store: str, layers: int) -> None:
    assert_gradients(trunk(name, layers, store, T=0.2 * layers), 1e-12)


@pytest.mark.parametrize(("name", "store"), [("verlet", "reverse"), ("rk4", "cpoints"), ("euler", "cpoints")])
def test_other_numbers_of_micro_batches_back(name: str, store: str) -> None:
    forward, adjoint = Serial(2), Serial(3)
    made = trunk(name, 9, store)
    made.steer(forward, adjoint, None)
    assert_gradients(made, 1e-12)


@pytest.mark.parametrize(("name", "store"), [("verlet", "reverse"), ("ab3", "cpoints")])
def test_two_forwards_before_one_backward(name: str, store: str) -> None:
    made, (y, c) = trunk(name, 14, store, "two levels"), data()
    leaf, other = y.clone().requires_grad_(), (2 * y).requires_grad_()
    out = made(leaf)
    made(other)
    out.backward(c)
    assert leaf.grad is not None
    assert error(leaf.grad, gradients(trunk(name, 14, "all", "two levels"), y, c)[1]) < 1e-12


@pytest.mark.parametrize(("name", "store"), [("verlet", "reverse"), ("leapfrog", "reverse"), ("rk4", "cpoints")])
def test_error_control_takes_the_same_decisions(name: str, store: str) -> None:
    found = []
    for each in (store, "all"):
        control = lpnet.Adaptive(gradient_tol=1e-3, every=2)
        made = trunk(name, 16, each, "two levels", control=control)
        grads = [all_gradients(made) for _ in range(3)]
        found.append((grads[-1], made.info.control))
    (a, report), (b, expected) = found
    assert all(error(p, q) < 1e-11 for p, q in zip(a, b, strict=True))
    assert report.cycles == expected.cycles
    assert report.gradient_error == pytest.approx(expected.gradient_error, rel=1e-4)


# ---- reversal --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["verlet", "leapfrog"])
def test_round_trip_over_1024_layers(name: str) -> None:
    """x_0 from x_N by undoing all layers."""
    made = trunk(name, 1024, "reverse", T=16.0)
    out = made(data()[0])
    solved = solved_of(out)
    (tape,) = solved.solution.tapes
    start = tape.starts.pop(0)
    assert list(tape.ends) == [1024]
    off = error(solved.step.prepared.layers.state(0, tape), start)
    assert off < 1e-12
    made(data()[0]).sum().backward()
    assert made.info.round_trip == pytest.approx(off, rel=1e-6)


# ---- memory ----------------------------------------------------------------------------------------------------------


def states(name: str, layers: int, store: str) -> tuple[float, float]:
    """How many tensors (batch, width) live after the forward pass, and at most until the gradient is there."""
    batch = 37
    made, y = trunk(name, layers, store, T=1.0), normal(batch, WIDTH)
    with Living(batch) as live:
        out = made(y)
        forward = live.now
        out.sum().backward()
    size = batch * WIDTH * 8
    return forward / size, live.most / size


@pytest.mark.parametrize("how", ["serial", "two levels"])
@pytest.mark.parametrize(("name", "store"), [("euler", "cpoints"), ("leapfrog", "reverse"), ("euler", "all")])
def test_layers_run_again_are_counted(name: str, store: str, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of steps with one stage: those that the fields of all layers evaluate while they are pulled back."""
    net, done, add = trunk(name, 11, store, how), [0], DenseField.add
    y, bar = data()

    def counted(self: DenseField, *args: Any) -> None:
        done[0] += len(self.M) == 11
        add(self, *args)

    out = net(y)
    monkeypatch.setattr(DenseField, "add", counted)
    out.backward(bar)
    info = net.info.adjoint
    assert info is not None
    pulled = 11 * (info.cycles + 1)
    lift = name == "leapfrog"
    assert info.layers == pulled + done[0] - lift
    assert (info.layers > pulled) == (store != "all")
    assert net.info.layer_evaluations == info.layers + net.info.forward.layers  # type: ignore[union-attr]



@pytest.mark.parametrize("name", ["euler", "rk4", "ab3", "verlet", "leapfrog"])
def test_memory_of_the_exact_chain(name: str) -> None:
    """Stored states grow like N, C-points like √N, and what is undone does not grow."""
    powers = {"all": 1.0, "cpoints": 0.5} | ({"reverse": 0.0} if CASES[name][0].reversible else {})
    for store, power in powers.items():
        for small, middle, large in zip(*(states(name, N, store) for N in (16, 64, 256)), strict=True):
            assert large - middle == pytest.approx(4**power * (middle - small), rel=0.05)
            assert (large > middle) == (power > 0)
    if "reverse" in powers:
        assert large < 30
