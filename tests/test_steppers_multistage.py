"""RK4, AB3 and leapfrog next to their formulas: states, gradients, coarse steps, and solves that are made of them."""

import math
from functools import lru_cache
from typing import Any

import pytest
import torch
from by_hand import CASES, METHODS, WIDTH, Chain, Method, chain_of, random_chain, smooth_chain, trunk
from reference import F64, error, normal, slope
from torch import Tensor

from lpnet import MGRIT, Serial
from lpnet.coarse_steps import CoarseSteps
from lpnet.coarsen import Restriction, parts
from lpnet.slab import Comm, Slab
from lpnet.stack import Stack
from lpnet.steppers import REGISTRY

N, BATCH = 13, 6
SOLVERS: dict[str, tuple[Any, Any]] = {
    "serial": (Serial(), Serial()),
    "micro-batches": (Serial(4), Serial(3)),
    "two levels, F": (MGRIT(coarsening=4, cycles=4), MGRIT(coarsening=3, cycles=5)),
    "three levels, FCF": (
        MGRIT(coarsening=2, levels=3, cycles=5, relaxation="FCF"),
        MGRIT(coarsening=(3, 2), levels=3, cycles=4, relaxation="FCF"),
    ),
}
COARSE: dict[str, dict[str, Any]] = {
    "matched": {},
    "injected": {"coarse_weights": "inject"},
    "rediscretized": {"coarse": "rediscretized"},
    "samples-3": {"samples": 3},
}
each_case = pytest.mark.parametrize(("name", "kind"), CASES)
WAYS = [(name, how) for name in METHODS for how in COARSE if name != "ab3" or how == "matched"]


def test_all_steppers_of_the_registry_have_their_formulas() -> None:
    """Those of Euler and Verlet are in `reference`."""
    assert {type(m.stepper) for m in METHODS.values()} == {REGISTRY[n] for n in set(REGISTRY) - {"euler", "verlet"}}


# ---- whole trunks ----------------------------------------------------------------------------------------------------


@lru_cache
def expected(name: str, kind: str) -> tuple[Tensor, ...]:
    """y_N, the gradient of Σ c·y_N with respect to y_0, and those of all weights, by autograd on the formulas."""
    chain, (y, c) = chain_of(trunk(kind, METHODS[name].stepper, N), kind), data()
    theta = {n: t.clone().requires_grad_() for n, t in chain.theta.items()}
    out = METHODS[name].out(chain._replace(theta=theta), y.requires_grad_())
    return out.detach(), *torch.autograd.grad(out, [y, *theta.values()], c)


def data() -> tuple[Tensor, Tensor]:
    return normal(BATCH, WIDTH), normal(BATCH, WIDTH, seed=1)


@each_case
@pytest.mark.parametrize("how", list(SOLVERS))
def test_output_and_gradients_are_those_of_the_formulas(name: str, kind: str, how: str) -> None:
    made, (y, c) = trunk(kind, METHODS[name].stepper, N, *SOLVERS[how]), data()
    out = made(y.requires_grad_())
    out.backward(c)
    found = [out.detach(), y.grad, *(p.grad for p in made.theta.values())]
    for one, true in zip(found, expected(name, kind), strict=True):
        assert error(one, true) < 1e-11


@each_case
def test_the_plain_twin_is_the_formula(name: str, kind: str) -> None:
    made, (y, _) = trunk(kind, METHODS[name].stepper, N), data()
    assert error(made.as_sequential()(y).detach(), expected(name, kind)[0]) < 1e-13


@pytest.mark.parametrize("name", list(METHODS))
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_few_layers(name: str, layers: int) -> None:
    """Down to one, so that AB3 has no more than its start."""
    kind, y = METHODS[name].kinds[0], data()[0]
    made = trunk(kind, METHODS[name].stepper, layers, MGRIT(coarsening=2, cycles=2), T=0.3 * layers)
    assert error(made(y).detach(), METHODS[name].out(chain_of(made, kind), y)) < 1e-13


# ---- coarse steps ----------------------------------------------------------------------------------------------------


def coarse_of(method: Method, chain: Chain, spans: list[tuple[int, int]], options: MGRIT) -> CoarseSteps:
    module = trunk(chain.kind, method.stepper, 1)._stack.module
    lengths = [tuple(q - p for p, q in parts(span, options.samples)) for span in spans]
    rows = dict(zip(spans, (method.stepper.rows(cut, options) for cut in lengths), strict=True))
    theta = Restriction(spans, [0] * len(spans), Slab(chain.layers, Comm()), rows.__getitem__)(chain.theta)
    programs = [method.stepper.coarse(cut, chain.h, options) for cut in lengths]
    fields = Stack(module, method.stepper).fields(theta)
    return CoarseSteps(method.stepper.memory, fields, programs, [len(r) for r in rows.values()], 0)


