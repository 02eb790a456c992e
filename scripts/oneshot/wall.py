"""Seconds of training to 95 % validation accuracy on peaks: all ranks together against plain PyTorch on one core."""

import argparse
import json
import math
import statistics
import time
from typing import Any

import torch
from common import COMMON, SERIAL, SIMULTANEOUS, Record, network
from matplotlib import pyplot as plt
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lpnet.network import Network
from lpnet.slab import Comm, world
from lpnet.training.evaluation import predict
from lpnet.training.examples import Tensors, batches
from lpnet.training.objective import Objective, descent_of
from lpnet.training.updates import make_optimizer, make_schedule


def wall(args: argparse.Namespace) -> Record:
    """Seconds of training to 95 % validation accuracy on peaks: all ranks against plain PyTorch on one core."""
    comm = world()
    rows: list[Record] = []
    for seed in range(args.seeds):
        common = ("peaks", *COMMON, "--training.batch=500", f"--run.seed={seed}", *args.more)
        rows.append({name: until(common, name, comm) for name in CONTESTANTS})
        if comm.rank == 0:
            print(json.dumps(rows[-1]), flush=True)
    medians = {name: statistics.median(row[name]["seconds"] for row in rows) for name in CONTESTANTS}
    if comm.rank == 0:
        _, axis = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
        for name in CONTESTANTS:
            axis.plot(*zip(*rows[0][name]["curve"], strict=True), ".-", label=name)
        axis.axhline(0.95, color="gray", lw=0.6)
        axis.set(xlabel="seconds of training", ylabel="validation accuracy (exact evaluation)", ylim=(0.2, 1))
        axis.set(title=f"peaks, 256 layers, width 8, batch 500, {comm.size} ranks on 2 cores")
        axis.legend()
    best = min(medians[name] for name in CONTESTANTS if name.startswith("PyTorch"))
    ratios = {name: medians[name] / best for name in CONTESTANTS}
    return {"ranks": comm.size, "seconds": medians, "over_pytorch": ratios, "rows": rows}


CONTESTANTS: dict[str, tuple[str, ...]] = {
    "PyTorch, one core": (),
    "PyTorch, one core, fused Adam": ("fused",),
    "lpnet simultaneous": SIMULTANEOUS,
    "lpnet gradient (preset)": (),
    "lpnet exact chain": SERIAL,
}


def until(common: tuple[str, ...], name: str, comm: Comm) -> Record:
    """Train until 95 % are reached (looked at every 10 steps, outside of the time)."""
    comm.barrier(idle=True)
    if not name.startswith("PyTorch"):
        return timed(*network(*common, *CONTESTANTS[name], comm=comm))
    found = timed(*network(*common), fused="fused" in CONTESTANTS[name]) if comm.rank == 0 else {"seconds": math.inf}
    comm.barrier(idle=comm.rank != 0)
    return found


def timed(net: Network, tensors: Tensors, fused: bool | None = None) -> Record:
    """Seconds, steps and curve; `fused` is not None: as an ordinary torch module without regularisers."""
    config = net.config
    model: nn.Module = net if fused is None else net.as_sequential()
    if fused is None:
        optimizer = make_optimizer(config.optimizer, model.parameters())
        step = descent_of(net, optimizer, Objective(net), len(tensors.train_y)).step
    else:
        optimizer = torch.optim.Adam(model.parameters(), lr=config.optimizer.lr, fused=fused)
        step = plain_step(model, optimizer)
    schedule = make_schedule(config.schedule, optimizer, config.training.total_steps(len(tensors.train_y)))
    seconds, curve = 0.0, []
    for number, (_, index) in enumerate(batches(tensors, config.training.batch, config.run.seed), 1):
        start = time.perf_counter()
        step(tensors.train_x[index], tensors.train_y[index], index)
        schedule.step()
        seconds += time.perf_counter() - start
        if number % 10 == 0:
            curve.append((seconds, validation(net, model, tensors)))
            if curve[-1][1] >= 0.95 or number >= 500:
                return {"seconds": seconds, "steps": number, "curve": curve}
    raise AssertionError("batches never end")


def plain_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """One step of an ordinary torch loop."""
    def step(x: Tensor, y: Tensor, index: Tensor) -> None:
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def validation(net: Network, model: nn.Module, tensors: Tensors) -> float:
    """Accuracy of an exact evaluation."""
    with torch.no_grad():
        logits = predict(net, tensors.val_x) if model is net else model(tensors.val_x)
    return (logits.argmax(dim=1) == tensors.val_y).double().mean().item()
