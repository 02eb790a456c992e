"""Slow, obvious versions of what lpnet computes, for the tests to compare with: plain torch, one layer after the other.

The formulas are those of the method (forward Euler, Verlet, their coarse steps, Parareal), written down a second time;
nothing here is imported from the package except `trunk`, which makes the object under test.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

import lpnet
from lpnet import slab

F64 = torch.float64
Map = Callable[[int, Tensor], Tensor]
KINDS = ("dense", "two_layer", "antisymmetric", "hamiltonian")
"""Dynamics that tests of whole trunks run over,"""
ALL_KINDS = (*KINDS, "double_symmetric", "second_order")
"""and those that tests of single layers run over: all there are."""
ACTIVATIONS = ("tanh", "relu", "smooth_relu", "gelu")


def error(a: Tensor, b: Tensor) -> float:
    """|a − b| / |b|, absolute where b is zero."""
    size = torch.linalg.vector_norm(b).item()
    return torch.linalg.vector_norm(a - b).item() / (size or 1.0)


def slope(steps: Sequence[float], errors: Sequence[float]) -> float:
    """Slope of the least-squares line through (log step, log error)."""
    x = torch.tensor([math.log(s) for s in steps], dtype=F64)
    y = torch.tensor([math.log(e) for e in errors], dtype=F64)
    x, y = x - x.mean(), y - y.mean()
    return ((x * y).sum() / (x * x).sum()).item()


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    """Normal numbers from a generator of their own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64).to(dtype)


# ---- one layer -------------------------------------------------------------------------------------------------------


def sigma(name: str, u: Tensor) -> Tensor:
    """The activations by their definitions."""
    if name == "tanh":
        return (torch.exp(u) - torch.exp(-u)) / (torch.exp(u) + torch.exp(-u))
    if name == "relu":
        return torch.where(u > 0, u, torch.zeros_like(u))
    if name == "gelu":
        return u * 0.5 * (1 + torch.erf(u / math.sqrt(2)))
    eta = 0.1
    inner = u**2 / (4 * eta) + u / 2 + eta / 4
    return torch.where(u.abs() < eta, inner, torch.where(u > 0, u, torch.zeros_like(u)))


class Net(NamedTuple):
    """N layers: kind of dynamics, stacked weights name -> (N, ...), layer step, activation, γ, start of Verlet."""

    kind: str
    theta: dict[str, Tensor]
    h: float
    activation: str = "tanh"
    gamma: float = 0.0
    start: str = "half"

    @property
    def layers(self) -> int:
        return len(next(iter(self.theta.values())))

    def at(self, j: int) -> dict[str, Tensor]:
        return {name: stack[j] for name, stack in self.theta.items()}

    def f(self, w: dict[str, Tensor], y: Tensor) -> Tensor:
        """f(y) with the weights w of one layer; examples in rows."""
        if self.kind == "two_layer":
            return sigma(self.activation, y @ w["K1"].T + w["b"]) @ w["K2"].T
        if self.kind in ("double_symmetric", "second_order"):
            return -sigma(self.activation, y @ w["K"].T + w["b"]) @ w["K"]
        assert self.kind in ("dense", "antisymmetric")
        A = w["K"] - self.gamma * torch.eye(len(w["K"]), dtype=y.dtype)
        A = A - w["K"].T if self.kind == "antisymmetric" else A
        return sigma(self.activation, y @ A.T + w["b"])

    def kick(self, w: dict[str, Tensor], y: Tensor) -> Tensor:
        if self.kind == "second_order":
            return self.f(w, y)
        return -sigma(self.activation, y @ w["K"].T + w["b"])

    def drift(self, w: dict[str, Tensor], z: Tensor) -> Tensor:
        return sigma(self.activation, z @ w["K"] + w["b"])


def fine(net: Net, j: int, x: Tensor) -> Tensor:
    """Φ_j(x): forward Euler, or Verlet on x = (y, z)."""
    w = net.at(j)
    if net.kind != "hamiltonian":
        return x + net.h * net.f(w, x)
    y, z = x
    z = z + net.h * net.kick(w, y)
    y = y + net.h * net.drift(w, z)
    return torch.stack([y, z])


def lift(net: Net, y: Tensor) -> Tensor:
    """x_0 from y_0."""
    if net.kind != "hamiltonian":
        return y[None]
    z = torch.zeros_like(y)
    if net.start == "half":
        z = z - 0.5 * net.h * net.kick(net.at(0), y)
    return torch.stack([y, z])


def run(net: Net, a: int, b: int, x: Tensor) -> Tensor:
    """x_b from x_a by the exact layers."""
    for j in range(a, b):
        x = fine(net, j, x)
    return x


