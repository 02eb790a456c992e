"""L-BFGS over replicated and sharded parameters θ together, with a line search:

    θ ← θ + a d,    d = −H g,    g = ∇loss(θ)
    H = γ I, then for each pair (s, y), the oldest first:  H ← (I − ρ s yᵀ) H (I − ρ y sᵀ) + ρ s sᵀ,   ρ = 1/s·y

with s = θ − θ_before, y = g − g_before of two successive steps, and γ = s·y / y·y of the newest pair.

H g is a combination of g and of the pairs, whose coefficients the two-loop recursion finds from inner products alone.
Those that a step adds are taken in one collective; the recursion on vectors would wait for one after the other. With k
pairs these are 4 k + 2 products instead of about 2 k, at one latency instead of 2 k.

Sources: Nocedal, Updating quasi-Newton matrices with limited storage (1980); Liu, Nocedal, On the limited memory BFGS
method for large scale optimization (1989); on inner products alone: Chen, Wang, Zhou, Large-scale L-BFGS using
MapReduce (2014).
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor

from lpnet.errors import NonFiniteError
from lpnet.optim import vector
from lpnet.optim.linesearch import Armijo, Result, is_number, is_whole, require
from lpnet.optim.searching import Objective, Search, Searching
from lpnet.optim.vector import Vector

_ARMIJO = Armijo()


@dataclass(frozen=True)
class Report:
    """What the last step did.

    Args:
        step: step length a along the direction taken; 0 if none was accepted.
        evaluations: of the objective, by the line searches.
        accepted: whether the parameters moved; if not they are bit for bit as before.
        pairs: number of pairs (s, y) in memory.
        skipped: whether the new pair was left out, its curvature being too small (as is that of a step not accepted).
    """

    step: float
    evaluations: int
    accepted: bool
    pairs: int
    skipped: bool


@dataclass(frozen=True)
class _Products:
    """Inner products g·g, s_i·g and y_i·g, the oldest pair first."""

    gg: float
    sg: list[float]
    yg: list[float]


@dataclass(frozen=True)
class _Direction:
    """Direction d, slope g·d, and the step length that is tried first (but for lr)."""

    d: Vector
    slope: float
    start: float


class LBFGS(Searching):
    """Limited-memory BFGS for networks with and without a trunk; `step` is collective.

    One gradient a step: pairs are formed from the gradients of successive steps. These should be of the same function
    (a full batch); where they are inexact or of changing batches, the guard of the curvature keeps H positive.

    Memory: 2 k + 2 copies of this rank's parameters for k pairs. The state of the optimizer holds all but `search`;
    whatever it keeps of a parameter has its shape, so that it can go over to another number of ranks with the layers.

    Without pairs, and where the direction of the pairs fails, the step is along −g and tried with length
    min(1, 1/|g|) lr first, which moves θ by at most lr; along d = −H g it is lr.

    Args:
        parameters: one list, no groups.
        lr: multiplies the step length that is tried first, so that the schedules of torch work.
        memory: number of pairs, at most.
        curvature: a pair is kept only if s·y > curvature |s| |y|.
        search: line search; None: no search, the step first tried is taken.

    Attributes:
        report: `Report` of the last step, None before the first.

    Raises:
        InputError: a value is not allowed.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1.0,
        memory: int = 10,
        curvature: float = 1e-8,
        search: Search | None = _ARMIJO,
    ) -> None:
        require(is_whole(memory) and memory >= 1, "memory", memory, "a whole number of at least 1")
        require(is_number(curvature) and 0 <= curvature < 1, "curvature", curvature, "a number from 0 to below 1")
        self.report: Report | None = None
        super().__init__(parameters, search, lr, memory=memory, curvature=curvature, **_no_pairs())

    @torch.no_grad()
    def step(self, closure: Objective, objective: Objective | None = None) -> float:  # type: ignore[override]
        """Take one step; collective.

        Where a direction fails (no descent, or no sufficient decrease), the pairs are forgotten and −g is tried once;
        where that fails too, the parameters stay as they were, bit for bit.

        Args:
            closure: zeroes the gradients, evaluates the loss, calls ``backward`` and returns the loss.
            objective: returns the loss, for the line search; called without gradients. None: `closure`, which leaves
                the gradients of the last trial behind.

        Returns:
            The loss before the step.

        Raises:
            NonFiniteError: the loss or the gradient is not finite; nothing was changed.
        """
        loss = self._evaluate(closure)
        skipped, g, products = self._take_in(loss)
        evaluations, result = 0, Result(0.0, loss, 0, False)
        for direction in self._directions(g, products):
            if -math.inf < direction.slope < 0:
                result = self._move(closure, objective, loss, direction.d, direction.slope, direction.start)
                evaluations += result.evaluations
            if result.accepted:
                break
            self._forget()
        self.report = Report(result.step, evaluations, result.accepted, len(self._group["slots"]), skipped)
        return loss

    def _take_in(self, loss: float) -> tuple[bool, Vector, _Products]:
        """Put the pair of the last step into memory: whether it was skipped, the gradient, its inner products."""
        theta, g = self._theta, vector.gradients(self._theta)
        S, Y = self._pairs("s"), self._pairs("y")
        new = "point" in self.state.get(theta[0], {})
        if new:
            S.append(vector.axpy(-1.0, self._stored("point"), vector.copies(theta)))
            Y.append(vector.axpy(-1.0, self._stored("gradient"), g))
        k = len(S)
        asked = [(v, g) for v in (g, *S, *Y)]
        if new:
            asked += [(v, Y[-1]) for v in (*S, *Y)] + [(S[-1], S[-1])]
        found = self._dots(asked)
        gg, sg, yg = found[0], found[1 : k + 1], found[k + 1 : 2 * k + 1]
        if not (math.isfinite(loss) and math.isfinite(gg)):
            raise NonFiniteError(f"LBFGS: the loss is {loss:g} and the norm of the gradient {math.sqrt(gg):g}")
        kept = new and self._remember(S[-1], Y[-1], found[2 * k + 1 :])
        if new and not kept:
            sg, yg = sg[:-1], yg[:-1]
        self._store("point", vector.copies(theta))
        self._store("gradient", g)
        pairs = len(self._group["slots"])
        return new and not kept, g, _Products(gg, sg[-pairs:], yg[-pairs:])

    def _remember(self, s: Vector, y: Vector, products: list[float]) -> bool:
        """Add a pair, if its curvature allows, in place of the oldest where the memory is full.

        Products: s_i·y and y_i·y with all pairs and the new one, then s·s.
        """
        group, k = self._group, len(products) // 2
        sy, yy, ss = products[:k], products[k : 2 * k], products[-1]
        if not sy[-1] > group["curvature"] * math.sqrt(ss * yy[-1]):
            return False
        surplus = max(0, k - group["memory"])
        slots = group["slots"][surplus:]
        free = next(i for i in count() if i not in slots)
        self._store(f"s{free}", s)
        self._store(f"y{free}", y)
        group["slots"] = [*slots, free]
        for key, row in (("sy", sy), ("yy", yy)):
            group[key] = [old[surplus:] for old in group[key][surplus:]] + [row[surplus:]]
        return True

    def _forget(self) -> None:
        """Drop all pairs."""
        for p in self._theta:
            self.state[p] = {name: self.state[p][name] for name in ("point", "gradient")}
        self._group.update(_no_pairs())

    def _directions(self, g: Vector, products: _Products) -> Iterator[_Direction]:
        """d = −H g, where there are pairs, then d = −g."""
        gg, sg, yg = products.gg, products.sg, products.yg
        if self._group["slots"]:
            gamma, alpha, w = two_loops(self._group["sy"], self._group["yy"], sg, yg)
            coefficients = [-gamma, *(gamma * a for a in alpha), *(-x for x in w)]
            slope = math.fsum(c * x for c, x in zip(coefficients, (gg, *yg, *sg), strict=True))
            d = vector.combination(coefficients, [g, *self._pairs("y"), *self._pairs("s")])
            yield _Direction(d, slope, 1.0)
        yield _Direction([-t for t in g], -gg, 1 / max(1.0, math.sqrt(gg)))

    def _pairs(self, name: str) -> list[Vector]:
        """All s or all y in memory, the oldest first."""
        return [self._stored(f"{name}{i}") for i in self._group["slots"]]


