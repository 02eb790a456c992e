"""The problem of a scaling study: one gradient of an Euler ResNet with weights that are smooth in the layers.

    y_{j+1} = y_j + h tanh(K(t_j) y_j + b(t_j)),   t_j = j h

K and b are a mean and two slow waves over the whole time, of spectral size about 1. The network of a weak study on few
ranks is the beginning of the one on the most, so h and the weights of a layer are the same in all of them.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lpnet import room
from lpnet.dynamics import Dense
from lpnet.module import LayerParallel
from lpnet.residuals import relative
from lpnet.scaling.solvers import Pair
from lpnet.slab import Comm

Gradients = tuple[Tensor, list[Tensor]]
"""Of the input and of the weights of all layers."""


def require_room(layers: int, width: int, batch: int = 1) -> None:
    """Refuse sizes that do not fit into memory: weights in float64, and input and cotangent.

    Raises:
        InputError: they do not.
    """
    needed = 8.0 * ((layers + 3) * (width + 1) + 2 * batch) * width
    room.require("layers, width, batch", f"{layers}, {width} and {batch}", needed, "weights and examples")


def smooth_weights(layers: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """K (N, width, width) and b (N, width), float64."""
    require_room(layers, width)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    t = torch.arange(layers, dtype=torch.float64) / layers
    waves = torch.stack([0.5 * torch.ones_like(t), 0.25 * torch.sin(math.pi * t), 0.25 * torch.cos(math.pi * t)], 1)
    K, b = (torch.stack([draw(*shape) for _ in range(3)]) for shape in ((width, width), (width,)))
    return {"K": torch.tensordot(waves, K, 1) / math.sqrt(width), "b": 0.2 * torch.tensordot(waves, b, 1)}


@dataclass(frozen=True)
class Problem:
    """The first `layers` of `whole` layers over [0, T].

    Attributes:
        layers: N.
        whole: layers over the time `end`.
        end: the time of the whole network.
        width: of a layer.
        batch: examples.
        dtype: "float32" or "float64".
        seed: of weights, input and cotangent.
    """

    layers: int
    whole: int
    end: float
    width: int
    batch: int
    dtype: str = "float32"
    seed: int = 0

    @property
    def T(self) -> float:
        """Final time of the layers that there are."""
        return self.end * self.layers / self.whole

    @cached_property
    def weights(self) -> dict[str, Tensor]:
        """Of all layers, in float64."""
        found = smooth_weights(self.whole, self.width, self._generator(0))
        return {name: value[: self.layers] for name, value in found.items()}

    @property
    def state_bytes(self) -> int:
        """Of one state of the whole batch."""
        return self.batch * self.width * torch.finfo(self.torch_dtype).bits // 8

    @property
    def torch_dtype(self) -> torch.dtype:
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found

    def data(self, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """Input and cotangent of the output, (batch, width) each."""
        generator = self._generator(1)
        drawn = [torch.randn(self.batch, self.width, generator=generator, dtype=torch.float64) for _ in range(2)]
        y, bar = (one.to(self.torch_dtype).to(dtype or self.torch_dtype) for one in drawn)
        return y, bar

    def trunk(self, pair: Pair, comm: Comm, dtype: torch.dtype | None = None) -> LayerParallel:
        """The network on these ranks."""
        made = LayerParallel(
            Dense(self.width), self.layers, self.T, forward=pair.forward, adjoint=pair.adjoint, comm=comm,
            dtype=dtype or self.torch_dtype,
        )  # fmt: skip
        made.load_state_dict(self.weights)
        return made

    def _generator(self, stream: int) -> torch.Generator:
        return torch.Generator().manual_seed(2 * self.seed + stream)


def error(found: Gradients, true: Gradients) -> float:
    """The larger of the relative errors of the input's gradient and of all weights'; infinite where not finite."""

    def norm(parts: Iterable[Tensor]) -> float:
        return math.sqrt(sum(float(x.square().sum()) for x in parts))

    def of(a: list[Tensor], b: list[Tensor]) -> float:
        differences = (x.double() - y.double() for x, y in zip(a, b, strict=True))
        return relative(norm(differences), norm(y.double() for y in b))

    return max(of([found[0]], [true[0]]), of(found[1], true[1]))
