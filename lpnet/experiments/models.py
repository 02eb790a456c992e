"""What several experiments share: linear dynamics with exact flows, trunks by exact chains, states of all layers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from lpnet import LayerParallel, Serial, exact, steppers
from lpnet.experiments.base import Context
from lpnet.optim import vector
from lpnet.optim.vector import Vector
from lpnet.plots import Predict
from lpnet.sharded import slab_of

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


class Oscillator(nn.Module):
    """The circle y' = ω(y₂, −y₁), for the stepper that uses these terms.

    f(y) = ω(y₂, −y₁);  kick(y) = −ωy, drift(z) = ωz;  kick(y) = −ω²y where there is no drift.
    """

    def __init__(self, terms: tuple[str, ...] = ("f",), omega: float = 1.0) -> None:
        super().__init__()
        self.terms, self.force = terms, 1 if "drift" in terms else 2
        self.omega = nn.Parameter(torch.tensor(omega, dtype=F64))

    def forward(self, y: Tensor) -> Tensor:
        return self.omega * torch.stack([y[..., 1], -y[..., 0]], dim=-1)

    def kick(self, y: Tensor) -> Tensor:
        """dz/dt, or the force d²y/dt²."""
        return -(self.omega**self.force) * y

    def drift(self, z: Tensor) -> Tensor:
        """dy/dt."""
        return self.omega * z


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


def smooth(trunk: LayerParallel, rng: np.random.Generator, size: float = 1.0) -> None:
    """Give all layers weights that vary slowly with the layer: a mean and two waves, of spectral size about 1."""
    t = torch.arange(trunk.layers, dtype=F64) / trunk.layers
    waves = torch.stack([torch.ones_like(t), torch.sin(np.pi * t), torch.cos(np.pi * t)], dim=1)
    found = {}
    for name, one in trunk.theta.items():
        shape = one.shape[1:]
        draws = torch.from_numpy(rng.standard_normal((3, *shape)))
        scaled = waves * torch.tensor([0.5, 0.3, 0.3]) * size / np.sqrt(shape[-1])
        found[name] = torch.tensordot(scaled, draws, dims=1)
    trunk.load_state_dict(found)


def ends(features: int, width: int, classes: int, rng: np.random.Generator) -> tuple[nn.Linear, nn.Linear]:
    """Opening layer and classifier in float64, uniform in ±1/√inputs."""
    found = []
    for inputs, outputs in ((features, width), (width, classes)):
        layer = nn.Linear(inputs, outputs, dtype=F64)
        with torch.no_grad():
            for p in layer.parameters():
                p.copy_(torch.from_numpy(rng.uniform(-1, 1, tuple(p.shape))) / np.sqrt(inputs))
        found.append(layer)
    return found[0], found[1]


def vectors(net: nn.Module, rng: np.random.Generator) -> Vector:
    """A normal direction of all parameters, each rank its own layers of the same draw."""
    found = []
    for p in net.parameters():
        slab = slab_of(p)
        shape = p.shape if slab is None else (slab.layers, *p.shape[1:])
        drawn = torch.from_numpy(rng.standard_normal(tuple(shape)))
        found.append(drawn if slab is None else drawn[slab.lo : slab.hi])
    return found


@torch.no_grad()
def exact_loss(net: nn.Module, x: Tensor, label: Tensor) -> float:
    """Cross entropy by exact propagation; collective."""
    with exact(net):
        return float(cross_entropy(net(x), label))


def gradient(net: nn.Module, x: Tensor, label: Tensor) -> Vector:
    """The gradient of the cross entropy in all parameters; collective."""
    net.zero_grad()
    cross_entropy(net(x), label).backward()
    return vector.gradients(net.parameters())


def autograd_gradient(net: nn.Sequential, x: Tensor, label: Tensor) -> Vector:
    """The same by autograd on the plain torch copy of a trunk between an opening layer and a classifier; collective."""
    opening, trunk, classifier = net
    assert isinstance(trunk, LayerParallel)
    net.zero_grad()
    twin = trunk.as_sequential()
    cross_entropy(classifier(twin(opening(x))), label).backward()
    layers = [part for module in twin for key, part in module.named_children() if key == "dynamics"][-trunk.layers :]
    own = [dict(layers[j].named_parameters()) for j in trunk.local_layers]
    stacked = [
        torch.stack(vector.gradients([one[name] for one in own])) if own else torch.zeros_like(p)
        for name, p in trunk.theta.items()
    ]
    return [*vector.gradients(opening.parameters()), *stacked, *vector.gradients(classifier.parameters())]


def relative(net: nn.Module, one: Vector, other: Vector) -> float:
    """|one − other| / |other|; collective."""
    theta = list(net.parameters())
    return vector.norm(theta, vector.axpy(-1.0, other, one)) / vector.norm(theta, other)


@torch.no_grad()
def accuracy(net: nn.Module, x: Tensor, label: Tensor) -> float:
    """Correctly classified, by exact propagation; collective."""
    with exact(net):
        return float((net(x).argmax(1) == label).double().mean())


def classes_of(plain: nn.Module) -> Predict:
    """The classes that a plain torch module assigns to points."""

    @torch.no_grad()
    def predict(points: NDArray[np.float64]) -> NDArray[Any]:
        found: NDArray[Any] = plain(torch.from_numpy(points)).argmax(1).numpy()
        return found

    return predict