def two_loops(
    sy: list[list[float]], yy: list[list[float]], sg: list[float], yg: list[float]
) -> tuple[float, list[float], list[float]]:
    """γ, α and w of H g = γ (g − Σ_i α_i y_i) + Σ_i w_i s_i, by the two-loop recursion in inner products.

    Args:
        sy, yy: s_j·y_i and y_j·y_i for j ≤ i as [i][j], the oldest pair first; s_i·y_i > 0.
        sg, yg: s_i·g and y_i·g.
    """
    k = len(sy)
    gamma = sy[-1][-1] / yy[-1][-1]
    alpha, w = [0.0] * k, [0.0] * k
    for i in reversed(range(k)):  # α_i = ρ_i s_i·q,  q ← q − α_i y_i
        alpha[i] = (sg[i] - sum(sy[j][i] * alpha[j] for j in range(i + 1, k))) / sy[i][i]
    for i in range(k):  # β_i = ρ_i y_i·r,  r ← r + (α_i − β_i) s_i,  from r = γ q
        yq = yg[i] - sum(yy[max(i, j)][min(i, j)] * alpha[j] for j in range(k))
        beta = (gamma * yq + sum(sy[i][j] * w[j] for j in range(i))) / sy[i][i]
        w[i] = alpha[i] - beta
    return gamma, alpha, w


def _no_pairs() -> dict[str, list[Any]]:
    """What the group says of an empty memory: slots i of the pairs (s_i, y_i), and their inner products."""
    return {"slots": [], "sy": [], "yy": []}
