"""Two-level MGRIT over the layers of a tanh ResNet in its plainest form, for the experiments of docs/notes.

    sweep    F_k(c_k), m exact layers from every C-point
    coarse   u_{k+1} = G_k(u_k) + F_k(c_k) − G_k(c_k),  c ← u

G is the family of `lpnet.steppers.Euler`, p passes of Picard iteration over s parts of the interval. The C-points of a
solve are one tensor (intervals, width, batch); the adjoint is the same solver on the transposed Jacobians.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

RANKS = 32


class Net(NamedTuple):
    """N layers x + h tanh(Kx + b), input x0 (width, batch), classifier W, labels."""

    K: Tensor
    b: Tensor
    h: float
    x0: Tensor
    W: Tensor
    c: Tensor
    label: Tensor

    def bar(self, x: Tensor) -> Tensor:
        """∂loss/∂x_N."""
        p = torch.softmax(self.W @ x + self.c, 0) - one_hot(self.label, len(self.W)).T
        return self.W.T @ p / x.shape[1]


@dataclass(frozen=True)
class Options:
    """What is varied; `cut`, `parts`: measure by which intervals and their parts are cut (None: equal lengths)."""

    m: int = 16
    s: int = 1
    p: int = 2
    inject: bool = False
    cut: str | None = None
    parts: str | None = None
    relax: float | None = None  # ω of FCF; None: F
    weight: float = 1.0  # of the correction
    mix: str | None = None  # Anderson (for the adjoint: GMRES) with coefficients for "all" examples or for "each"

    def cost(self, net: Net, cycles: int) -> list[float]:
        """Critical path of a solve with a coarse start on `RANKS` ranks, in layers of the exact chain.

        Returns:
            [all evaluations one after the other, parts of an interval at once (depth)], and the same two where a rank
            begins its next cycle while the coarse chain still runs through later ranks (never so with `mix`).
        """
        N = len(net.K)
        n, own = -(-N // self.m), max(1.0, N / RANKS / self.m)
        sweep = max(-(-N // RANKS), *(b - a for a, b in pairwise(cuts(net, self))))
        sweeps = ((1 if self.relax is None else 2) * cycles + 1) * sweep
        steps = (self.s * self.p, self.p)
        waiting = [(sweeps + (cycles + 1) * n * one) / N for one in steps]
        if self.mix:
            return waiting * 2
        return waiting + [(sweeps + (n + cycles * own) * one) / N for one in steps]


# ---- cutting ---------------------------------------------------------------------------------------------------------


def measure(net: Net, kind: str, m: int) -> np.ndarray:
    """What layers count for a cut: |θ_j − θ_{j−1}| ("jump"), |θ_j − mean over m layers| ("mean"), or |θ_j| ("size")."""
    theta = torch.cat([net.K.flatten(1), net.b.flatten(1)], 1)
    if kind == "jump":
        theta = torch.cat([theta[1:2] - theta[:1], theta[1:] - theta[:-1]])
    if kind == "mean":
        total = pad(theta.cumsum(0), (0, 0, 1, 0))
        j = torch.arange(len(theta))
        lo, hi = (j - m // 2).clamp(0), (j + m // 2).clamp(1, len(theta))
        theta = theta - (total[hi] - total[lo]) / (hi - lo)[:, None]
    found = theta.norm(dim=1).numpy()
    return found + found.mean()  # half of it uniform, lest some intervals become much longer than m


def divide(weights: np.ndarray, n: int) -> list[int]:
    """Cut so many layers into n runs of about equal sum, none of them empty."""
    total = np.concatenate([[0.0], np.cumsum(weights)])
    at = np.searchsorted(total, total[-1] * np.arange(1, n) / n)
    for i in range(n - 1):
        at[i] = min(max(at[i], (at[i - 1] if i else 0) + 1), len(weights) - (n - 1 - i))
    return [0, *map(int, at), len(weights)]


def cuts(net: Net, o: Options) -> list[int]:
    """Bounds of the intervals."""
    N = len(net.K)
    return [*range(0, N, o.m), N] if o.cut is None else divide(measure(net, o.cut, o.m), -(-N // o.m))


# ---- propagators, forward and adjoint --------------------------------------------------------------------------------


class Forward:
    """F and G over all intervals; shorter intervals are filled with layers of weight zero, which do nothing."""

    def __init__(self, net: Net, o: Options) -> None:
        self.net, self.o = net, o
        spans = list(pairwise(cuts(net, o)))
        L, N = max(b - a for a, b in spans), len(net.K)
        self.at = torch.tensor([[*range(a, b)] + [N] * (L - b + a) for a, b in spans])
        self.K, self.b = (torch.cat([t, torch.zeros_like(t[:1])])[self.at] for t in (net.K, net.b))
        sizes = np.ones(N) if o.parts is None else measure(net, o.parts, o.m)
        self.parts = [self._parts(a, b, sizes[a:b]) for a, b in spans]
        self.x0, self.n = net.x0, len(spans)

    def _parts(self, a: int, b: int, sizes: np.ndarray) -> tuple[Tensor, ...]:
        s, net, h = min(self.o.s, b - a), self.net, self.net.h
        if self.o.parts is None:
            local = [i * (b - a) // s for i in range(s + 1)]
        else:
            local = divide(sizes, s)
        rows = [(a + p, a + p + 1 if self.o.inject else a + q) for p, q in pairwise(local)]
        H = h * torch.tensor([float(q - p) for p, q in pairwise(local)], dtype=net.K.dtype)
        M = H.expand(s, s).tril(-1) + torch.diag((H - h) / 2)
        K, b_ = (torch.stack([t[p:q].mean(0) for p, q in rows]) for t in (net.K, net.b))
        return K, b_, H, M

    def sweep(self, c: Tensor) -> Tensor:
        """F_k(c_k) of all intervals; states and σ' are kept."""
        self.c, self.x, self.slope = c, [], []
        for j in range(self.at.shape[1]):
            self.x.append(c)
            a = torch.tanh(self.K[:, j] @ c + self.b[:, j])
            self.slope.append(self.net.h * (1 - a * a))
            c = c + self.net.h * a
        return c

    def step(self, k: int, y: Tensor) -> Tensor:
        """G_k(y)."""
        return self.linearized(k, y)[0]

    def linearized(self, k: int, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        """G_k(y), and σ' in all passes."""
        K, b, H, M = self.parts[k]
        u, slopes = y.expand(len(K), *y.shape), []
        for _ in range(self.o.p):
            a = torch.tanh(K @ u + b)
            slopes.append(1 - a * a)
            u = y + (M @ a.flatten(1)).view_as(a)
        return y + torch.tensordot(H, a, 1), slopes


class Adjoint:
    """Transposed Jacobians of F and G at the states of the last forward sweep, on the reversed index."""

    def __init__(self, forward: Forward, z: Tensor) -> None:
        self.forward, self.x0, self.n = forward, z, forward.n
        self.slopes = [forward.linearized(k, c)[1] for k, c in enumerate(forward.c)]

    def sweep(self, c: Tensor) -> Tensor:
        c, f = c.flip(0), self.forward
        self.z = [c] * len(f.x)
        for j in reversed(range(len(f.x))):
            self.z[j] = c
            c = c + f.K[:, j].mT @ (f.slope[j] * c)
        return c.flip(0)

    def step(self, k: int, z: Tensor) -> Tensor:
        K, _, H, M = self.forward.parts[self.n - 1 - k]
        out, bar = z, H[:, None, None] * z
        for slope in reversed(self.slopes[self.n - 1 - k]):
            y = K.mT @ (slope * bar)
            out = out + y.sum(0)
            bar = (M.T @ y.flatten(1)).view_as(y)
        return out

    def gradient(self) -> tuple[Tensor, Tensor]:
        """Gradients of K and b of all layers after a sweep."""
        f = self.forward
        a = torch.stack([s * z for s, z in zip(f.slope, self.z, strict=True)], 1)  # (intervals, layers, width, batch)
        real = f.at < len(f.net.K)
        return (a @ torch.stack(f.x, 1).mT)[real], a.sum(-1, keepdim=True)[real]


Problem = Forward | Adjoint
Sweep = tuple[Tensor, Tensor, Tensor]


# ---- the solver ------------------------------------------------------------------------------------------------------


def chain(q: Problem, rhs: Tensor | None) -> tuple[Tensor, Tensor]:
    """u_{k+1} = G_k(u_k) + rhs_{k+1} and G_k(u_k), both (n, width, batch); the last G stays zero, nobody needs it."""
    u, G = [q.x0], []
    for k in range(q.n - 1):
        G.append(q.step(k, u[-1]))
        u.append(G[-1] if rhs is None else G[-1] + rhs[k + 1])
    return torch.stack(u), torch.stack([*G, torch.zeros_like(q.x0)])


def coarse(q: Problem, c: Tensor) -> Tensor:
    """G_k(c_k) of all intervals but the last."""
    return torch.stack([*(q.step(k, c[k]) for k in range(q.n - 1)), torch.zeros_like(q.x0)])


def after(run: Iterator[Sweep], cycles: int) -> Sweep:
    """What a solve yields after so many cycles."""
    return next(islice(run, cycles, None))


def shifted(F: Tensor, first: Tensor) -> Tensor:
    """Ends of the intervals as values at the C-points."""
    return torch.cat([first[None], F[:-1]])


def solve(q: Problem, o: Options, tau: Tensor | None = None) -> Iterator[Sweep]:
    """Yields (c, F(c), τ) after the sweep that follows the coarse start (with the right-hand side τ) and each cycle."""
    zero = torch.zeros_like(q.x0)
    c, G = chain(q, tau)
    F = q.sweep(c)
    old: list[tuple[Tensor, Tensor]] = []
    while True:
        yield c, F, shifted(F - G, zero)
        start = c
        if o.relax is not None:
            c = c + o.relax * (shifted(F, q.x0) - c)
            G = coarse(q, c)
            F = q.sweep(c)
        u, at_u = chain(q, shifted(F - G, zero))
        c = c + o.weight * (u - c) if o.mix is None else mixed(old, start, u, o.mix)
        G = at_u if o.mix is None and o.weight == 1 else coarse(q, c)
        F = q.sweep(c)


def mixed(old: list[tuple[Tensor, Tensor]], c: Tensor, u: Tensor, how: str) -> Tensor:
    """Anderson acceleration of c ← u with all earlier iterates; linear: a cycle after GMRES (Walker, Ni 2011).

    Inner products over all C-points, together or for each example: one reduction over the ranks a cycle.
    """
    old.append((c, u - c))
    if len(old) == 1:
        return u
    dc, df = (torch.stack([b[i] - a[i] for a, b in pairwise(old)]) for i in (0, 1))
    gamma = torch.linalg.lstsq(_columns(df, how), _columns((u - c)[None], how)).solution[..., 0]  # (batch or 1, k)
    return u - torch.einsum("bk,knwb->nwb", gamma.expand(u.shape[-1], -1), dc + df)


def _columns(t: Tensor, how: str) -> Tensor:
    """(k, n, width, batch) to (batch, n width, k), or (1, batch n width, k)."""
    t = t.flatten(1, 2).movedim(-1, 0)
    return t.mT if how == "each" else t.transpose(0, 1).flatten(1)[None].mT