def packed(chain: Chain, x: Tensor) -> Tensor:
    """As the fields hold a state; its own inverse."""
    return x if chain.kind.startswith("user") else x.transpose(1, 2).contiguous()


def state(method: Method, seed: int = 0) -> Tensor:
    return normal(method.stepper.memory, BATCH, WIDTH, seed=seed)


@pytest.mark.parametrize(("name", "how"), WAYS)
@pytest.mark.parametrize("user", [False, True])
def test_coarse_step_is_its_formula(name: str, how: str, user: bool) -> None:
    """For intervals of full length and shorter ones; the transpose by a dot test."""
    method, options = METHODS[name], MGRIT(coarsening=5, **COARSE[how])
    chain = random_chain(method.kinds[-1 if user else 0], 14, 0.1)
    spans = [(0, 5), (5, 10), (10, 11), (11, 13), (13, 14)]
    steps = coarse_of(method, chain, spans, options)
    for k, (a, b) in enumerate(spans):
        x, v, w = state(method, k), state(method, 10 + k), state(method, 20 + k)
        G, Jv = torch.func.jvp(lambda x, a=a, b=b: method.coarse(chain, a, b, x, options), (x,), (v,))
        assert error(packed(chain, steps.step(k, packed(chain, x))), G) < 1e-13
        steps.linearize(k, packed(chain, x))
        for _ in range(2):
            back = packed(chain, steps.pull(k, packed(chain, w)))
            assert (v * back).sum().item() == pytest.approx((Jv * w).sum().item(), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_short_intervals_are_exact(name: str, how: str) -> None:
    """One layer is its own coarse step; with AB3 one or two."""
    method = METHODS[name]
    chain = random_chain(method.kinds[0], 4, 0.4)
    spans = [(0, 1), (1, 3), (3, 4)] if name == "ab3" else [(j, j + 1) for j in range(4)]
    steps = coarse_of(method, chain, spans, MGRIT(coarsening=4, **COARSE[how]))
    for k, (a, b) in enumerate(spans):
        x = state(method, k)
        assert error(packed(chain, steps.step(k, packed(chain, x))), method.run(chain, a, b, x)) < 1e-14


def local_slope(name: str, kind: str, how: str) -> float:
    """Slope of |G(x) − m steps of Φ| in H = m h, the weights smooth; x is a state as layers leave it."""
    errors, m, before, widths = [], 8, 3, (0.16, 0.08, 0.04, 0.02)
    method, options = METHODS[name], MGRIT(coarsening=m, **COARSE[how])
    for H in widths:
        chain = smooth_chain(kind, before + m, H / m)
        x = method.run(chain, 0, before, method.lift(chain, data()[0]))
        found = coarse_of(method, chain, [(before, before + m)], options).step(0, packed(chain, x))
        errors.append(error(packed(chain, found), method.run(chain, before, before + m, x)))
    return slope(widths, errors)


@each_case
def test_matched_coarse_steps_agree_to_third_order(name: str, kind: str) -> None:
    assert local_slope(name, kind, "matched") >= 3 - 0.15


@pytest.mark.parametrize(("name", "how"), [w for w in WAYS if w[1] != "matched"])
def test_other_coarse_steps_agree_to_second_order(name: str, how: str) -> None:
    assert local_slope(name, METHODS[name].kinds[0], how) >= (3 if how == "samples-3" else 2) - 0.15


# ---- solves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "how"), WAYS)
def test_two_levels_are_exact_after_as_many_cycles_as_intervals(name: str, how: str) -> None:
    """Forward and back, however far off the coarse propagator is."""
    method, kind, m = METHODS[name], METHODS[name].kinds[0], 5
    options = MGRIT(coarsening=m, cycles=math.ceil(N / m), **COARSE[how])
    made, (y, c) = trunk(kind, method.stepper, N, options, options), data()
    out = made(y.requires_grad_())
    out.backward(c)
    for found, true in zip((out.detach(), y.grad), expected(name, kind), strict=False):
        assert error(found, true) < 1e-12


@pytest.mark.parametrize("name", list(METHODS))
def test_a_cycle_gains_digits(name: str) -> None:
    """Weights smooth in j: from the first coarse solve on the error falls quickly."""
    method, kind = METHODS[name], METHODS[name].kinds[0]
    chain, errors = smooth_chain(kind, 48, 1 / 48), []
    for cycles in range(3):
        made = trunk(kind, method.stepper, 48, MGRIT(coarsening=6, cycles=cycles), T=1.0)
        made.load_state_dict(chain.theta)
        errors.append(error(made(data()[0]).detach(), method.out(chain, data()[0])))
    assert errors[0] < 1e-2
    assert errors[1] < 0.05 * errors[0]
    assert errors[2] < 0.05 * errors[1] or errors[2] < 1e-13
    assert made.gather_state_dict()[next(iter(chain.theta))].dtype == F64
