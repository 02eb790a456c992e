"""Converged solvers, and gradients of a trunk next to those of autograd on its plain twin."""

from typing import Any

import torch
from reference import F64, error, normal
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, Serial
from lpnet.slab import Comm

BATCH, WIDTH = 6, 4
CONVERGED = {
    "serial": (Serial(), Serial()),
    "micro-batches": (Serial(4), Serial(3)),
    "two levels": (MGRIT(coarsening=4, cycles=12), MGRIT(coarsening=3, cycles=16)),
    "three levels": (
        MGRIT(coarsening=2, levels=3, cycles=30),
        MGRIT(coarsening=(3, 2), levels=3, cycles=30, relaxation="FCF"),
    ),
    "F-cycles, constant start": (
        MGRIT(coarsening=2, levels=4, cycles=25, cycle_shape="F", initial="constant"),
        MGRIT(coarsening=2, levels=4, cycles=25, cycle_shape="F", relaxation="FCF", initial="constant"),
    ),
    "tolerance, rediscretized": (
        MGRIT(coarsening=4, cycles=40, coarse="rediscretized", tol=1e-14),
        MGRIT(coarsening=4, cycles=40, coarse="rediscretized", coarse_weights="inject", tol=1e-14),
    ),
    "samples": (MGRIT(coarsening=5, cycles=12, samples=2), MGRIT(coarsening=4, cycles=12, samples=4)),
    "mixed": (MGRIT(coarsening=4, cycles=12), Serial(2)),
    "mixed the other way": (Serial(3), MGRIT(coarsening=4, cycles=12)),
}


def data(seed: int = 0, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    """A batch, and the weights of a scalar made from the output."""
    return normal(BATCH, WIDTH, seed=seed, dtype=dtype), normal(BATCH, WIDTH, seed=seed + 1, dtype=dtype)


def gradients(net: nn.Module, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Output and input gradient of Σ c·net(y); those of the weights are left where they belong."""
    y = y.clone().requires_grad_()
    out = net(y)
    (out * c).sum().backward()
    assert y.grad is not None
    return out.detach(), y.grad


def plain_gradients(trunk: lpnet.LayerParallel, y: Tensor, c: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """The same by autograd on `as_sequential`."""
    plain = trunk.as_sequential()
    out, y_bar = gradients(plain, y, c)
    layers = [m.dynamics for m in plain if hasattr(m, "dynamics")][-trunk.layers :]
    return out, y_bar, {n: torch.stack([layer.get_parameter(n).grad for layer in layers]) for n in trunk.theta}


def assert_gradients(trunk: lpnet.LayerParallel, tolerance: float = 1e-10, dtype: torch.dtype = F64) -> None:
    y, c = data(dtype=dtype)
    out, y_bar = gradients(trunk, y, c)
    expected, expected_bar, grads = plain_gradients(trunk, y, c)
    assert error(out, expected) < tolerance
    assert error(y_bar, expected_bar) < tolerance
    for name, p in trunk.theta.items():
        assert p.grad is not None
        assert error(p.grad, grads[name]) < tolerance, name


def user_trunk(module: nn.Module, layers: int = 13, how: str = "serial", **more: Any) -> lpnet.LayerParallel:
    """A trunk of a user's module, on this rank alone."""
    forward, adjoint = CONVERGED[how]
    solvers = {"forward": forward, "adjoint": adjoint, "init": "random", "comm": Comm(), "dtype": F64}
    return lpnet.LayerParallel(module, layers, 2.0, **(solvers | more))
