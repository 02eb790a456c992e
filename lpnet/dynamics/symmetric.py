"""Dynamics made of −Kᵀσ(Ky + b): the gradient flow dy/dt of a convex potential, or the force d²y/dt² in it.

With σ = S′ non-decreasing both descend from Σ S(Ky + b), whose Hessian Kᵀ diag σ′ K is symmetric and not negative: the
flow contracts, the second-order equation oscillates.

Source: Ruthotto, Haber, Deep neural networks motivated by partial differential equations (2018).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lpnet.dynamics.base import Dynamics, Spectrum, check_whole
from lpnet.fields import DenseWeights


class _Descent(Dynamics):
    """−Kᵀσ(Ky + b) as the term of this name; K (hidden, width), b (hidden); hidden is width unless given."""

    def __init__(self, width: int, activation: str = "tanh", hidden: int | None = None) -> None:
        super().__init__(width, activation)
        hidden = width if hidden is None else hidden
        check_whole("hidden", hidden)
        self.K = nn.Parameter(torch.zeros(hidden, width))
        self.b = nn.Parameter(torch.zeros(hidden))

    def _descent(self, y: Tensor) -> Tensor:
        return -linear(self.sigma(linear(y, self.K, self.b)), self.K.T)

    def dense(self, theta: dict[str, Tensor]) -> dict[str, DenseWeights]:
        K = theta["K"]
        (term,) = self.terms
        return {term: DenseWeights(K, theta["b"], K.transpose(1, 2), sign=-1.0)}


class DoubleSymmetric(_Descent):
    """f(y) = −Kᵀσ(Ky + b), parabolic: a symmetric Jacobian with eigenvalues from −|K|² to 0.

    K is (hidden, width), b (hidden); hidden is width unless given. Distances between states never grow along the flow.
    """

    spectrum: ClassVar[Spectrum] = "real"

    def forward(self, y: Tensor) -> Tensor:
        return self._descent(y)


class SecondOrder(_Descent):
    """d²y/dt² = kick(y) = −Kᵀσ(Ky + b), hyperbolic: frequencies up to |K|. For Leapfrog.

    K is (hidden, width), b (hidden); hidden is width unless given. The state is (y, v) with dy/dt = v, so there is no
    drift() to be given.
    """

    terms: ClassVar[tuple[str, ...]] = ("kick",)
    spectrum: ClassVar[Spectrum] = "imaginary"

    def kick(self, y: Tensor) -> Tensor:
        """dv/dt."""
        return self._descent(y)
