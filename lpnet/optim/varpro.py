"""Variable projection: the classifier M is eliminated, and what is left is a function of the other weights θ alone:

    F(θ) = min_M E(M; y_N(θ)) + R(θ),    M*(y) the minimiser,    ∇E(M*; y) = 0 in M
    ∇_y min E = ∂E/∂y (M*, y)                                     for ∂E/∂M = 0 there
    model     r = H W δy,   δM = (∂²E/∂M²)⁻¹ ∂²E/∂M∂u r,   δy -> Wᵀ (r − H δM (y, 1)),   H = ∂²E/∂u²,   u = W y + b

The gradient is that of E with M held, exactly, as far as the convex problem is solved. The model is the Schur
complement of the classifier's block in the Gauss–Newton matrix of (θ, M) together: positive semidefinite, and for least
squares Kaufman's simplification of the method of Golub and Pereyra. A product costs what it costs without elimination.

Sources: Golub, Pereyra, The differentiation of pseudo-inverses and nonlinear least squares problems whose variables
separate (1973); Kaufman, A variable projection method for solving separable nonlinear least squares problems (1975);
Newman, Ruthotto, Hart, van Bloemen Waanders, Train like a (Var)Pro (2021) (cross entropy).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lpnet.optim.blocks import TwoBlocks
from lpnet.optim.head import Misfit, divide
from lpnet.optim.problem import Problem
from lpnet.optim.softmax import Point, Softmax, curvature
from lpnet.optim.vector import Vector
from lpnet.regularizers import Penalty

_CG = 1e-10


class Eliminated(Misfit):
    """min_M E as a loss of the features; every evaluation leaves the minimiser in the classifier."""

    def _weights(self, problem: Softmax) -> Tensor:
        return self._solve(problem)

    def _correction(self, problem: Softmax, point: Point) -> Callable[[Tensor], Tensor]:
        inverse = problem.inverse(point.p, _CG)
        n = len(problem.y)
        return lambda r: r - curvature(point.p, problem.y @ inverse(r.T @ problem.y).T) / n


class Reduced:
    """F(θ) of a batch, the classifier eliminated; differentiable, collective.

    For any optimizer, such as `LBFGS(reduced.parameters)`; each value is for the minimiser of its own θ, which it
    leaves in the classifier. So evaluate it once more at the end, where the last evaluation was not at the weights
    reached.

    Args:
        net: see `lpnet.optim.head.divide`.
        penalties: are added; of the classifier only `regularizers.Quadratic`.
        tol, most: for the classifier, see `lpnet.optim.classifier.solve`.

    Attributes:
        net: all of the net but the classifier, and
        loss: what is left of the loss, (features, label) -> scalar, for methods that take these two, such as `OneShot`.
        parameters: θ, those of `net` that require a gradient.

    Raises:
        InputError: a net without a classifier behind the trunk, or a value that is not allowed.
    """

    def __init__(
        self, net: nn.Module, penalties: Sequence[Penalty] = (), tol: float = 1e-8, most: int = 50
    ) -> None:
        head = divide(net, penalties)
        self.net, self.penalties, self.loss = head.net, head.penalties, Eliminated(head, tol, most)
        self.parameters = [p for p in head.net.parameters() if p.requires_grad]

    def __call__(self, x: Tensor, label: Tensor) -> Tensor:
        loss = self.loss(self.net(x), label)
        return sum((penalty() for penalty in self.penalties), loss)


class VariableProjection(TwoBlocks):
    """Gauss–Newton–PCG for F(θ), the classifier eliminated; see the module and `TwoBlocks`.

    Every step ends with one more evaluation than that of `GaussNewton`, which leaves the minimiser of the weights
    reached in the classifier. Work for the classifier alone is not counted.
    """

    loss: Eliminated
    misfit = Eliminated

    @torch.no_grad()
    def step(self, problem: Problem | None = None, gradient: Vector | None = None) -> float:  # type: ignore[override]
        problem = self._right(problem)
        before = super().step(problem, gradient)
        after = problem.value()
        assert self.report is not None
        self.report = replace(self.report, after=after, work=self.report.work + 0.5)
        return before
