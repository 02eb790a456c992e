"""Linearised terms, layers and coarse steps against forward-mode differentiation of the formulas."""

from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from reference import ACTIVATIONS, F64, KINDS, Net, coarse, dynamics, error, lift, normal, run, stepper
from torch import Tensor, nn
from torch.func import functional_call

from lpnet import MGRIT, steppers
from lpnet.coarse_steps import CoarseSteps
from lpnet.coarsen import Restriction, parts
from lpnet.propagator import Layers
from lpnet.slab import Comm, Slab
from lpnet.stack import Stack
from lpnet.tangent import TangentLayers

N, WIDTH, BATCH, H = 7, 4, 5, 0.4
FLOWS = (*KINDS, "double_symmetric")
Weights = dict[str, Tensor]
COARSE: dict[str, dict[str, Any]] = {
    "matched": {},
    "rediscretized-injected": {"coarse": "rediscretized", "coarse_weights": "inject"},
    "samples-2": {"samples": 2},
    "samples-4-passes-3": {"samples": 4, "passes": 3},
}
ALL_COARSE = [(k, how) for k in FLOWS for how in COARSE if k != "hamiltonian" or "passes" not in COARSE[how]]


class Made:
    """Layers of one kind, a change of their weights, and the formulas of both."""

    def __init__(self, kind: str, activation: str = "tanh", start: str = "half") -> None:
        module = dynamics(kind, WIDTH, activation, gamma=0.2).to(F64)
        named = list(module.named_parameters())
        self.theta = {n: 0.8 * normal(N, *p.shape, seed=i) for i, (n, p) in enumerate(named)}
        self.delta = {n: normal(N, *p.shape, seed=50 + i) for i, (n, p) in enumerate(named)}
        self.stepper = stepper(kind, start)
        self.stack = Stack(module, self.stepper)
        self.net = Net(kind, self.theta, H, activation, gamma=0.2, start=start)
        self.layers = Layers(self.stepper, self.stack.fields(self.theta), H, 0, N)
        self.tangent = TangentLayers(self.layers)
        self.tangent.deltas = self.stack.directions(self.theta, self.delta)

    def state(self, seed: int) -> Tensor:
        return normal(self.stepper.memory, BATCH, WIDTH, seed=seed)

    def formula(self, what: Any, x: Tensor, dot: Tensor, change: bool = True) -> Tensor:
        """The change of what(net, x)."""
        delta = self.delta if change else {n: torch.zeros_like(t) for n, t in self.delta.items()}
        return torch.func.jvp(lambda t, x: what(self.net._replace(theta=t), x), (self.theta, x), (delta, dot))[1]


def _run(a: int, b: int, net: Net, x: Tensor) -> Tensor:
    return run(net, a, b, x)


def _coarse(a: int, b: int, options: MGRIT, net: Net, x: Tensor) -> Tensor:
    return coarse(net, a, b, x, options)


def packed(x: Tensor) -> Tensor:
    return x.transpose(1, 2).contiguous()


def test_terms_of_a_module_are_those_of_its_fast_path() -> None:
    """Both fields of the same dynamics, one stage and a batch of parts, with and without a change of the weights."""

    class Plain(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, y: Tensor) -> Tensor:
            return self.inner(y)

    fast, y, dot = Made("two_layer", "gelu"), normal(1, BATCH, WIDTH), normal(1, BATCH, WIDTH, seed=1)
    slow = Stack(Plain(fast.stack.module), fast.stepper)
    theta, delta = ({f"inner.{n}": t for n, t in w.items()} for w in (fast.theta, fast.delta))
    found = []
    for stack, w, d in ((fast.stack, fast.theta, fast.delta), (slow, theta, delta)):
        field, change = stack.fields(w)["f"], stack.directions(w, d)["f"]
        x, u = field.pack(y), field.pack(dot)
        slots = field.slots(2, x)
        slots[0].view.copy_(x[0])
        tape = field.tape(1, x)
        field.add(slots[0], slots[1], H, tape, 3, 0)
        _, kept = field.batch(range(2, 5), x)
        for c in (None, change):
            out = torch.zeros_like(u[0])
            field.tangent(slots[0], u[0], out, H, tape[0], 3, c)
            found += [field.unpack(out[None])[0], field.unpack(field.batch_tangent(range(2, 5), x, u, kept, c))]
            assert error(out, H * field.batch_tangent(range(3, 4), x, u, field.batch(range(3, 4), x)[1], c)[0]) < 1e-13
    for a, b in zip(found[:4], found[4:], strict=True):
        assert error(a, b) < 1e-12
    expected = torch.func.jvp(
        lambda t, y: functional_call(fast.stack.module, t, (y,)),
        ({n: t[3] for n, t in fast.theta.items()}, y[0]),
        ({n: t[3] for n, t in fast.delta.items()}, dot[0]),
    )[1]
    assert error(found[2], H * expected) < 1e-12


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("kind", FLOWS)
def test_layers(kind: str, activation: str) -> None:
    """Through segments of a sweep that do not fit together: each is linearised at its own states."""
    made = Made(kind, activation)
    tape, cuts = made.layers.tape(packed(made.state(0))), [0, 3, 5, 7]
    starts = {a: made.state(a) for a in cuts[:-1]}
    for a, b in reversed(list(pairwise(cuts))):
        made.layers.run(a, b, packed(starts[a]), tape)
    dot = made.state(20)
    expected, still = dot, dot
    for a, b in pairwise(cuts):
        step = partial(_run, a, b)
        expected = made.formula(step, starts[a], expected)
        still = made.formula(step, starts[a], still, change=False)
    assert error(made.tangent.run(0, 7, packed(dot), tape), packed(expected)) < 1e-12
    middle = made.formula(partial(_run, 4, 5), run(made.net, 3, 4, starts[3]), dot)
    assert error(made.tangent.run(4, 5, packed(dot), tape), packed(middle)) < 1e-12
    made.tangent.deltas = None
    assert error(made.tangent.run(0, 7, packed(dot), tape), packed(still)) < 1e-12


