"""A linearised trunk made from torch.func on its plain sequential copy: slow, and obvious."""

import torch
from torch import Tensor

import lpnet


class Slow:
    """What `trunk.linearize(y)` is, exact; every rank does all of it; collective.

    Args:
        trunk: a `LayerParallel`.
        y: (batch, *features).
    """

    def __init__(self, trunk: lpnet.LayerParallel, y: Tensor) -> None:
        self.trunk, self.y = trunk, y.detach()
        self.weights = {name: t.detach() for name, t in trunk.gather_state_dict().items()}
        self.plain = trunk.as_sequential()
        layers: list[torch.nn.Module] = []  # a lift shares the weights of layer 0
        for one in self.plain:
            module = getattr(one, "dynamics", None)
            if module is not None and not any(module is other for other in layers):
                layers.append(module)
        where = {id(p): (j, name) for j, one in enumerate(layers) for name, p in one.named_parameters()}
        self.where = {key: where[id(p)] for key, p in self.plain.named_parameters()}
        self.output = self(self.weights, self.y)

    def __call__(self, weights: dict[str, Tensor], y: Tensor) -> Tensor:
        named = {key: weights[name][j] for key, (j, name) in self.where.items()}
        with torch.no_grad():
            return torch.func.functional_call(self.plain, named, (y,))

    def _of(self, weights: dict[str, Tensor], y: Tensor) -> Tensor:
        named = {key: weights[name][j] for key, (j, name) in self.where.items()}
        return torch.func.functional_call(self.plain, named, (y,))

    def tangent(self, dy: Tensor | None, dtheta: list[Tensor] | None) -> Tensor:
        dy = torch.zeros_like(self.y) if dy is None else dy
        stacks = dtheta if dtheta is not None else [torch.zeros_like(p) for p in self.trunk.theta.values()]
        dw = {name: self.trunk._slab.gather(d) for name, d in zip(self.weights, stacks, strict=True)}
        return torch.func.jvp(self._of, (self.weights, self.y), (dw, dy))[1]

    def pull(self, bar: Tensor) -> tuple[Tensor, list[Tensor]]:
        _, back = torch.func.vjp(self._of, self.weights, self.y)
        grads, dy = back(bar)
        mine = slice(self.trunk._slab.lo, self.trunk._slab.hi)
        return dy, [grads[name][mine] for name in self.weights]
