"""Hamiltonian dynamics: dz/dt = −σ(Ky + b), dy/dt = σ(Kᵀz + b), with one shared bias.

Source: Haber, Ruthotto, Stable architectures for deep neural networks (2017). Their slides have this form, the code
that they published exchanges K and Kᵀ.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lpnet.dynamics.base import Dynamics, Spectrum
from lpnet.errors import InputError
from lpnet.fields import DenseWeights

FORMS = ("slides", "package")


class Hamiltonian(Dynamics):
    """kick(y) = −σ(Ky + b), drift(z) = σ(Kᵀz + b); K (width, width), b (width). For Verlet.

    Args:
        width: number of features of y, and of z.
        activation: "tanh", "relu", "smooth_relu" or "gelu".
        form: "slides", the form above, or "package", which exchanges K and Kᵀ.
    """

    terms: ClassVar[tuple[str, ...]] = ("kick", "drift")
    spectrum: ClassVar[Spectrum] = "imaginary"

    def __init__(
        self, width: int, activation: str = "tanh", form: Literal["slides", "package"] = "slides"
    ) -> None:
        super().__init__(width, activation)
        if form not in FORMS:
            raise InputError(f"form: {form!r} given, one of {', '.join(FORMS)} allowed")
        self.form = form
        self.K = nn.Parameter(torch.zeros(width, width))
        self.b = nn.Parameter(torch.zeros(width))

    def _matrices(self, K: Tensor) -> tuple[Tensor, Tensor]:
        """Those of kick and drift."""
        both = (K, K.transpose(-1, -2))
        return both if self.form == "slides" else both[::-1]

    def kick(self, y: Tensor) -> Tensor:
        """dz/dt."""
        return -self.sigma(linear(y, self._matrices(self.K)[0], self.b))

    def drift(self, z: Tensor) -> Tensor:
        """dy/dt."""
        return self.sigma(linear(z, self._matrices(self.K)[1], self.b))

    def dense(self, theta: dict[str, Tensor]) -> dict[str, DenseWeights]:
        (kick, drift), b = self._matrices(theta["K"]), theta["b"]
        return {"kick": DenseWeights(kick, b, sign=-1.0), "drift": DenseWeights(drift, b)}

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.form == "slides" else f", form={self.form!r}")