# ---- coarse propagators ----------------------------------------------------------------------------------------------


def part_weights(net: Net, a: int, b: int, options: lpnet.MGRIT) -> list[tuple[int, dict[str, Tensor]]]:
    """(number of layers, θ̄) of the parts of the interval a, …, b − 1."""
    s = min(options.samples, b - a)
    cuts = [a + i * (b - a) // s for i in range(s + 1)]
    found = []
    for p, q in pairwise(cuts):
        inject = options.coarse_weights == "inject"
        found.append((q - p, {n: t[p] if inject else t[p:q].mean(0) for n, t in net.theta.items()}))
    return found


def coarse(net: Net, a: int, b: int, x: Tensor, options: lpnet.MGRIT) -> Tensor:
    """G over the layers a, …, b − 1."""
    parts, h = part_weights(net, a, b, options), net.h
    if net.kind == "hamiltonian":
        return _coarse_verlet(net, parts, x, options)
    if options.coarse == "rediscretized":
        return x + (b - a) * h * net.f(parts[0][1], x)
    if options.samples == 1 and options.passes is None:
        H, w = (b - a) * h, parts[0][1]
        return x + H * net.f(w, x + 0.5 * (H - h) * net.f(w, x))
    passes = options.passes or (2 if options.samples == 1 else 3)
    k = [torch.zeros_like(x)] * len(parts)
    for _ in range(passes):
        new = []
        for i, (n, w) in enumerate(parts):
            before = sum((m * h * k_l for k_l, (m, _) in zip(k[:i], parts[:i], strict=True)), torch.zeros_like(x))
            new.append(net.f(w, x + before + 0.5 * (n * h - h) * k[i]))
        k = new
    return x + sum((n * h * k_i for (n, _), k_i in zip(parts, k, strict=True)), torch.zeros_like(x))


def _coarse_verlet(net: Net, parts: list[tuple[int, dict[str, Tensor]]], x: Tensor, options: lpnet.MGRIT) -> Tensor:
    y, z = x
    h = net.h
    for n, w in parts:
        H = n * h
        ahead, behind = (H, 0.0) if options.coarse == "rediscretized" else ((H + h) / 2, (H - h) / 2)
        z = z + ahead * net.kick(w, y)
        y = y + H * net.drift(w, z)
        z = z + behind * net.kick(w, y)
    return torch.stack([y, z])


# ---- Parareal --------------------------------------------------------------------------------------------------------


class Iterate(NamedTuple):
    """One Parareal iterate: values c at the interval starts, the end F_last(c_last), the relative residual."""

    c: list[Tensor]
    end: Tensor
    residual: float


def parareal(F: Map, G: Map, x0: Tensor, intervals: int, cycles: int, fcf: bool = False) -> list[Iterate]:
    """Textbook Parareal (with `fcf`: one more relaxation), U^{k+1}_{i+1} = G(U^{k+1}_i) + F(U^k_i) − G(U^k_i).

    Source: Gander, Vandewalle, Analysis of the Parareal time-parallel time-integration method (2007).
    """
    c = [x0]
    for i in range(intervals - 1):
        c.append(G(i, c[i]))
    found = [_iterate(F, c)]
    for _ in range(cycles):
        if fcf:
            c = [x0] + [F(i, c[i]) for i in range(intervals - 1)]
        new = [x0]
        for i in range(intervals - 1):
            new.append(G(i, new[i]) + F(i, c[i]) - G(i, c[i]))
        c = new
        found.append(_iterate(F, c))
    return found


def _iterate(F: Map, c: list[Tensor]) -> Iterate:
    ends = [F(i, value) for i, value in enumerate(c)]
    off = sum(((f - u) ** 2).sum().item() for f, u in zip(ends[:-1], c[1:], strict=True))
    size = sum((u**2).sum().item() for u in c[1:])
    return Iterate(c, ends[-1], math.sqrt(off / size) if size else 0.0)


# ---- MGRIT on any number of levels -----------------------------------------------------------------------------------


class Hierarchy(NamedTuple):
    """Step maps of every level, level 0 the exact one, and the coarsening factors."""

    steps: list[Map]
    counts: list[int]
    factors: list[int]


def forward_solve(step: Map, g: list[Tensor]) -> list[Tensor]:
    """u_0 = g_0, u_{i+1} = step_i(u_i) + g_{i+1}."""
    u = [g[0]]
    for i in range(len(g) - 1):
        u.append(step(i, u[i]) + g[i + 1])
    return u


def f_relax(step: Map, m: int, u: list[Tensor], g: list[Tensor]) -> list[Tensor]:
    """All points but every m-th one, from those before them."""
    u = list(u)
    for i in range(len(u) - 1):
        if (i + 1) % m:
            u[i + 1] = step(i, u[i]) + g[i + 1]
    return u


def fas_cycle(H: Hierarchy, level: int, u: list[Tensor], g: list[Tensor], how: tuple[str, str]) -> list[Tensor]:
    """One cycle of the full approximation scheme for u_0 = g_0, u_{i+1} = Φ_i(u_i) + g_{i+1}; how: relaxation, shape.

    Source: Falgout, Friedhoff, Kolev, MacLachlan, Schroder, Parallel time integration with multigrid (2014).
    """
    relaxation, shape = how
    step = H.steps[level]
    if level + 1 == len(H.steps):
        return forward_solve(step, g)
    m, coarse_step = H.factors[level], H.steps[level + 1]
    u = f_relax(step, m, u, g)
    if relaxation == "FCF":
        u = [step(i - 1, u[i - 1]) + g[i] if i and i % m == 0 else u[i] for i in range(len(u))]
        u = f_relax(step, m, u, g)
    v, g_coarse = u[::m], [g[0]]
    for k in range(1, len(v)):
        residual = step(k * m - 1, u[k * m - 1]) + g[k * m] - v[k]
        g_coarse.append(v[k] - coarse_step(k - 1, v[k - 1]) + residual)
    new = fas_cycle(H, level + 1, v, g_coarse, how)
    if shape == "F" and level + 2 < len(H.steps):
        new = fas_cycle(H, level + 1, new, g_coarse, (relaxation, "V"))
    u = [new[i // m] if i % m == 0 else u[i] for i in range(len(u))]
    return f_relax(step, m, u, g)


def coarse_start(H: Hierarchy, level: int, x0: Tensor, relaxation: str) -> list[Tensor]:
    """Nested iteration: values on a level from the coarsest one, with one V-cycle on each level on the way."""
    g = [x0] + [torch.zeros_like(x0)] * (H.counts[level] - 1)
    if level + 1 == len(H.steps):
        return forward_solve(H.steps[level], g)
    c = coarse_start(H, level + 1, x0, relaxation)
    m = H.factors[level]
    u = f_relax(H.steps[level], m, [c[i // m] for i in range(len(g))], g)
    return fas_cycle(H, level, u, g, (relaxation, "V"))


# ---- the object under test -------------------------------------------------------------------------------------------


def stepper(kind: str, start: Any = "half") -> lpnet.steppers.Stepper:
    """The stepper that a dynamics needs."""
    if kind == "second_order":
        return lpnet.steppers.Leapfrog(start)
    return lpnet.steppers.Verlet(start) if kind == "hamiltonian" else lpnet.steppers.Euler()


def dynamics(kind: str, width: int = 4, activation: str = "tanh", gamma: float = 0.0) -> torch.nn.Module:
    """One layer of the registry, with fewer hidden units than features where there are any."""
    own = {"two_layer": {"hidden": 3}, "double_symmetric": {"hidden": 3}, "second_order": {"hidden": 3}}
    more: dict[str, Any] = {"gamma": gamma} if kind in ("dense", "antisymmetric") else own.get(kind, {})
    return lpnet.dynamics.REGISTRY[kind](width, activation, **more)


def trunk(kind: str, layers: int, forward: Any = None, adjoint: Any = None, **more: Any) -> lpnet.LayerParallel:
    """A trunk in float64 with weights that differ from layer to layer, exact unless solvers are given."""
    one = dynamics(kind, more.pop("width", 4), more.pop("activation", "tanh"), more.pop("gamma", 0.0))
    settings = {"T": 3.0, "stepper": stepper(kind, more.pop("start", "half")), "init": "random", "dtype": F64} | more
    solvers = {"forward": forward or lpnet.Serial(), "adjoint": adjoint or lpnet.Serial()}
    made = lpnet.LayerParallel(one, layers, **solvers, **settings)
    for name, p in made.theta.items():
        if name == "b":  # drawn as zero, which would hide what is done with it
            with torch.no_grad():
                rows = [normal(*p.shape[1:], seed=1000 + j).to(p) for j in made.grid.rows]
                p.copy_(0.3 * torch.stack(rows) if rows else p)
    return made


def twin(kind: str, layers: int, forward: Any = None, adjoint: Any = None, **more: Any) -> lpnet.LayerParallel:
    """`trunk` on this rank alone."""
    return trunk(kind, layers, forward, adjoint, **more, comm=slab.Comm())


def net_of(made: lpnet.LayerParallel, kind: str, **more: Any) -> Net:
    """The layers of a trunk, in the terms of this module; collective."""
    return Net(kind, made.gather_state_dict(), made.h, **more)
