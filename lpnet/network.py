"""The network of a training run: opening layer, trunk, classifier.

    y_0 = opening(x),    y_N = trunk(y_0),    logits = W y_N + b

Opening layer and classifier are replicated: every rank holds the same weights, drawn from the seed alone.
"""

import copy
import math
import zlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from lpnet import dynamics, room, steppers
from lpnet.choices import require
from lpnet.config import LAYER_KEYS, STEPPER_KEYS, Config, Trunk
from lpnet.errors import counted
from lpnet.module import LayerParallel
from lpnet.sections import DTYPES
from lpnet.sharded import synchronize
from lpnet.slab import Comm
from lpnet.stack import generator

DRAWN = 24.0
"""Bytes of a weight of the classifier while it is drawn: in float64, twice it, and that less one (see `_linear`)."""


@dataclass(frozen=True)
class Examples:
    """What a network has to know of the examples that it is made for.

    Args:
        features: number of features of an example.
        classes: number of classes.
        shift: (features,) or (1,) what is subtracted from raw features,
        scale: (features,) or (1,) and what they are then divided by.
    """

    features: int
    classes: int
    shift: np.ndarray = field(default_factory=lambda: np.zeros(1))
    scale: np.ndarray = field(default_factory=lambda: np.ones(1))


class Pad(nn.Module):
    """(batch, features) to (batch, width), with zeros behind."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.features, self.width = features, width

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(x, (0, self.width - self.features))

    def extra_repr(self) -> str:
        return f"{self.features}, {self.width}"


class Network(nn.Module):
    """logits = classifier(trunk(opening(x))); collective.

    Attributes:
        built_from: the configuration.
        config: the same with the layers that the trunk has, which are fewer on a coarse level of multilevel training.
        examples: what it was built for.

    Shapes: (batch, features) to (batch, classes), the same on every rank.
    """

    def __init__(
        self, config: Config, examples: Examples, opening: nn.Module, trunk: LayerParallel, classifier: nn.Linear
    ) -> None:
        super().__init__()
        self.built_from, self.examples = config, examples
        self.opening, self.trunk, self.classifier = opening, trunk, classifier

    @property
    def config(self) -> Config:
        return self.built_from.at_layers(self.trunk.layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.trunk(self.opening(x)))

    def normalized(self, raw: Any) -> Tensor:
        """Raw examples (n, features) as the network was trained to see them."""
        x = (np.asarray(raw, dtype=np.float64) - self.examples.shift) / self.examples.scale
        return torch.from_numpy(x).to(self.classifier.weight)

    def as_sequential(self) -> nn.Sequential:
        """A copy as an ordinary torch module, with all layers on every rank; collective."""
        return nn.Sequential(copy.deepcopy(self.opening), self.trunk.as_sequential(), copy.deepcopy(self.classifier))


def build(
    config: Config, examples: Examples, comm: Comm, device: torch.device | str = "cpu", layers: int | None = None
) -> Network:
    """The network with its initial weights, which depend on the seed alone; collective.

    Args:
        config: its options.
        examples: what it is made for.
        comm: the ranks.
        device: of its tensors.
        layers: of the trunk, where it is not those of the configuration but a coarser level.

    Raises:
        InputError: the trunk is narrower than the features that `trunk.opening: pad` puts into it.
    """
    built_from, config = config, config if layers is None else config.at_layers(layers)
    trunk, seed = config.trunk, config.run.seed
    like: dict[str, Any] = {"dtype": DTYPES[config.run.dtype], "device": device}
    stepper = _own(trunk, STEPPER_KEYS)
    require_room(config, examples, comm, device)
    net = Network(
        built_from,
        examples,
        _opening(trunk, examples.features, seed, like),
        LayerParallel(
            _layer(trunk),
            layers=trunk.layers,
            T=trunk.T,
            stepper=steppers.REGISTRY[trunk.stepper_name](**stepper),
            forward=config.solver.forward.options("solver.forward"),
            adjoint=config.solver.adjoint.options("solver.adjoint"),
            seed=seed,
            comm=comm,
            init=trunk.init,
            gradient=trunk.gradient,
            store=trunk.store,
            control=config.control.options(),
            controls=trunk.control_grid,
            **like,
        ),
        _linear("classifier", trunk.width, examples.classes, seed, like),
    )
    synchronize(net)
    return net


def _layer(trunk: Trunk) -> nn.Module:
    """One layer, as the dynamics makes it."""
    kind: Any = dynamics.REGISTRY[trunk.dynamics]
    made: nn.Module = kind(width=trunk.width, activation=trunk.activation, **_own(trunk, LAYER_KEYS))
    return made


def _own(trunk: Trunk, keys: tuple[str, ...]) -> dict[str, Any]:
    """Those of the keys that belong to this trunk and are not null."""
    values = {key: getattr(trunk, key) for key in trunk.own_options if key in keys}
    return {key: value for key, value in values.items() if value is not None}


def require_room(
    config: Config, examples: Examples, comm: Comm, device: torch.device | str = "cpu", copies: float = 1.0
) -> None:
    """Require that this rank's weights fit into memory, so many times, and the draws of opening and classifier.

    Raises:
        InputError: they do not.
    """
    trunk = config.trunk
    with torch.device("meta"):
        layer = _layer(trunk)
    rows = trunk.controls or -(-trunk.layers // comm.size)
    edges = (examples.features + examples.classes + 2) * trunk.width
    numbers = copies * (rows * sum(p.numel() for p in layer.parameters()) + edges)
    what = f"weights of {counted(rows, 'layer')}" + (f", {copies:g} times," if copies > 1 else "")
    given, size = f"{trunk.layers} and {trunk.width}", torch.finfo(DTYPES[config.run.dtype]).bits // 8
    room.require("trunk.layers, trunk.width", given, numbers * size, what, device)
    given, drawn = f"{trunk.width} and {examples.classes}", DRAWN * trunk.width * examples.classes
    room.require("trunk.width, data.classes", given, drawn, "a classifier")


def check_opening(trunk: Trunk, features: int) -> None:
    """Require that the features fit into the trunk."""
    if trunk.opening == "pad":
        allowed = f"at least the {features} features with opening pad"
        require(features <= trunk.width, "trunk.width", trunk.width, allowed)


def _opening(trunk: Trunk, features: int, seed: int, like: dict[str, Any]) -> nn.Module:
    check_opening(trunk, features)
    if trunk.opening == "pad" or (trunk.opening == "auto" and features == trunk.width):
        return Pad(features, trunk.width)
    return _linear("opening", features, trunk.width, seed, like)


def _linear(name: str, inputs: int, outputs: int, seed: int, like: dict[str, Any]) -> nn.Linear:
    """A linear layer with weights and bias uniform in ±1/√inputs, drawn from (seed, name) in float64."""
    layer = skip_init(nn.Linear, inputs, outputs, **like)
    source = generator(seed, zlib.crc32(name.encode()))
    with torch.no_grad():
        for parameter in (layer.weight, layer.bias):
            drawn = torch.rand(parameter.shape, generator=source, dtype=torch.float64)
            parameter.copy_((2 * drawn - 1) / math.sqrt(inputs))
    return layer
