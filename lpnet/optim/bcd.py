"""Block coordinate descent in the weights θ and the classifier M of F(θ, M) = E(M; y_N(θ)) + R(θ), one step:

    M ← argmin F(θ, ·)        convex, to tolerance
    θ ← θ + a p               a step of Gauss–Newton–PCG of F(·, M), M held
    M ← argmin F(θ, ·)

No part of a step can increase F as it is evaluated there. After the first step the first minimisation has nothing to
do, unless the batch is another one.

Source: Haber, Ruthotto, Stable architectures for deep neural networks (2017) (block coordinate descent).
"""

from dataclasses import replace

import torch
from torch import Tensor

from lpnet.optim.blocks import TwoBlocks
from lpnet.optim.head import Head, Misfit
from lpnet.optim.problem import Problem
from lpnet.optim.softmax import Softmax
from lpnet.optim.vector import Vector


class Held(Misfit):
    """E for a classifier that is minimised by the next evaluation after `renew`, and held from there on.

    Attributes:
        due: whether the next evaluation minimises.
    """

    def __init__(self, head: Head, tol: float, most: int) -> None:
        super().__init__(head, tol, most)
        self.due = False

    def renew(self) -> None:
        """Let the next evaluation minimise."""
        self.due, self.report = True, None

    def _weights(self, problem: Softmax) -> Tensor:
        if self.due:
            self.due = False
            self._solve(problem)
        return super()._weights(problem)  # in the precision of the layer, the first time as later on


class BlockCoordinateDescent(TwoBlocks):
    """Gauss–Newton–PCG for θ and Newton's method for the classifier in turn; see the module and `TwoBlocks`.

    In its reports `before` and `after` are F before and after all parts of a step, everything else is of the part in θ;
    work for the classifier alone is not counted. Under error control `before` is by the first, rougher evaluation and
    `after` by the solvers of the gradient, so that no step increases F only up to the error of the solves.
    """

    loss: Held
    misfit = Held

    @torch.no_grad()
    def step(self, problem: Problem | None = None, gradient: Vector | None = None) -> float:  # type: ignore[override]
        """See `GaussNewton.step`; with a gradient that is known already, the step begins with that part."""
        problem = self._right(problem)
        if gradient is None:
            self.loss.renew()
        super().step(problem, gradient)
        report, first = self.report, self.loss.report if gradient is None else None
        assert report is not None
        before = report.before + (first.before - first.value if first is not None else 0.0)
        self.loss.renew()
        self.report = replace(report, before=before, after=problem.value(), work=report.work + 0.5)
        return before
