"""The same network by PyTorch alone: autograd, torch.compile, and torch.distributed.pipelining over gloo.

    y_{j+1} = y_j + h tanh(K_j y_j + b_j),    one full gradient: of the input, of all K and of all b
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.functional import linear

from lpnet.launch import share
from lpnet.scaling.problem import Gradients
from lpnet.slab import Comm

KINDS = ("GPipe", "1F1B")
CHUNK = 256  # examples that the exact gradient takes at once


class Layer(nn.Module):
    """One layer, written as briefly as PyTorch allows."""

    def __init__(self, K: Tensor, b: Tensor, h: float) -> None:
        super().__init__()
        self.K, self.b, self.h = nn.Parameter(K), nn.Parameter(b), h

    def forward(self, y: Tensor) -> Tensor:
        return torch.add(y, torch.tanh(linear(y, self.K, self.b)), alpha=self.h)


class Block(nn.Module):
    """Some layers for the compiler. The step is a tensor, else each depth would be compiled anew."""

    def __init__(self, layers: Iterable[Layer], h: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.h = torch.tensor(h)

    def forward(self, y: Tensor) -> Tensor:
        for layer in self.layers:
            y = y + self.h * torch.tanh(linear(y, layer.K, layer.b))
        return y


def network(theta: dict[str, Tensor], h: float, layers: Iterable[int], dtype: torch.dtype) -> nn.Sequential:
    """These layers of the network."""
    K, b = (theta[name].to(dtype) for name in ("K", "b"))
    return nn.Sequential(*(Layer(K[j].clone(), b[j].clone(), h) for j in layers))


def compiled(net: nn.Sequential, size: int) -> nn.Sequential:
    """The same layers, with the same parameters, in compiled blocks of `size`: one compilation serves all blocks."""
    blocks = [list(net)[j : j + size] for j in range(0, len(net), size)]
    return nn.Sequential(*(torch.compile(Block(block, net[0].h), dynamic=False) for block in blocks))


def by_autograd(model: nn.Module, net: nn.Sequential, y: Tensor, bar: Tensor) -> Callable[[], Gradients]:
    """One gradient by autograd on a model that has the parameters of `net`."""
    def run() -> Gradients:
        net.zero_grad(set_to_none=True)
        x = y.clone().requires_grad_()
        model(x).backward(bar)
        return x.grad, stacks(net)  # type: ignore[return-value]

    return run


def stacks(net: nn.Sequential) -> list[Tensor]:
    """Gradients as they lie, layer by layer: all K, then all b."""
    return [layer.K.grad for layer in net] + [layer.b.grad for layer in net]


def stacked(found: Gradients) -> Gradients:
    """Gradients of K and of b, on a leading axis of layers."""
    n = len(found[1]) // 2
    return found[0], [torch.stack(found[1][:n]), torch.stack(found[1][n:])]


def exact(net: nn.Sequential, y: Tensor, bar: Tensor) -> Gradients:
    """By autograd in float64, some examples at a time."""
    net.double().zero_grad(set_to_none=True)
    inputs = []
    for part, its_bar in zip(y.double().split(CHUNK), bar.double().split(CHUNK), strict=True):
        x = part.clone().requires_grad_()
        net(x).backward(its_bar)
        inputs.append(x.grad)
    found = stacked((torch.cat(inputs), stacks(net)))  # type: ignore[arg-type]
    net.to(y.dtype).zero_grad(set_to_none=True)
    return found


def schedule(kind: str, micro_batches: int, part: nn.Sequential, comm: Comm) -> Any:
    """A schedule of torch.distributed.pipelining over this rank's layers; the loss is ⟨y_N, bar⟩."""
    from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

    stage = PipelineStage(part, comm.rank, comm.size, torch.device("cpu"))
    made = {"GPipe": ScheduleGPipe, "1F1B": Schedule1F1B}[kind]
    return made(stage, micro_batches, loss_fn=lambda out, bar: (out * bar).sum(), scale_grads=False)


def by_pipeline(steps: Any, part: nn.Sequential, comm: Comm, y: Tensor, bar: Tensor) -> Callable[[], Gradients]:
    """One gradient by such a schedule: of the input (on rank 0), and of this rank's layers."""
    def run() -> Gradients:
        part.zero_grad(set_to_none=True)
        x = y.clone().requires_grad_(comm.rank == 0)
        given = (x,) if comm.rank == 0 else ()
        steps.step(*given, target=bar if comm.rank == comm.size - 1 else None, return_outputs=False)
        return x.grad if comm.rank == 0 else y, stacks(part)  # type: ignore[return-value]

    return run


@contextmanager
def process_group(comm: Comm) -> Iterator[None]:
    """The same ranks as a process group of torch.distributed over gloo (the ranks are on one machine)."""
    folder = share(comm, tempfile.mkdtemp(prefix="lpnet-peers-") if comm.rank == 0 else "")
    store = distributed.FileStore(os.path.join(folder, "store"), comm.size)
    distributed.init_process_group("gloo", store=store, rank=comm.rank, world_size=comm.size)
    try:
        yield
        comm.barrier()
    finally:
        distributed.destroy_process_group()
        if comm.rank == 0:
            shutil.rmtree(folder, ignore_errors=True)
