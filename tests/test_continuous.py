"""The continuous adjoint discretised on its own: its formula, and how far it is from the gradient of what is computed.

    z_j = z_{j+1} + h J(x_{j+1}, θ_j)ᵀ z_{j+1},    g_j = h (∂f/∂θ)(x_{j+1}, θ_j)ᵀ z_{j+1}
"""

from typing import Any

import pytest
import torch
from by_hand import WIDTH, chain_of, smooth_chain, trunk
from reference import error, normal, slope
from torch import Tensor

import lpnet
from lpnet import MGRIT, InputError, Serial
from lpnet.steppers import AB3, RK4, Euler, Leapfrog, Stepper, Verlet

N, BATCH = 13, 6
KINDS = ("dense", "two_layer", "antisymmetric", "user")
SOLVERS: dict[str, tuple[Any, Any]] = {
    "serial": (Serial(), Serial()),
    "micro-batches": (Serial(4), Serial(3)),
    "two levels": (MGRIT(coarsening=4, cycles=4), MGRIT(coarsening=3, cycles=5)),
    "three levels, FCF": (
        MGRIT(coarsening=2, levels=3, cycles=5, relaxation="FCF"),
        MGRIT(coarsening=(3, 2), levels=3, cycles=4, relaxation="FCF"),
    ),
}


def continuous(kind: str, layers: int, *solvers: Any, **more: Any) -> lpnet.LayerParallel:
    return trunk(kind, Euler(), layers, *solvers, gradient="continuous", **more)


def found(made: lpnet.LayerParallel) -> list[Tensor]:
    """Output, and the gradients with respect to the input and the weights."""
    y, c = normal(BATCH, WIDTH).requires_grad_(), normal(BATCH, WIDTH, seed=1)
    out = made(y)
    out.backward(c)
    assert y.grad is not None
    return [out.detach(), y.grad, *(p.grad for p in made.theta.values())]


def by_hand(made: lpnet.LayerParallel, kind: str) -> list[Tensor]:
    """The same by the formula."""
    chain, y, z = chain_of(made, kind), normal(BATCH, WIDTH), normal(BATCH, WIDTH, seed=1)
    x = [y]
    for j in range(chain.layers):
        x.append(x[j] + chain.h * chain.f(chain.at(j), x[j]))
    grads: list[list[Tensor]] = []
    for j in reversed(range(chain.layers)):
        leaf = x[j + 1].clone().requires_grad_()
        w = {name: t.clone().requires_grad_() for name, t in chain.at(j).items()}
        y_bar, *w_bar = torch.autograd.grad(chain.f(w, leaf), [leaf, *w.values()], z)
        grads.insert(0, [chain.h * bar for bar in w_bar])
        z = z + chain.h * y_bar
    return [x[-1], z, *(torch.stack(rows) for rows in zip(*grads, strict=True))]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", list(SOLVERS))
@pytest.mark.parametrize("store", ["all", "cpoints"])
def test_it_is_the_formula(kind: str, how: str, store: Any) -> None:
    """By the exact chain, and by converged cycles, whatever is stored."""
    made = continuous(kind, N, *SOLVERS[how], store=store)
    for a, b in zip(found(made), by_hand(made, kind), strict=True):
        assert error(a, b) < 1e-11


def test_adjoint_intervals_that_cut_the_segments() -> None:
    """A sweep of the adjoint begins within segments of the forward one."""
    cut = continuous("dense", N, MGRIT(coarsening=6, cycles=3), MGRIT(coarsening=4, cycles=4))
    for a, b in zip(found(cut), found(continuous("dense", N)), strict=True):
        assert error(a, b) < 1e-12


@pytest.mark.parametrize("kind", ["dense", "user"])
def test_it_differs_from_the_discrete_gradient_by_order_h(kind: str) -> None:
    """T fixed, weights smooth in time; the output is the same."""
    errors, counts = [], (16, 32, 64, 128)
    for layers in counts:
        chain = smooth_chain(kind, layers, 1 / layers)
        pair = [trunk(kind, Euler(), layers, T=1.0, gradient=how) for how in ("continuous", "discrete")]
        for made in pair:
            made.load_state_dict(chain.theta)
        (out, *a), (same, *b) = (found(made) for made in pair)
        assert torch.equal(out, same)
        errors.append([error(p, q) for p, q in zip(a, b, strict=True)])
    for each in zip(*errors, strict=True):
        assert slope([1 / n for n in counts], each) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("stepper", [RK4(), AB3(), Verlet(), Leapfrog()])
def test_other_steppers_have_none(stepper: Stepper) -> None:
    name = type(stepper).__name__
    with pytest.raises(InputError) as caught:
        trunk("dense", stepper, 8, gradient="continuous")
    allowed = "only 'discrete' allowed (or the stepper Euler)"
    assert str(caught.value) == f"gradient: 'continuous' given with {name}, {allowed}"


def test_unknown_gradients_are_refused() -> None:
    with pytest.raises(InputError) as caught:
        trunk("dense", Euler(), 8, gradient="exact")
    assert str(caught.value) == "gradient: 'exact' given, one of discrete, continuous allowed"
