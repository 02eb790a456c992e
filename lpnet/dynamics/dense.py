"""Dynamics with fully connected layers: σ((K − γI)y + b), K₂σ(K₁y + b) and σ((K − Kᵀ − γI)y + b)."""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lpnet.dynamics.base import Dynamics, Spectrum, check_finite, check_whole, shifted
from lpnet.fields import DenseWeights


class _Square(Dynamics):
    """f(y) = σ(M y + b) with a matrix M made of K and γ; K (width, width), b (width)."""

    def __init__(self, width: int, activation: str = "tanh", gamma: float = 0.0) -> None:
        super().__init__(width, activation)
        check_finite("gamma", gamma)
        self.gamma = gamma
        self.K = nn.Parameter(torch.zeros(width, width))
        self.b = nn.Parameter(torch.zeros(width))

    def _matrix(self, K: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, y: Tensor) -> Tensor:
        return self.sigma(linear(y, self._matrix(self.K), self.b))

    def dense(self, theta: dict[str, Tensor]) -> dict[str, DenseWeights]:
        return {"f": DenseWeights(self._matrix(theta["K"]), theta["b"])}

    def extra_repr(self) -> str:
        return super().extra_repr() + (f", gamma={self.gamma}" if self.gamma else "")


class Dense(_Square):
    """f(y) = σ((K − γI)y + b); K (width, width), b (width)."""

    def _matrix(self, K: Tensor) -> Tensor:
        return shifted(K, self.gamma)


class TwoLayer(Dynamics):
    """f(y) = K₂ σ(K₁y + b); K₁ (hidden, width), b (hidden), K₂ (width, hidden); hidden is width unless given."""

    def __init__(self, width: int, activation: str = "tanh", hidden: int | None = None) -> None:
        super().__init__(width, activation)
        hidden = width if hidden is None else hidden
        check_whole("hidden", hidden)
        self.K1 = nn.Parameter(torch.zeros(hidden, width))
        self.b = nn.Parameter(torch.zeros(hidden))
        self.K2 = nn.Parameter(torch.zeros(width, hidden))

    def forward(self, y: Tensor) -> Tensor:
        return linear(self.sigma(linear(y, self.K1, self.b)), self.K2)

    def dense(self, theta: dict[str, Tensor]) -> dict[str, DenseWeights]:
        return {"f": DenseWeights(theta["K1"], theta["b"], theta["K2"])}


class Antisymmetric(_Square):
    """f(y) = σ((K − Kᵀ − γI)y + b): eigenvalues of the Jacobian on the imaginary axis, shifted left by γ.

    Source: Haber, Ruthotto, Stable architectures for deep neural networks (2017).
    """

    spectrum: ClassVar[Spectrum] = "imaginary"

    def _matrix(self, K: Tensor) -> Tensor:
        return shifted(K - K.transpose(-1, -2), self.gamma)
