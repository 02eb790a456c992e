"""Nonlinear conjugate gradients over replicated and sharded parameters θ together:

    d = −g + β d_before,    θ ← θ + a d,    a from a line search
    β = max(0, g·(g − g_before) / |g_before|²)      Polak–Ribière+
    β = |g|² / |g_before|²                          Fletcher–Reeves

with a restart d = −g where d is none of descent, where successive gradients are far from orthogonal
(|g·g_before| ≥ 0.2 |g|², Fletcher–Reeves only: Polak–Ribière+ restarts by itself there), and after so many steps.

Sources: Fletcher, Reeves, Function minimization by conjugate gradients (1964); Polak, Ribière (1969); Gilbert, Nocedal,
Global convergence properties of conjugate gradient methods for optimization (1992); the restart of Powell (1977).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lpnet.errors import NonFiniteError
from lpnet.optim import vector
from lpnet.optim.linesearch import Result, Wolfe, is_whole, require
from lpnet.optim.searching import Objective, Search, Searching
from lpnet.optim.vector import Vector

_WOLFE = Wolfe()
_POWELL = 0.2


@dataclass(frozen=True)
class Report:
    """What the last step did.

    Args:
        step: step length a along the direction taken; 0 if none was accepted.
        evaluations: by the line searches (with `Wolfe`, each with its gradient).
        accepted: whether the parameters moved; if not they are bit for bit as before.
        beta: β of the direction taken; 0 after a restart.
    """

    step: float
    evaluations: int
    accepted: bool
    beta: float


class NonlinearCG(Searching):
    """Nonlinear conjugate gradients for networks with and without a trunk; `step` is collective.

    Gradients should be of the same function in all steps (a full batch). The step length that is tried first promises
    the decrease that the last step had to first order; after a restart it is min(1, 1/|g|); both times lr.

    Memory: two copies of this rank's parameters. The state of the optimizer holds all but `search`; whatever it keeps
    of a parameter has its shape, so that it can go over to another number of ranks with the layers.

    Args:
        parameters: one list, no groups.
        lr: multiplies the step length that is tried first, so that the schedules of torch work.
        formula: of β.
        restart: number of steps after which the direction is −g again; None: never for that reason.
        search: line search, `Wolfe` or `Armijo`.

    Attributes:
        report: `Report` of the last step, None before the first.

    Raises:
        InputError: a value is not allowed.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        lr: float = 1.0,
        formula: Literal["polak_ribiere", "fletcher_reeves"] = "polak_ribiere",
        restart: int | None = None,
        search: Search = _WOLFE,
    ) -> None:
        names = ("polak_ribiere", "fletcher_reeves")
        require(formula in names, "formula", formula, f"one of {', '.join(names)}")
        right = restart is None or (is_whole(restart) and restart >= 1)
        require(right, "restart", restart, "a whole number of at least 1, or None")
        require(search is not None, "search", search, "Armijo(...) or Wolfe(...)")
        self.report: Report | None = None
        super().__init__(parameters, search, lr, formula=formula, restart=restart, steps=0, decrease=0.0)

    @torch.no_grad()
    def step(self, closure: Objective, objective: Objective | None = None) -> float:  # type: ignore[override]
        """Take one step; collective.

        Where a direction fails, −g is tried once; where that fails too, the parameters stay as they were, bit for bit.

        Args:
            closure: zeroes the gradients, evaluates the loss, calls ``backward`` and returns the loss; called once, and
                by `Wolfe` at each trial, whose gradients it leaves behind.
            objective: returns the loss, for `Armijo`; called without gradients. None: `closure`.

        Returns:
            The loss before the step.

        Raises:
            NonFiniteError: the loss or the gradient is not finite; nothing was changed.
        """
        loss = self._evaluate(closure)
        g = vector.gradients(self._theta)
        beta, d, slope, size = self._direction(loss, g)
        evaluations = 0
        while True:
            start = self._start(size, slope)
            result = self._move(closure, objective, loss, d, slope, start) if slope < 0 else Result(0.0, loss, 0, False)
            evaluations += result.evaluations
            if result.accepted or beta == 0:
                break
            beta, d, slope = 0.0, [-t for t in g], -size * size
            self._group["steps"] = 0
        self._keep(g, d, result, slope)
        self.report = Report(result.step, evaluations, result.accepted, beta)
        return loss

    def _direction(self, loss: float, g: Vector) -> tuple[float, Vector, float, float]:
        """β, d, the slope g·d, and |g|."""
        earlier = self._group["steps"] > 0
        before, d = (self._stored("gradient"), self._stored("direction")) if earlier else (g, g)
        gg, gb, bb, gd = self._dots([(g, g), (g, before), (before, before), (g, d)])
        size = math.sqrt(gg)
        if not (math.isfinite(loss) and math.isfinite(size)):
            raise NonFiniteError(f"NonlinearCG: the loss is {loss:g} and the norm of the gradient {size:g}")
        beta = self._beta(gg, gb, bb) if earlier else 0.0
        slope = beta * gd - gg
        if beta == 0 or not -math.inf < slope < 0:
            return 0.0, [-t for t in g], -gg, size
        return beta, vector.combination([-1.0, beta], [g, d]), slope, size

    def _beta(self, gg: float, gb: float, bb: float) -> float:
        restart = self._group["restart"]
        if bb == 0 or (restart is not None and self._group["steps"] % restart == 0):
            return 0.0
        if self._group["formula"] == "polak_ribiere":
            return max(0.0, (gg - gb) / bb)
        return 0.0 if abs(gb) >= _POWELL * gg else gg / bb

    def _start(self, size: float, slope: float) -> float:
        """The step length that is tried first, but for lr."""
        decrease = self._group["decrease"]
        return decrease / slope if self._group["steps"] and decrease < 0 else 1 / max(1.0, size)

    def _keep(self, g: Vector, d: Vector, result: Result, slope: float) -> None:
        """For the next step."""
        if not result.accepted:
            self._group.update(steps=0, decrease=0.0)
            return
        self._store("gradient", g)
        self._store("direction", d)
        self._group["steps"] += 1
        self._group["decrease"] = result.step * slope
