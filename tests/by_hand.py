"""RK4, AB3 and leapfrog with their coarse steps, written down a second time in plain torch, one layer after the other.

As in `reference`, nothing here comes from the package but the objects under test.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from reference import F64, Net, normal
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, Serial
from lpnet.slab import Comm
from lpnet.steppers import AB3, RK4, Leapfrog, Stepper

WIDTH = 4
Weights = dict[str, Tensor]
FIRST_ORDER = ("dense", "two_layer", "antisymmetric", "user")
SECOND_ORDER = ("second_order", "user second order")


class Sine(nn.Module):
    """y' = sin(Wy + c), as a user would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, y: Tensor) -> Tensor:
        return torch.sin(self.inner(y))


class Spring(nn.Module):
    """y'' = −sin(Wy + c)."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def kick(self, y: Tensor) -> Tensor:
        return -torch.sin(self.inner(y))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "dense": lambda: lpnet.dynamics.Dense(WIDTH),
    "two_layer": lambda: lpnet.dynamics.TwoLayer(WIDTH, hidden=3),
    "antisymmetric": lambda: lpnet.dynamics.Antisymmetric(WIDTH),
    "second_order": lambda: lpnet.dynamics.SecondOrder(WIDTH, hidden=3),
    "user": Sine,
    "user second order": Spring,
}


class Chain(NamedTuple):
    """N layers: kind of dynamics, stacked weights name -> (N, ...), layer step."""

    kind: str
    theta: Weights
    h: float

    @property
    def layers(self) -> int:
        return len(next(iter(self.theta.values())))

    def at(self, j: int) -> Weights:
        return {name: stack[j] for name, stack in self.theta.items()}

    def f(self, w: Weights, y: Tensor) -> Tensor:
        """dy/dt, or d²y/dt² of a second-order dynamics."""
        if self.kind not in ("user", "user second order"):
            return Net(self.kind, self.theta, self.h).f(w, y)
        k = torch.sin(y @ w["inner.weight"].T + w["inner.bias"])
        return k if self.kind == "user" else -k


def chain_of(made: lpnet.LayerParallel, kind: str) -> Chain:
    """The layers of a trunk; collective."""
    return Chain(kind, made.gather_state_dict(), made.h)


def random_chain(kind: str, layers: int, h: float) -> Chain:
    """Weights that differ from layer to layer."""
    named = MODULES[kind]().named_parameters()
    return Chain(kind, {n: 0.7 * normal(layers, *p.shape, seed=i) for i, (n, p) in enumerate(named)}, h)


def smooth_chain(kind: str, layers: int, h: float) -> Chain:
    """Weights θ(t_j), a quadratic in t_j = jh."""
    t, theta = torch.arange(layers, dtype=F64) * h, {}
    for i, (name, p) in enumerate(MODULES[kind]().named_parameters()):
        powers = [(t**k).reshape(layers, *[1] * p.ndim) for k in range(3)]
        theta[name] = sum((0.5 * normal(*p.shape, seed=10 * i + k) * powers[k] for k in range(3)), torch.zeros(()))
    return Chain(kind, theta, h)


def trunk(
    kind: str, stepper: Stepper, layers: int, forward: Any = None, adjoint: Any = None, **more: Any
) -> lpnet.LayerParallel:
    """A trunk with the weights of `random_chain`, exact and on this rank alone unless told otherwise."""
    solvers = {"forward": forward or Serial(), "adjoint": adjoint or Serial()}
    settings = {"T": 2.0, "comm": Comm(), "dtype": F64} | solvers | more
    made = lpnet.LayerParallel(MODULES[kind](), layers, stepper=stepper, **settings)
    made.load_state_dict(random_chain(kind, layers, made.h).theta)
    return made


# ---- RK4 -------------------------------------------------------------------------------------------------------------


def rk4(chain: Chain, H: float, y: Tensor, weights: tuple[Weights, Weights, Weights]) -> Tensor:
    """The textbook step, weights at its beginning, middle and end."""
    begin, middle, end = weights
    k1 = chain.f(begin, y)
    k2 = chain.f(middle, y + H / 2 * k1)
    k3 = chain.f(middle, y + H / 2 * k2)
    k4 = chain.f(end, y + H * k3)
    return y + H * (k1 / 6 + k2 / 3 + k3 / 3 + k4 / 6)


def line(chain: Chain, a: int, b: int, at: tuple[float, ...]) -> tuple[Weights, ...]:
    """The least-squares line through the weights of the layers a, …, b − 1, at these places from its centre."""
    t = np.arange(b - a) - (b - a - 1) / 2
    fit = torch.from_numpy(np.linalg.pinv(np.stack([np.ones_like(t), t], axis=1)))
    mean_and_slope = {name: torch.tensordot(fit, stack[a:b], 1) for name, stack in chain.theta.items()}
    return tuple({name: mean + place * slope for name, (mean, slope) in mean_and_slope.items()} for place in at)


def _one_step_lift(chain: Chain, y: Tensor) -> Tensor:
    return y[None]


def _rk4_step(chain: Chain, j: int, x: Tensor) -> Tensor:
    return rk4(chain, chain.h, x[0], (chain.at(j),) * 3)[None]


def _cuts(a: int, b: int, samples: int) -> list[tuple[int, int]]:
    s = min(samples, b - a)
    return list(pairwise(a + i * (b - a) // s for i in range(s + 1)))


def _flat(chain: Chain, p: int, q: int, options: MGRIT) -> Weights:
    inject = options.coarse_weights == "inject"
    return {name: stack[p] if inject else stack[p:q].mean(0) for name, stack in chain.theta.items()}


def _rk4_coarse(chain: Chain, a: int, b: int, x: Tensor, options: MGRIT) -> Tensor:
    y = x[0]
    for p, q in _cuts(a, b, options.samples):
        n, flat = q - p, _flat(chain, p, q, options)
        matched = options.coarse == "matched" and options.coarse_weights == "mean"
        begin, middle, end = line(chain, p, q, (-n / 2, 0.0, n / 2)) if matched else (flat,) * 3
        y = rk4(chain, n * chain.h, y, (begin, middle, end))
    return y[None]


# ---- AB3 -------------------------------------------------------------------------------------------------------------


def _history(chain: Chain, y: Tensor, end: Weights, one: Weights, two: Weights) -> tuple[Tensor, Tensor]:
    """f one and two steps h before y, found by two steps of Heun's method backwards."""
    h, f = chain.h, chain.f
    k = f(end, y)
    y1 = y - h * (k + f(one, y - h * k)) / 2
    f1 = f(one, y1)
    y2 = y1 - h * (f1 + f(two, y1 - h * f1)) / 2
    return f1, f(two, y2)


