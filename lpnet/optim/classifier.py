"""The convex problem of the last layer, solved by Newton's method with a line search:

    M ← M − a (∇²E)⁻¹ ∇E,    E(M) = 1/n Σ_i ℓ(M y_i, c_i) + ½ Σ_k α_k |M_k|²    (`softmax`)

from M or from 0, whichever has the smaller E: where a poor M is sure of wrong classes, ∇²E is zero to rounding. Where a
Newton step fails the step is along −∇E.

Source: Haber, Ruthotto, Stable architectures for deep neural networks (2017) (the classifier for fixed states).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpnet.errors import NonFiniteError
from lpnet.optim.linesearch import Armijo, is_number, is_whole, require
from lpnet.optim.softmax import Point, Softmax

_SEARCH = Armijo(most=30)
_ROUNDING = 1e-9  # expected decreases below this part of E cannot be told from rounding


@dataclass(frozen=True)
class Report:
    """What a solve did.

    Args:
        before, value: E before and after.
        gradient: |∇E| over the longest gradient that features of this size allow.
        steps: of Newton.
        evaluations: of E.
        converged: whether `gradient` is within the tolerance.
    """

    before: float
    value: float
    gradient: float
    steps: int
    evaluations: int
    converged: bool


def solve(
    features: Tensor,
    label: Tensor,
    linear: nn.Linear,
    weight_decay: float | tuple[float, float] = 0.0,
    tol: float = 1e-8,
    most: int = 50,
) -> Report:
    """Overwrite the weights of a linear layer by those of least cross entropy, starting from what they are.

    Local: every rank that has the same features finds the same. In float64, whatever the dtype of features and layer.
    Without weight decay classes that can be separated have no best weights: the solve ends where the gradient is small.

    Args:
        features: (batch, width).
        label: (batch,) numbers of classes, or (batch, classes) probabilities.
        linear: the layer.
        weight_decay: α of the weights, or those of the weights and of the bias.
        tol: of the gradient, relative to the longest one that features of this size allow.
        most: number of steps.

    Raises:
        InputError: a value or shape is not allowed.
        NonFiniteError: the objective is not finite to begin with; nothing was changed.
    """
    problem = problem_of(features, label, linear, weight_decay)
    point, report = minimize(problem, stacked(linear), tol, most)
    if report.steps:
        unstack(point.M, linear)
    return report


def minimize(problem: Softmax, M: Tensor, tol: float, most: int) -> tuple[Point, Report]:
    """The minimum of E from M, see `solve`.

    Raises:
        InputError: a value is not allowed.
        NonFiniteError: E(M) is not finite.
    """
    check(tol, most)
    begin = start = problem.at(M)
    if not math.isfinite(begin.value):
        raise NonFiniteError(f"classifier: the objective is {begin.value:g}")
    if begin.value > math.log(len(M)):
        start = problem.at(torch.zeros_like(M))
    end, steps, evaluations = _newton(problem, start, tol * problem.scale, most)
    size = float(end.gradient.norm()) / (problem.scale or 1.0)
    return end, Report(begin.value, end.value, size, steps, evaluations, size <= tol)


def check(tol: float, most: int) -> None:
    """Refuse options that are not allowed."""
    require(is_number(tol) and 0 < tol < 1, "tol", tol, "a number between 0 and 1")
    require(is_whole(most) and most >= 0, "most", most, "a whole number of at least 0")


def problem_of(
    features: Tensor, label: Tensor, linear: nn.Linear, weight_decay: float | tuple[float, float]
) -> Softmax:
    """The objective as a function of (W, b)."""
    decay = weight_decay if isinstance(weight_decay, tuple) else (weight_decay, 0.0)
    right = len(decay) == 2 and all(is_number(a) and 0 <= a < math.inf for a in decay)
    require(right, "weight_decay", weight_decay, "a number of at least 0, or two")
    shape = tuple(features.shape)
    require(shape[1:] == (linear.in_features,), "features", shape, f"(batch, {linear.in_features})")
    return Softmax(features, label, linear.out_features, linear.bias is not None, decay)


def _newton(problem: Softmax, point: Point, tol: float, most: int) -> tuple[Point, int, int]:
    """The point where the gradient is within an (absolute) tolerance or no step succeeds, steps, evaluations."""
    evaluations = 1
    for steps in range(most):
        size = float(point.gradient.norm())
        if size <= tol:
            return point, steps, evaluations
        newton = problem.inverse(point.p, min(0.1, size / problem.scale))
        new, more = _along(problem, point, newton(-point.gradient))
        evaluations += more
        if new is None:
            new, more = _along(problem, point, -point.gradient / problem.bound)
            evaluations += more
        if new is None:
            return point, steps, evaluations
        point = new
    return point, most, evaluations


def _along(problem: Softmax, point: Point, d: Tensor) -> tuple[Point | None, int]:
    """The next point, None if there is none, and the number of evaluations."""
    slope = float((point.gradient * d).sum())
    if not -math.inf < slope < 0:
        return None, 0
    if -slope <= _ROUNDING * abs(point.value):  # this close the step is good, if only the gradient can tell
        new = problem.at(point.M + d)
        return (new if new.gradient.norm() < point.gradient.norm() else None), 1
    found = _SEARCH.search(lambda a: problem.value(point.M + a * d), point.value, slope)
    return (problem.at(point.M + found.step * d) if found.accepted else None), found.evaluations + 1


def stacked(linear: nn.Linear) -> Tensor:
    """M = (W, b) in float64."""
    parts = [linear.weight] if linear.bias is None else [linear.weight, linear.bias[:, None]]
    return torch.cat([p.detach().double() for p in parts], dim=1)


def unstack(M: Tensor, linear: nn.Linear) -> None:
    """Overwrite the weights of the layer by M = (W, b)."""
    with torch.no_grad():
        linear.weight.copy_(M[:, : linear.in_features])
        if linear.bias is not None:
            linear.bias.copy_(M[:, -1])
