"""Peak memory of a rank in training: what the process takes at most, over what cannot be done without.

    peak / (states + weights + gradients + optimizer),    states (N/P) batch width numbers, Adam two for each weight

The peak is the high-water mark of the resident set over some steps of training, less what the process had before the
network was made (after steps with a small one, so that all code is loaded).
"""

import argparse
import gc
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import lpnet
from lpnet import slab


def resident(key: str) -> int:
    """Bytes of the resident set now ("VmRSS"), or at most since `forget` ("VmHWM")."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))


def forget() -> None:
    """Let the high-water mark begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def trained(layers: int, width: int, batch: int, m: int, cycles: int, steps: int) -> lpnet.LayerParallel:
    """A network after some steps of Adam."""
    solver = lpnet.MGRIT(coarsening=m, cycles=cycles) if m else lpnet.Serial()
    trunk = lpnet.LayerParallel(lpnet.dynamics.Dense(width), layers, 1.0, forward=solver, adjoint=solver)
    net = torch.nn.Sequential(trunk, torch.nn.Linear(width, 2))
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, width, generator=generator)
    label = torch.randint(0, 2, (batch,), generator=generator)
    for _ in range(steps):
        loss = torch.nn.functional.cross_entropy(net(x), label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return trunk


def footprint(args: argparse.Namespace, versions: dict[str, str]) -> None:
    """Measure one case on all ranks; a process measures one, since memory is seldom given back."""
    comm = slab.world()
    case = (args.layers, args.width, args.batch, args.coarsening, args.cycles)
    trained(max(2, 2 * args.coarsening) * comm.size, *case[1:], 1)
    gc.collect()
    before = resident("VmRSS")
    forget()
    trunk = trained(*case, args.steps)
    peak = resident("VmHWM") - before
    weights = 4 * sum(p.numel() for p in trunk.parameters())
    states = 4 * len(trunk.local_layers) * args.width * args.batch
    rows = comm.allgather(np.array([[peak, states, weights]], dtype=np.int64), [1] * comm.size)
    if comm.rank:
        return
    peak, states, weights = rows[(rows[:, 0] / (rows[:, 1] + 4 * rows[:, 2])).argmax()].tolist()
    ratio = peak / (states + 4 * weights)
    name = f"m = {args.coarsening}, {args.cycles} + {args.cycles} cycles" if args.coarsening else "exact chain"
    print(
        f"{args.layers} layers, width {args.width}, batch {args.batch}, {comm.size} ranks, {name}: "
        f"peak {peak / 2**20:.1f} MiB, states {states / 2**20:.1f}, weights {weights / 2**20:.1f}, "
        f"peak / needed {ratio:.3f}"
    )
    if args.json:
        problem = {key: getattr(args, key) for key in ("layers", "width", "batch", "coarsening", "cycles", "steps")}
        found = {"problem": problem, "ranks": comm.size, "versions": versions, "ratio": ratio}
        found |= {"peak_bytes": peak, "states_bytes": states, "weights_bytes": weights}
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n")


def add(commands, number: Callable, versions: Callable[[], dict[str, str]]) -> None:
    """The command for the parser of `bench.py`."""
    one = commands.add_parser("memory", help="peak memory of a rank over what it needs", allow_abbrev=False)
    one.set_defaults(run=lambda args: footprint(args, versions()))
    for key, value in {"layers": 1024, "width": 32, "batch": 512, "steps": 4}.items():
        one.add_argument(f"--{key}", type=number(1), default=value)
    one.add_argument("--coarsening", type=number(0), default=0, help="of MGRIT (0: the exact chain)")
    one.add_argument("--cycles", type=number(0), default=0)
    one.add_argument("--json", help="write the figures to this file")
