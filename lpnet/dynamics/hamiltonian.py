"""Hamiltonian dynamics: dz/dt = −σ(Ky + b), dy/dt = σ(Kᵀz + b), with one shared bias.

Source: Haber, Ruthotto, Stable architectures for deep neural networks (2017).
"""

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lpnet.dynamics.base import Dynamics, affine
from lpnet.fields import DenseWeights


class Hamiltonian(Dynamics):
    """kick(y) = −σ(Ky + b), drift(z) = σ(Kᵀz + b); K (width, width), b (width). For Verlet."""

    terms: ClassVar[tuple[str, ...]] = ("kick", "drift")

    def __init__(self, width: int, activation: str = "tanh") -> None:
        super().__init__(width, activation)
        self.K = nn.Parameter(torch.zeros(width, width))
        self.b = nn.Parameter(torch.zeros(width))

    def kick(self, y: Tensor) -> Tensor:
        """dz/dt."""
        return -self.sigma(linear(y, self.K, self.b))

    def drift(self, z: Tensor) -> Tensor:
        """dy/dt."""
        return self.sigma(linear(z, self.K.T, self.b))

    def dense(self, theta: dict[str, Tensor]) -> dict[str, DenseWeights]:
        K, b = theta["K"], theta["b"]
        return {
            "kick": DenseWeights(affine(K, b), sign=-1.0),
            "drift": DenseWeights(affine(K.transpose(1, 2), b)),
        }