def _ab3_lift(chain: Chain, y: Tensor) -> Tensor:
    w = chain.at(0)
    return torch.stack([y, *_history(chain, y, w, w, w)])


def _ab3_step(chain: Chain, j: int, x: Tensor) -> Tensor:
    y, f1, f2 = x
    f0 = chain.f(chain.at(j), y)
    return torch.stack([y + chain.h / 12 * (23 * f0 - 16 * f1 + 5 * f2), f0, f1])


def _ab3_coarse(chain: Chain, a: int, b: int, x: Tensor, options: MGRIT) -> Tensor:
    n = b - a
    if n < 3:
        for j in range(a, b):
            x = _ab3_step(chain, j, x)
        return x
    begin, middle, end = line(chain, a, b, ((1 - n) / 2, 0.5, (1 + n) / 2))
    y = rk4(chain, n * chain.h, x[0], (begin, middle, end))
    one, two = chain.at(b - 1), chain.at(b - 2)
    beyond = {name: 2 * one[name] - two[name] for name in one}
    return torch.stack([y, *_history(chain, y, beyond, one, two)])


# ---- leapfrog --------------------------------------------------------------------------------------------------------


def _leapfrog_lift(start: str, chain: Chain, y: Tensor) -> Tensor:
    """The velocity half a step before 0, from rest at 0; or zero."""
    v = -chain.h / 2 * chain.f(chain.at(0), y)
    return torch.stack([y, v if start == "half" else torch.zeros_like(y)])


def _leapfrog_step(chain: Chain, j: int, x: Tensor) -> Tensor:
    y, v = x
    before = y - chain.h * v
    after = 2 * y - before + chain.h**2 * chain.f(chain.at(j), y)
    return torch.stack([after, (after - y) / chain.h])


def _leapfrog_coarse(chain: Chain, a: int, b: int, x: Tensor, options: MGRIT) -> Tensor:
    y, v = x
    for p, q in _cuts(a, b, options.samples):
        H, w = (q - p) * chain.h, _flat(chain, p, q, options)
        matched = options.coarse == "matched"
        v = v + ((H + chain.h) / 2 if matched else H) * chain.f(w, y)
        y = y + H * v
        v = v + ((H - chain.h) / 2 if matched else 0.0) * chain.f(w, y)
    return torch.stack([y, v])


class Method(NamedTuple):
    """A stepper next to its formulas: x_0 from y_0, one layer, G over the layers a, …, b − 1."""

    stepper: Stepper
    kinds: tuple[str, ...]
    lift: Callable[[Chain, Tensor], Tensor]
    step: Callable[[Chain, int, Tensor], Tensor]
    coarse: Callable[[Chain, int, int, Tensor, MGRIT], Tensor]

    def run(self, chain: Chain, a: int, b: int, x: Tensor) -> Tensor:
        """x_b from x_a."""
        for j in range(a, b):
            x = self.step(chain, j, x)
        return x

    def out(self, chain: Chain, y: Tensor) -> Tensor:
        """y_N."""
        return self.run(chain, 0, chain.layers, self.lift(chain, y))[0]


METHODS = {
    "rk4": Method(RK4(), FIRST_ORDER, _one_step_lift, _rk4_step, _rk4_coarse),
    "ab3": Method(AB3(), FIRST_ORDER, _ab3_lift, _ab3_step, _ab3_coarse),
    "leapfrog": Method(Leapfrog(), SECOND_ORDER, partial(_leapfrog_lift, "half"), _leapfrog_step, _leapfrog_coarse),
    "leapfrog from zero": Method(
        Leapfrog("zero"), SECOND_ORDER, partial(_leapfrog_lift, "zero"), _leapfrog_step, _leapfrog_coarse
    ),
}
CASES = [(name, kind) for name, method in METHODS.items() for kind in method.kinds]
