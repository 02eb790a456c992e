"""A network that ends in a linear classifier M = (W, b), taken apart into two blocks of parameters, θ and M:

    F(θ, M) = E(M; y_N(θ)) + R(θ),    y_N = trunk(before(x)),    E(M; y) = mean of ℓ(W y + b, c) + ½ Σ α_k |M_k|²

E is convex in M (`lpnet.optim.softmax`), and cheap: no layer is evaluated for it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lpnet.errors import InputError
from lpnet.optim import classifier
from lpnet.optim.agreement import penalties_of
from lpnet.optim.chain import split
from lpnet.optim.linesearch import require
from lpnet.optim.softmax import Point, Softmax, curvature
from lpnet.regularizers import Penalty, Quadratic
from lpnet.slab import Comm


@dataclass(frozen=True)
class Head:
    """The blocks, which are parts of the network itself and no copies.

    Attributes:
        net: all but the classifier, as a network.
        linear: the classifier.
        comm: ranks of the trunk.
        penalties: those of the parameters of `net`, R.
        decay: α of W and of b, from the other penalties.
    """

    net: nn.Sequential
    linear: nn.Linear
    comm: Comm
    penalties: tuple[Penalty, ...]
    decay: tuple[float, float]


def divide(net: nn.Module, penalties: Sequence[Penalty] = ()) -> Head:
    """The blocks of a network.

    Args:
        net: a chain (see `lpnet.optim.chain.split`) that ends in one `nn.Linear` behind the trunk.
        penalties: of its parameters; those of the classifier must be `regularizers.Quadratic`.

    Raises:
        InputError: a network of another form, a classifier that is frozen, or another penalty on it.
    """
    chain = split(net)
    linear = chain.after
    if type(linear) is not nn.Linear:
        raise InputError(f"net: a {type(linear).__name__} behind the trunk given, one torch.nn.Linear allowed")
    frozen = [name for name, p in linear.named_parameters() if not p.requires_grad]
    if frozen:
        raise InputError(f"net: a classifier with frozen {' and '.join(frozen)} given, requires_grad for all allowed")
    penalties = penalties_of(net, penalties, products=False)
    rest: list[Penalty] = []
    decay = {id(p): 0.0 for p in (linear.weight, linear.bias)}
    for penalty in penalties:
        others = [p for p in penalty.parameters if id(p) not in decay]
        if len(others) == len(penalty.parameters):
            rest.append(penalty)
            continue
        if not isinstance(penalty, Quadratic):
            kind = type(penalty).__name__
            raise InputError(f"penalties: {kind} of the classifier given, regularizers.Quadratic allowed")
        for p in penalty.parameters:
            decay[id(p)] = decay.get(id(p), 0.0) + penalty.weight
        rest += [Quadratic(others, penalty.weight)] if others else []
    head = nn.Sequential(chain.before, chain.trunk)
    return Head(head, linear, chain.trunk.comm, tuple(rest), (decay[id(linear.weight)], decay[id(linear.bias)]))


class Misfit:
    """E as a loss of the features, for the classifier as it is, in float64; for whatever takes a loss.

    Args:
        head: whose classifier and decay.
        tol, most: of `lpnet.optim.classifier.solve`.

    Attributes:
        report: of the last solve of the classifier, None before the first.
        cross_entropy: the last E without weight decay.
    """

    def __init__(self, head: Head, tol: float = 1e-8, most: int = 50) -> None:
        classifier.check(tol, most)
        require(most > 0, "most", most, "a whole number of at least 1")
        self.head, self.tol, self.most = head, tol, most
        self.report: classifier.Report | None = None
        self.cross_entropy = math.nan

    def __call__(self, features: Tensor, label: Tensor) -> Tensor:
        """E, differentiable in the features; NaN where these are not finite. Collective."""
        if not torch.isfinite(features).all():
            return features.double().sum() * torch.nan
        problem = self._problem(features, label)
        M = self._weights(problem)
        value = problem.of(features, M)
        self.cross_entropy = value.item() - problem.decay(M)
        return value

    def linearize(self, features: Tensor, label: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """∇E, like the features, and δy -> (∇²E) δy or its model; collective."""
        problem = self._problem(features, label)
        point = problem.at(self._weights(problem))
        n, W = len(features), point.M[:, : self.head.linear.in_features]
        correct = self._correction(problem, point)

        def product(dy: Tensor) -> Tensor:
            r = curvature(point.p, dy.double() @ W.T) / n
            return (correct(r) @ W).to(features)

        return ((point.p - problem.c) / n @ W).to(features), product

    def _problem(self, features: Tensor, label: Tensor) -> Softmax:
        return classifier.problem_of(features, label, self.head.linear, self.head.decay)

    def _solve(self, problem: Softmax) -> Tensor:
        """The minimiser, that of rank 0 on all ranks, in float64."""
        linear = self.head.linear
        point, self.report = classifier.minimize(problem, classifier.stacked(linear), self.tol, self.most)
        M = self.head.comm.bcast_(point.M.contiguous(), 0)
        classifier.unstack(M, linear)
        return M

    def _weights(self, problem: Softmax) -> Tensor:
        """M to evaluate with."""
        return classifier.stacked(self.head.linear)

    def _correction(self, problem: Softmax, point: Point) -> Callable[[Tensor], Tensor]:
        """What becomes of the derivative r of ∇_u E, (n, classes), where M follows."""
        return lambda r: r
