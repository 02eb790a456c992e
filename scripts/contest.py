"""What the contestants of the benchmarks have in common: turns by the clock, and gradients of all layers."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import lpnet
from lpnet import slab
from lpnet.scaling.problem import Gradients
from lpnet.scaling.timing import of_plain


@dataclass
class Contestant:
    """A way to compute the gradient: `run` returns those of the input and of all local weights.

    `alone`: rank 0 works by itself, with so many threads.
    """

    name: str
    run: Callable[[], Gradients]
    alone: bool = False
    threads: int = 1


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
