"""Gauss–Newton with an inner solve by preconditioned conjugate gradients (Newton–PCG) on a chain net:

    B p ≈ −g      PCG on the Gauss–Newton model of `lpnet.optim.problem`
    p ← p min(1, cap / |p|_∞)
    θ ← θ + a p   with a from a line search on the same batch

A radius of the inner solve keeps p where the model can be trusted, in the norm of the preconditioner,
|p|²_M = |p_ends|² + T ∫|p_θ|² dt + α ∫|p_θ'|² dt, which does not depend on the number of layers. It is the same at each
step, so that nothing has to be kept. Measured on three seeds each, after 100 units of work: a radius of 2 and tol = 0.1
reach 0.3 to 0.5 (peaks, width 8, 16 layers), 0.06 to 0.2 (ellipses) and 0.01 to 0.96 (swissroll, both Hamiltonian of
width 4 with 32 layers) of the objective that the published cap alone with tol = 0.01 reaches.

Work is told in units of a gradient: a forward and an adjoint solve are 1, a product with B is 1 (one linearised forward
solve, one adjoint solve), an evaluation of F is ½. Under error control the gradient is found before the model, at the
price of one more forward solve, and each gradient of a check is 1 more.

Sources: Haber, Ruthotto, Stable architectures for deep neural networks (2017); Nocedal, Wright, Numerical optimization
(2006), section 7.1.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lpnet.errors import InputError, NonFiniteError
from lpnet.optim import vector
from lpnet.optim.agreement import Agreed, compare, penalties_of
from lpnet.optim.chain import split
from lpnet.optim.linesearch import Armijo, Result, is_number, require
from lpnet.optim.pcg import PCG
from lpnet.optim.pcg import Report as Solve
from lpnet.optim.precondition import Identity, Preconditioner, matched
from lpnet.optim.problem import Loss, Model, Problem, free
from lpnet.optim.vector import Vector
from lpnet.regularizers import Penalty

_ARMIJO = Armijo(decrease=1e-3, most=10)
_PCG = PCG(tol=0.1, radius=2.0)


@dataclass(frozen=True)
class Report:
    """What a step did.

    Args:
        before, after: F (of the batch, with penalties) before and after the step.
        gradient_norm: before the step.
        pcg: how the inner solve ended.
        evaluations: of F, by the line searches.
        step: length a along the direction taken, after the cap; 0 if none was accepted.
        scale: min(1, cap/|p|_∞) of that direction.
        accepted: whether the parameters moved; if not they are bit for bit as before.
        fell_back: the direction of the inner solve failed, the preconditioned −g was tried.
        work: in units of a gradient.
    """

    before: float
    after: float
    gradient_norm: float
    pcg: Solve
    evaluations: int
    step: float
    scale: float
    accepted: bool
    fell_back: bool
    work: float


class GaussNewton(torch.optim.Optimizer):
    """Gauss–Newton–PCG for chain nets on any number of ranks; `step_on` and `step` are collective.

    Nothing is kept from step to step: what a step does depends on the weights and the batch alone, unless the trunk has
    error control (`lpnet.Adaptive`). Then the gradient is under it as that of any training step, and model and line
    search are by the solvers of that gradient.

    Args:
        net: see `lpnet.optim.chain.split`.
        lr: the step length that is tried first.
        penalties: are added to the loss, and are part of the model.
        loss: (output, label) -> scalar, differentiable twice in the output; convex in it, so that B is positive.
        pcg: the inner solve; its default has a radius, unlike that of `PCG`.
        search: line search.
        cap: on the largest entry of a step.
        preconditioner: of the inner solve: "dct" (the regulariser of the trunk's weights in time, see
            `lpnet.optim.precondition`), None, or an object with ``apply(v)``.
        parameters: the free ones; None: all of the net that require a gradient.

    Attributes:
        report: `Report` of the last step, None before the first.
        whole, criterion: net and loss as they were given, where `net` and `loss` are those of a method that solves for
            the classifier by itself.
        compared: whether the output of the net was compared with that of its parts.

    Raises:
        InputError: a value is not allowed; from the first step, a net whose output is not that of its parts one after
            the other (that takes two evaluations, which are not told as work; an `nn.Sequential` is not asked).
    """

    def __init__(
        self,
        net: nn.Module,
        lr: float = 1.0,
        penalties: Sequence[Penalty] = (),
        loss: Loss = cross_entropy,
        pcg: PCG = _PCG,
        search: Armijo = _ARMIJO,
        cap: float = 1.0,
        preconditioner: Literal["dct"] | Preconditioner | None = "dct",
        parameters: Sequence[Tensor] | None = None,
    ) -> None:
        require(is_number(lr) and 0 < lr < math.inf, "lr", lr, "a positive number")
        require(is_number(cap) and cap > 0, "cap", cap, "a positive number")
        require(isinstance(pcg, PCG), "pcg", pcg, "PCG(...)")
        right = hasattr(search, "search") and not getattr(search, "slopes", False)
        require(right, "search", search, "Armijo(...)")
        right = preconditioner in ("dct", None) or hasattr(preconditioner, "apply")
        require(right, "preconditioner", preconditioner, "'dct', None, or an object with a method apply")
        split(net)
        self.net, self.penalties, self.loss = net, penalties_of(net, penalties), loss
        self.whole, self.criterion, self.compared = net, loss, False
        self.pcg, self.search, self.cap, self.preconditioner = pcg, search, float(cap), preconditioner
        self.theta = free(net, parameters)
        self.report: Report | None = None
        super().__init__(self.theta, {"lr": lr})

    def problem(self, x: Tensor, label: Tensor) -> Problem:
        """The objective of a batch."""
        return Problem(self.net, x, label, self.loss, self.penalties, self.theta)

    def objective(self, output: Tensor, label: Tensor) -> Tensor:
        """Loss and penalties; collective."""
        return sum((penalty() for penalty in self.penalties), self.loss(output, label))

    def joined(self, net: nn.Module, loss: Loss | None) -> tuple[nn.Module, Loss]:
        """The net and the objective that this optimizer steps in, for whoever has these two and the optimizer.

        Args:
            net: that of the optimizer.
            loss: None or that of the optimizer: its objective; else the same objective, which the first call compares.

        Raises:
            InputError: another net.
        """
        own = {id(p) for p in self.whole.parameters()}
        if {id(p) for p in net.parameters()} != own and net is not self.net:
            kind = type(self).__name__
            raise InputError(f"optimizer: a {kind} of another net given, {kind}(net, ...) of the same net allowed")
        if loss is None or loss is self.criterion or loss is self.loss:
            return self.net, self.objective
        return self.net, Agreed(loss, self.objective, self.theta)

    def step_on(self, x: Tensor, label: Tensor) -> Report:
        """Take one step on a batch, the same on every rank; collective.

        Raises:
            NonFiniteError: F or its gradient is not finite; nothing was changed.
        """
        self.step(self.problem(x, label))
        assert self.report is not None
        return self.report

    @torch.no_grad()
    def step(self, problem: Problem | None = None, gradient: Vector | None = None) -> float:  # type: ignore[override]
        """Take one step; collective.

        Where the direction of the inner solve fails (no descent, or no sufficient decrease), the preconditioned −g is
        tried once; where that fails too, the parameters stay as they were, bit for bit.

        Args:
            problem: of `problem(x, label)`.
            gradient: of F, where it is known already; then its work is not counted, and F is evaluated once more.

        Returns:
            F before the step.

        Raises:
            NonFiniteError: F or its gradient is not finite; nothing was changed.
            InputError: anything else than a problem.
        """
        problem = self._right(problem)
        work, known = 0.5, gradient
        if gradient is None and problem.steered:
            _, known = problem.gradient()
            work += len(problem.chain.trunk.info.schedules)
        model, theta = problem.linearize(known), problem.theta
        work += 0.5 * (known is None)
        g = model.gradient
        size = math.sqrt(self._number(theta, vector.dots(theta, [(g, g)])))
        if not (math.isfinite(model.value) and math.isfinite(size)):
            raise NonFiniteError(f"GaussNewton: F is {model.value:g} and the norm of the gradient {size:g}")
        M = self._preconditioner(problem)
        p, solve = self.pcg.solve(model.product, g, theta, M)
        result, scale, evaluations, tries = Result(0.0, model.value, 0, False), 1.0, 0, 0
        for direction in _directions(p, g, M):
            tries += 1
            d, scale, slope = self._capped(theta, direction, g)
            if -math.inf < slope < 0:
                result = self._move(problem, model, d, slope)
                evaluations += result.evaluations
            if result.accepted:
                break
        work += solve.iterations + 0.5 * evaluations
        self.report = Report(
            model.value, result.value, size, solve, evaluations, result.step, scale, result.accepted, tries > 1, work
        )
        return model.value

    def _right(self, problem: Any) -> Problem:
        """The problem, if it is one, of a net that is what its parts say."""
        require(isinstance(problem, Problem), "problem", problem, "step(problem(x, label)) or step_on(x, label)")
        if not self.compared:
            with problem.fixed():
                compare(self.whole, problem.x, self.theta)
            self.compared = True
        return problem

    def _preconditioner(self, problem: Problem) -> Callable[[Vector], Vector]:
        chosen: Any = self.preconditioner
        if chosen is None:
            chosen = Identity()
        elif chosen == "dct":
            chosen = matched(problem.chain.trunk, problem.theta, self.penalties)
        return chosen.apply

    def _capped(self, theta: Sequence[Tensor], d: Vector, g: Vector) -> tuple[Vector, float, float]:
        """The direction with its largest entry at most the cap, by how much that scaled it, and its slope."""
        largest = vector.largest(theta, d)
        scale = self.cap / largest if largest > self.cap else 1.0
        d = [scale * t for t in d]
        return d, scale, self._number(theta, vector.dots(theta, [(g, d)]))

    def _move(self, problem: Problem, model: Model, d: Vector, slope: float) -> Result:
        """Go along a direction as far as the search says; back to where it was, where that says no or fails."""
        theta, origin, accepted = problem.theta, vector.copies(problem.theta), False

        def phi(a: float) -> float:
            vector.assign(theta, vector.axpy(a, d, origin))
            return problem.value()

        try:
            result = self.search.search(phi, model.value, slope, float(self.param_groups[0]["lr"]))
            accepted = result.accepted
        finally:
            if not accepted:
                vector.assign(theta, origin)
        return result

    @staticmethod
    def _number(theta: Sequence[Tensor], value: Tensor) -> float:
        return float(vector.of_rank_0(theta, value))


def _directions(p: Vector, g: Vector, M: Callable[[Vector], Vector]) -> Iterator[Vector]:
    """p, then −M⁻¹ g."""
    yield p
    yield M([-t for t in g])
