"""What several experiments share: linear dynamics with exact flows, trunks by exact chains, states of all layers."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from lpnet import LayerParallel, Serial, steppers
from lpnet.experiments.base import Context

F64 = torch.float64


class Linear(nn.Module):
    """f(y) = Ky;  kick(y) = −Ky, drift(z) = Kᵀz: a user's module, for the stepper that uses these terms."""

    def __init__(self, width: int, terms: tuple[str, ...] = ("f",)) -> None:
        super().__init__()
        self.terms = terms
        self.K = nn.Parameter(torch.zeros(width, width))

    def forward(self, y: Tensor) -> Tensor:
        return linear(y, self.K)

    def kick(self, y: Tensor) -> Tensor:
        """dz/dt, or the force d²y/dt²."""
        return -linear(y, self.K)

    def drift(self, z: Tensor) -> Tensor:
        """dy/dt."""
        return linear(z, self.K.T)


def chain(
    context: Context, module: nn.Module, layers: int, T: float, stepper: steppers.Stepper | None = None
) -> LayerParallel:
    """A trunk in float64 that is propagated exactly."""
    return LayerParallel(module, layers, T, stepper, Serial(), Serial(), context.seed, context.comm, dtype=F64)


def constant(trunk: LayerParallel, theta: Mapping[str, Tensor]) -> LayerParallel:
    """The trunk with these weights of one layer in all layers."""
    trunk.load_state_dict({name: value.expand(trunk.layers, *value.shape) for name, value in theta.items()})
    return trunk


@torch.no_grad()
def states(trunk: LayerParallel, y: Tensor) -> Tensor:
    """y_0, …, y_N after each layer, (N + 1, batch, *features), from the plain torch twin; collective."""
    x, found = y, [y]
    modules = list(trunk.as_sequential())
    for module in modules:
        x = module(x)
        found.append(x if x.ndim == y.ndim else x[0])
    # A state with memory has modules in front and behind that change no y.
    extra = len(modules) - trunk.layers
    return torch.stack([y, *found[len(found) - trunk.layers - (1 if extra else 0) : -1 if extra else None]])


def finest() -> steppers.Stepper:
    """The stepper of highest order for plain dynamics."""
    plain = [one() for one in steppers.REGISTRY.values() if one.terms == ("f",)]
    return max(plain, key=lambda one: one.order)