@pytest.mark.parametrize("start", ["half", "zero"])
def test_lift(start: str) -> None:
    made, y, dy = Made("hamiltonian", start=start), normal(BATCH, WIDTH), normal(BATCH, WIDTH, seed=1)
    x, dot = (packed(torch.stack([t, torch.zeros_like(t)])) for t in (y, dy))
    assert error(made.tangent.lift(x, dot), packed(made.formula(lift, y, dy))) < 1e-13


@pytest.mark.parametrize(("kind", "how"), ALL_COARSE)
def test_coarse_steps(kind: str, how: str) -> None:
    """The change of θ̄ comes from the layers' in the same way as θ̄ itself."""
    made, options, spans = Made(kind), MGRIT(**COARSE[how]), [(0, 4), (4, 7)]
    cuts = {span: tuple(q - p for p, q in parts(span, options.samples)) for span in spans}
    rows = {span: made.stepper.rows(cut, options) for span, cut in cuts.items()}
    slab = Slab(N, Comm())
    theta, delta = (Restriction(spans, [0, 0], slab, rows.__getitem__)(w) for w in (made.theta, made.delta))
    programs = [made.stepper.coarse(cut, H, options) for cut in cuts.values()]
    fields = made.stack.fields(theta)
    steps = CoarseSteps(made.stepper.memory, fields, programs, [len(r) for r in rows.values()], 0)
    xs = [made.state(1), made.state(2)]
    for k, x in enumerate(xs):
        steps.linearize(k, packed(x))
    for deltas in (made.stack.directions(theta, delta), None):
        for k, (a, b) in enumerate(spans):
            dot = made.state(30 + k)
            expected = made.formula(partial(_coarse, a, b, options), xs[k], dot, deltas is not None)
            assert error(steps.tangent(k, packed(dot), deltas), packed(expected)) < 1e-12


PROGRAMS = {
    "rk4": ("dense", steppers.RK4(), MGRIT(samples=2)),
    "rk4, injected": ("two_layer", steppers.RK4(), MGRIT(coarse_weights="inject")),
    "ab3": ("dense", steppers.AB3(), MGRIT()),
    "leapfrog": ("second_order", steppers.Leapfrog(), MGRIT(samples=2)),
}


def evaluated(program: steppers.Steps, f: Any, x: Tensor) -> Tensor:
    """A program out of place; f(part, y)."""
    slots = dict(enumerate(x))
    for step in program:
        if isinstance(step, steppers.Mix):
            slots[step.target] = sum((c * slots[s] for s, c in step.terms), torch.zeros_like(x[0]))
        else:
            start = slots[step.target if step.start is None else step.start]
            slots[step.target] = start + step.w * f(step.part, slots[step.source])
    return torch.stack([slots[i] for i in range(len(x))])


@pytest.mark.parametrize("which", PROGRAMS)
def test_coarse_steps_of_general_programs(which: str) -> None:
    """Rows of weights and scratch slots: against forward mode on the program itself."""
    kind, stepper, options = PROGRAMS[which]
    made = Made(kind)
    cut = tuple(q - p for p, q in parts((0, N), options.samples))
    rows = torch.from_numpy(stepper.rows(cut, options))
    theta, delta = ({n: torch.tensordot(rows, t, 1) for n, t in w.items()} for w in (made.theta, made.delta))
    program = stepper.coarse(cut, H / 4, options)
    steps = CoarseSteps(stepper.memory, made.stack.fields(theta), [program], [len(rows)], 0)
    x, dot = (normal(stepper.memory, BATCH, WIDTH, seed=i) for i in (1, 2))

    def G(theta: Weights, x: Tensor) -> Tensor:
        f = lambda part, y: made.net._replace(theta=theta).f({n: t[part] for n, t in theta.items()}, y)  # noqa: E731
        return evaluated(program, f, x)

    steps.linearize(0, packed(x))
    expected = torch.func.jvp(G, (theta, x), (delta, dot))[1]
    assert error(steps.tangent(0, packed(dot), made.stack.directions(theta, delta)), packed(expected)) < 1e-12
