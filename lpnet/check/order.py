"""The order that a stepper says it has, measured on linear flows whose exact solution is known.

    y' = λy, λ = −0.4 ± 0.9i;      z' = −ωy, y' = ωz;      y'' = −ω²y;      T = 1, weights that do not change
"""

import math

import numpy as np
import torch
from torch import Tensor, nn

from lpnet.check.report import Finding
from lpnet.plain import PlainLayer
from lpnet.steppers import Stepper

_LAYERS = (8, 16, 32)
_ROUNDING, _MISSED = 1e-13, 0.4


class _Linear(nn.Module):
    """A damped turn as f, a frequency as kick and drift, or as kick alone."""

    def __init__(self, alone: bool) -> None:
        super().__init__()
        self.A = torch.tensor([[-0.4, 0.9], [-0.9, -0.4]], dtype=torch.float64)
        self.omega, self.alone = 0.9, alone

    def forward(self, y: Tensor) -> Tensor:
        return y @ self.A.T

    def kick(self, y: Tensor) -> Tensor:
        return -(self.omega**2 if self.alone else self.omega) * y

    def drift(self, z: Tensor) -> Tensor:
        return self.omega * z

    def exact(self, y: Tensor, partitioned: bool) -> Tensor:
        """y(1)."""
        return math.cos(self.omega) * y if partitioned else y @ torch.linalg.matrix_exp(self.A).T


def measured(stepper: Stepper) -> float:
    """Slope of the error in y(1) against h; infinite where the errors are those of rounding, 0 where they grow."""
    flow, y = _Linear(stepper.terms == ("kick",)), torch.tensor([[1.0, -0.5]], dtype=torch.float64)
    exact, errors = flow.exact(y, stepper.terms != ("f",)), []
    for layers in _LAYERS:
        layer = PlainLayer(flow, stepper.stages(1 / layers), stepper.memory)
        x = torch.stack([y] + [torch.zeros_like(y)] * (stepper.memory - 1))
        x = PlainLayer(flow, stepper.lift(1 / layers), stepper.memory)(x)
        for _ in range(layers):
            x = layer(x)
        errors.append((x[0] - exact).norm().item())
    if not all(map(math.isfinite, errors)):
        return 0.0
    if min(errors) < _ROUNDING:
        return math.inf
    return float(np.polyfit(-np.log(_LAYERS), np.log(errors), 1)[0])


def order(stepper: Stepper) -> Finding:
    """Whether the error falls as fast as the stepper says."""
    name, found = type(stepper).__name__, measured(stepper)
    said = f"order {round(found, 2) + 0.0:.2f} on a linear flow"
    try:
        declared = stepper.order
    except NotImplementedError:
        return Finding("order", "note", f"{name} has {said} and declares none", found)
    if found >= declared - _MISSED:
        return Finding("order", "ok", f"{name} has {said}, {declared} declared", found)
    text = f"{name} has {said}, {declared} declared: its stages() or lift() are not those of that method"
    return Finding("order", "failed", text, found)
