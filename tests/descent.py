"""Small problems for the optimizers."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from reference import F64, normal, trunk
from torch import Tensor, nn

from lpnet import regularizers
from lpnet.slab import Comm


def network(layers: int = 5, comm: Comm | None = None) -> nn.Sequential:
    """A linear layer, a trunk, a linear layer, of known weights; on this rank alone, unless a communicator is given."""
    ends = [nn.Linear(2, 4, dtype=F64), nn.Linear(4, 2, dtype=F64)]
    with torch.no_grad():
        for i, p in enumerate([*ends[0].parameters(), *ends[1].parameters()]):
            p.copy_(0.5 * normal(*p.shape, seed=i))
    return nn.Sequential(ends[0], trunk("dense", layers, comm=comm or Comm()), ends[1])


def fitting(net: nn.Sequential) -> Callable[[], Tensor]:
    """Least squares with weight decay; collective."""
    decay = regularizers.Tikhonov(net[1], 0.05)
    ends = [*net[0].parameters(), *net[2].parameters()]

    def loss() -> Tensor:
        misfit = (net(normal(6, 2, seed=5)) - normal(6, 2, seed=6)).square().mean()
        return misfit + decay() + 1e-2 * sum(p.square().sum() for p in ends)

    return loss


def closure_of(optimizer: torch.optim.Optimizer, loss: Callable[[], Tensor]) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    return closure


def flat(v: Any) -> np.ndarray:
    return torch.cat([t.detach().flatten() for t in v]).numpy().copy()


def grads(parameters: Any) -> np.ndarray:
    return flat(p.grad for p in parameters)


def same_state(a: Any, b: Any) -> None:
    assert a["param_groups"] == b["param_groups"]
    assert a["state"].keys() == b["state"].keys()
    for k, kept in a["state"].items():
        assert kept.keys() == b["state"][k].keys()
        assert all(torch.equal(t, b["state"][k][name]) for name, t in kept.items())
