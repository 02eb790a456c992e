"""What the contestants of the benchmarks have in common: the problem, turns by the clock, and gradient errors."""

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import lpnet
from lpnet import slab

Gradients = tuple[Tensor, list[Tensor]]
"""Of the input and of the weights."""


@dataclass
class Contestant:
    """A way to compute the gradient: `run` returns those of the input and of all local weights.

    `alone`: rank 0 works by itself, with so many threads.
    """

    name: str
    run: Callable[[], Gradients]
    alone: bool = False
    threads: int = 1


def smooth_weights(layers: int, width: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Weights that vary smoothly with the layer index: a mean and two slow waves, of spectral size about 1."""
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    t = torch.arange(layers, dtype=torch.float64) / layers
    waves = [torch.ones_like(t), torch.sin(math.pi * t), torch.cos(math.pi * t)]
    scales = [0.5, 0.25, 0.25]
    K = sum(s * w[:, None, None] * draw(width, width) / math.sqrt(width) for s, w in zip(scales, waves, strict=True))
    b = sum(s * w[:, None] * draw(width) * 0.2 for s, w in zip(scales, waves, strict=True))
    return {"K": torch.as_tensor(K), "b": torch.as_tensor(b)}


def of_trunk(trunk: lpnet.LayerParallel, y: Tensor, bar: Tensor) -> Callable[[], Gradients]:
    """One gradient by lpnet."""
    def run() -> Gradients:
        trunk.zero_grad(set_to_none=True)
        x = y.clone().requires_grad_()
        trunk(x).backward(bar)
        return x.grad, [p.grad for p in trunk.theta.values()]  # type: ignore[return-value]

    return run


def of_plain(net: nn.Sequential, y: Tensor, bar: Tensor) -> Callable[[], Gradients]:
    """One gradient by autograd on the plain network."""
    parameters = list(net.parameters())

    def run() -> Gradients:
        net.zero_grad(set_to_none=True)
        x = y.clone().requires_grad_()
        net(x).backward(bar)
        return x.grad, [p.grad for p in parameters]  # type: ignore[return-value]

    return run


def timed(contestant: Contestant, comm: slab.Comm) -> float:
    """Seconds until the last rank is done (on rank 0)."""
    torch.set_num_threads(contestant.threads)
    comm.barrier()
    begin = time.perf_counter()
    if not contestant.alone or comm.rank == 0:
        contestant.run()
    comm.barrier(idle=contestant.alone and comm.rank != 0)
    seconds = time.perf_counter() - begin
    torch.set_num_threads(1)
    return seconds


def error(found: Gradients, true: Gradients) -> float:
    """Gradient error: the larger of the relative errors of the input's and of all weights' gradients."""
    def relative(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
        up = sum(float((x.double() - y.double()).square().sum()) for x, y in zip(a, b, strict=True))
        return math.sqrt(up / sum(float(y.double().square().sum()) for y in b))

    return max(relative([found[0]], [true[0]]), relative(found[1], true[1]))


def exact_gradient(plain: nn.Sequential, y: Tensor, bar: Tensor) -> Gradients:
    """By autograd in float64, weights stacked."""
    double = plain.double()
    true = stacked(of_plain(double, y.double(), bar.double())())
    plain.to(y.dtype)
    return true


def stacked(found: Gradients) -> Gradients:
    """Gradients of K and b of all layers from those of the plain network's parameters."""
    return found[0], [torch.stack(found[1][0::2]), torch.stack(found[1][1::2])]


def gathered(trunk: lpnet.LayerParallel, found: Gradients) -> Gradients:
    """Weight gradients of all layers."""
    return found[0], [trunk._slab.gather(g) for g in found[1]]


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))
