"""Φ and G with their transposes: against the formulas, dot tests, and how closely G follows m steps of Φ."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from reference import ACTIVATIONS, F64, KINDS, Net, coarse, dynamics, error, fine, lift, normal, run, slope, stepper
from torch import Tensor

from lpnet import MGRIT
from lpnet.coarse_steps import CoarseSteps
from lpnet.coarsen import Restriction, parts
from lpnet.propagator import Layers
from lpnet.slab import Comm, Slab
from lpnet.stack import Stack
from lpnet.tape import Tape

WIDTH, BATCH = 4, 5
EVERY = [(kind, activation) for kind in KINDS for activation in ACTIVATIONS]
COARSE: dict[str, dict[str, Any]] = {
    "matched": {},
    "injected": {"coarse_weights": "inject"},
    "rediscretized": {"coarse": "rediscretized"},
    "rediscretized-injected": {"coarse": "rediscretized", "coarse_weights": "inject"},
    "samples-2": {"samples": 2},
    "samples-3-injected": {"samples": 3, "coarse_weights": "inject"},
    "samples-4": {"samples": 4},
    "passes-1": {"passes": 1},
    "passes-3": {"passes": 3},
    "samples-2-passes-2": {"samples": 2, "passes": 2},
    "samples-4-passes-4": {"samples": 4, "passes": 4},
}
ALL_COARSE = [(k, how) for k in KINDS for how in COARSE if k != "hamiltonian" or "passes" not in COARSE[how]]


def random_net(kind: str, N: int, h: float, activation: str = "tanh", seed: int = 0) -> Net:
    """Weights that differ from layer to layer."""
    named = dynamics(kind, WIDTH, activation).named_parameters()
    theta = {n: 0.8 * normal(N, *p.shape, seed=seed + i) for i, (n, p) in enumerate(named)}
    return Net(kind, theta, h, activation, gamma=0.2)


def smooth_net(kind: str, N: int, h: float) -> Net:
    """Weights θ(t_j), a quadratic in t, to be looked at for small h."""
    t = torch.arange(N, dtype=F64) * h
    named = dynamics(kind, WIDTH).named_parameters()
    theta = {}
    for i, (n, p) in enumerate(named):
        shape = (N, *[1] * p.ndim)
        terms = [0.5 * normal(*p.shape, seed=10 * i + k) * (t**k).reshape(shape) for k in range(3)]
        theta[n] = terms[0] + terms[1] + terms[2]
    return Net(kind, theta, h)


def fields_of(net: Net, theta: dict[str, Tensor] | None = None) -> Any:
    module = dynamics(net.kind, WIDTH, net.activation, net.gamma).to(F64)
    return Stack(module, stepper(net.kind, net.start)).fields(net.theta if theta is None else theta)


def layers_of(net: Net) -> Layers:
    return Layers(stepper(net.kind, net.start), fields_of(net), net.h, 0, net.layers)


def coarse_of(net: Net, spans: list[tuple[int, int]], options: MGRIT) -> CoarseSteps:
    one = stepper(net.kind)
    cuts = {span: tuple(q - p for p, q in parts(span, options.samples)) for span in spans}
    rows = {span: one.rows(cut, options) for span, cut in cuts.items()}
    theta = Restriction(spans, [0] * len(spans), Slab(net.layers, Comm()), rows.__getitem__)(net.theta)
    programs = [one.coarse(cut, net.h, options) for cut in cuts.values()]
    return CoarseSteps(one.memory, fields_of(net, theta), programs, [len(r) for r in rows.values()], 0)


def state(net: Net, seed: int = 0) -> Tensor:
    """Any state (memory, batch, width)."""
    return normal(stepper(net.kind).memory, BATCH, WIDTH, seed=seed)


def packed(x: Tensor) -> Tensor:
    """Examples in columns, as fields of built-in dynamics want them."""
    return x.transpose(1, 2).contiguous()


def swept(net: Net, cuts: list[int], x: Tensor) -> tuple[Layers, Tape, list[Tensor]]:
    """Layers, the tape of a sweep that starts anew at each cut, and the states x_0, x_1, … it went through."""
    layers = layers_of(net)
    tape = layers.tape(packed(x))
    states: dict[int, Tensor] = {}
    for a, b in reversed(list(pairwise(cuts))):
        u = x + a  # the starts of segments need not fit together
        assert error(layers.run(a, b, packed(u), tape), packed(run(net, a, b, u))) < 1e-13
        for j in range(a, b):
            states[j] = u
            u = fine(net, j, u)
    return layers, tape, [states[j] for j in range(net.layers)]


@pytest.mark.parametrize(("kind", "activation"), EVERY)
def test_states_are_rebuilt_from_the_tape(kind: str, activation: str) -> None:
    net = random_net(kind, 7, 0.4, activation)
    layers, tape, states = swept(net, [0, 3, 5, 7], state(net))
    for j in (6, 0, 4, 3, 2, 5, 1):
        assert error(layers.state(j, tape), packed(states[j])) < 1e-13


@pytest.mark.parametrize(("kind", "activation"), EVERY)
def test_dot_test_of_every_step(kind: str, activation: str) -> None:
    """⟨Jv, w⟩ = ⟨v, Jᵀw⟩, Jv by forward-mode differentiation of the formula."""
    net = random_net(kind, 7, 0.4, activation)
    layers, tape, states = swept(net, [0, 3, 5, 7], state(net))
    layers.reset_grads()
    for j in range(7):
        v, w = state(net, 10 + j), state(net, 30 + j)
        _, Jv = torch.func.jvp(lambda x, j=j: fine(net, j, x), (states[j],), (v,))
        for gradients in (False, True):
            back = layers.pull(j, j + 1, packed(w), tape, gradients)
            assert (v * packed(back)).sum().item() == pytest.approx((Jv * w).sum().item(), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("a", "b"), [(0, 7), (2, 6), (3, 5), (4, 5), (6, 7)])
def test_pull_across_segments(kind: str, a: int, b: int) -> None:
    """Through several segments of the sweep, and through parts of one."""
    net = random_net(kind, 7, 0.4)
    layers, tape, states = swept(net, [0, 3, 5, 7], state(net))
    w = state(net, 9)
    expected = w
    for j in reversed(range(a, b)):
        x = states[j].clone().requires_grad_()
        (expected,) = torch.autograd.grad(fine(net, j, x), x, expected)
    layers.reset_grads()
    assert error(packed(layers.pull(a, b, packed(w), tape, False)), expected) < 1e-12
    assert error(packed(layers.pull(a, b, packed(w), tape, True)), expected) < 1e-12


@pytest.mark.parametrize("start", ["half", "zero"])
def test_lift_and_its_transpose(start: str) -> None:
    net = random_net("hamiltonian", 3, 0.4)._replace(start=start)
    layers, y = layers_of(net), normal(BATCH, WIDTH)
    x = torch.stack([y, torch.zeros_like(y)])
    assert error(layers.lift(packed(x)), packed(lift(net, y))) < 1e-14
    z, leaf = state(net, 5), y.clone().requires_grad_()
    K = net.theta["K"].clone().requires_grad_()
    lifted = lift(net._replace(theta={**net.theta, "K": K}), leaf)
    y_bar, K_bar = torch.autograd.grad(lifted, [leaf, K], z, materialize_grads=True, allow_unused=True)
    layers.reset_grads()
    assert error(packed(layers.pull_lift(packed(x), packed(z), True))[0], y_bar) < 1e-13
    found = layers.fields["kick"].grads()[0]
    assert error(found, K_bar) < 1e-13


@pytest.mark.parametrize(("kind", "how"), ALL_COARSE)
def test_coarse_step_is_its_formula(kind: str, how: str) -> None:
    """For intervals of full length and a shorter last one; the transpose by a dot test."""
    net, options = random_net(kind, 18, 0.1), MGRIT(coarsening=4, **COARSE[how])
    spans = [(0, 4), (4, 8), (8, 12), (12, 16), (16, 18)]
    steps = coarse_of(net, spans, options)
    for k, (a, b) in enumerate(spans):
        x, v, w = state(net, k), state(net, 10 + k), state(net, 20 + k)
        G, Jv = torch.func.jvp(lambda x, a=a, b=b: coarse(net, a, b, x, options), (x,), (v,))
        assert error(packed(steps.step(k, packed(x))), G) < 1e-13
        steps.linearize(k, packed(x))
        steps.step(k, packed(x + 1.0))  # evaluations in between change nothing
        for _ in range(2):
            back = packed(steps.pull(k, packed(w)))
            assert (v * back).sum().item() == pytest.approx((Jv * w).sum().item(), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["matched", "injected", "rediscretized", "samples-2", "samples-4"])
def test_one_layer_is_its_own_coarse_step(kind: str, how: str) -> None:
    net = random_net(kind, 3, 0.4)
    steps = coarse_of(net, [(j, j + 1) for j in range(3)], MGRIT(coarsening=4, **COARSE[how]))
    for j in range(3):
        x = state(net, j)
        assert error(packed(steps.step(j, packed(x))), fine(net, j, x)) < 1e-14


def local_slope(kind: str, options: MGRIT, m: int = 8, widths: tuple[float, ...] = (0.08, 0.04, 0.02, 0.01)) -> float:
    """Slope of |G(x) − m steps of Φ| in H = m h, the weights smooth."""
    errors = []
    for H in widths:
        net = smooth_net(kind, m, H / m)
        x = state(net)
        errors.append(error(packed(coarse_of(net, [(0, m)], options).step(0, packed(x))), run(net, 0, m, x)))
    return slope(widths, errors)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [1, 2, 4])
def test_matched_coarse_steps_agree_to_third_order(kind: str, samples: int) -> None:
    assert local_slope(kind, MGRIT(coarsening=8, samples=samples)) >= 3 - 0.15


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weights", ["mean", "inject"])
def test_rediscretized_coarse_steps_agree_to_second_order(kind: str, weights: Any) -> None:
    options = MGRIT(coarsening=8, coarse="rediscretized", coarse_weights=weights)
    assert local_slope(kind, options) == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize("kind", ["dense", "two_layer", "antisymmetric"])
@pytest.mark.parametrize("passes", [1, 2, 3, 4])
def test_picard_over_the_exact_layers_gains_an_order_a_pass(kind: str, passes: int) -> None:
    options = MGRIT(coarsening=8, samples=8, passes=passes)
    assert local_slope(kind, options, widths=(0.08, 0.04, 0.02)) == pytest.approx(passes + 1, abs=0.15)


@pytest.mark.parametrize("kind", ["dense", "two_layer", "antisymmetric"])
@pytest.mark.parametrize("m", [2, 5])
def test_as_many_passes_as_exact_layers_are_exact(kind: str, m: int) -> None:
    net = random_net(kind, m, 0.5)
    x = state(net)
    for passes in (m - 1, m):
        found = packed(coarse_of(net, [(0, m)], MGRIT(coarsening=m, samples=m, passes=passes)).step(0, packed(x)))
        off = error(found, run(net, 0, m, x))
        assert (off < 1e-13) == (passes == m), off


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_tapes_in_parts_of_the_batch(count: int) -> None:
    """A sweep in parts of the batch, pulled back as a whole or in other parts."""
    net = random_net("hamiltonian", 6, 0.3)
    x, z = packed(state(net)), packed(state(net, 1))
    layers = layers_of(net)
    whole = layers.tape(x)
    end = layers.run(0, 6, x, whole)
    back = layers.pull(0, 6, z, whole, False)
    tapes = [layers.tape(part) for part in layers.split(x, 2)]
    ends = [layers.run(0, 6, part, tape) for part, tape in zip(layers.split(x, 2), tapes, strict=True)]
    assert error(layers.join(ends), end) < 1e-14
    xs = layers.split(x, count)
    others = layers.retape(tapes, len(xs), x)
    bars = [layers.pull(0, 6, part, tape, False) for part, tape in zip(layers.split(z, count), others, strict=True)]
    assert error(layers.join(bars), back) < 1e-13
