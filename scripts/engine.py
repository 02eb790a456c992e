"""The exact serial engine on one core: against autograd, and against the bare tensor operations of its steps.

For each (width, batch) three contestants take turns: autograd on the plain network, the engine, and a loop that does
nothing but the engine's tensor operations, on as much memory, with all views made before. The difference of the last
two, over the two visits that a gradient pays to a layer, is what the library adds to a visit. Times are the least
that the processor took in any round: others on the machine, who take its caches, only add to that.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from contest import Contestant, exact_gradient
from torch import Tensor

import lpnet
from lpnet import slab
from lpnet.dense_field import is_packed
from lpnet.scaling.problem import error, smooth_weights
from lpnet.scaling.timing import of_plain, of_trunk

SHAPES = ((2, 1000), (4, 256), (8, 2000), (32, 256), (64, 64), (128, 128))
"""(width, batch)."""


def bare(theta: dict[str, Tensor], y: Tensor, bar: Tensor, h: float) -> Callable[[], None]:
    """The operations of one gradient of y + h tanh(Ky + b) with examples in columns, and nothing else."""
    K, b = theta["K"].to(y), theta["b"].to(y)
    n, width, _ = K.shape
    packed = is_packed(width, width, len(y))
    full = y.new_ones(width + 1, len(y))
    x, z, d, ones = full[:width], torch.empty_like(full[:width]), torch.empty_like(full[:width]), full[width]
    A = (2 * torch.cat([K, b[:, :, None]], 2)).unbind() if packed else K.unbind()
    Kt, bias = (K.transpose(1, 2).unbind(), b[:, :, None].unbind())
    grads, tape = y.new_empty(n, width, width + packed).unbind(), y.new_empty(n, *x.shape).unbind()
    bias_grads, turned = y.new_empty(n, width).unbind(), (full if packed else x).t()
    minus, pull = torch.tensor(-1.0), torch.ops.aten.tanh_backward.grad_input

    def run() -> None:
        x.copy_(y.t())
        z.copy_(bar.t())
        for j in range(n):
            u = tape[j]
            if packed:
                torch.mm(A[j], full, out=u)
            else:
                torch.addmm(bias[j], A[j], x, beta=2, alpha=2, out=u)
            x.add_(torch.add(minus, u.sigmoid_(), alpha=2, out=u), alpha=h)
        for j in range(n - 1, -1, -1):
            x.sub_(tape[j], alpha=h)
            pull(z, tape[j], grad_input=d)
            grads[j].addmm_(d, turned, beta=0, alpha=h)
            if not packed:
                bias_grads[j].addmv_(d, ones, beta=0, alpha=h)
            z.addmm_(Kt[j], d, alpha=h)

    return run


def measured(args: argparse.Namespace, width: int, batch: int) -> dict[str, float]:
    """One shape: microseconds a layer, ratio, overhead of a visit in microseconds, and the gradient error."""
    generator = torch.Generator().manual_seed(args.seed)
    theta = smooth_weights(args.layers, width, generator)
    y, bar = torch.randn(2, batch, width, generator=generator).unbind()
    trunk = lpnet.LayerParallel(
        lpnet.dynamics.Dense(width), args.layers, args.T,
        forward=lpnet.Serial(), adjoint=lpnet.Serial(), comm=slab.Comm(), dtype=torch.float32,
    )  # fmt: skip
    trunk.load_state_dict(theta)
    plain = trunk.as_sequential()
    contestants = [
        Contestant("autograd", of_plain(plain, y, bar)),
        Contestant("engine", of_trunk(trunk, y, bar)),
        Contestant("bare", bare(theta, y, bar, args.T / args.layers)),  # type: ignore[arg-type]
    ]
    wrong = error(of_trunk(trunk, y, bar)(), exact_gradient(plain, y, bar))
    seconds: list[list[float]] = [[], [], []]
    for round_ in range(args.rounds + 2):
        for taken, contestant in zip(seconds, contestants, strict=True):
            begin = time.process_time()
            contestant.run()
            if round_ >= 2:
                taken.append(time.process_time() - begin)
    autograd, engine, alone = (1e6 * min(taken) / args.layers for taken in seconds)
    return {
        "width": width, "batch": batch, "autograd_us": autograd, "engine_us": engine, "bare_us": alone,
        "ratio": engine / autograd, "overhead_us": (engine - alone) / 2, "gradient_error": wrong,
    }  # fmt: skip


def engine(args: argparse.Namespace, versions: dict[str, str]) -> None:
    """All shapes, and their geometric mean."""
    print(f"{args.layers} layers, T {args.T}, float32, one thread, {args.rounds} rounds; processor µs a layer, a visit")
    heads = ("autograd", "engine", "ratio", "bare", "overhead", "error")
    print("  width   batch", *(f"{head:>9}" for head in heads))
    rows = []
    for width, batch in zip(args.widths, args.batches, strict=True):
        row = measured(args, width, batch)
        rows.append(row)
        values = (row[key] for key in ("autograd_us", "engine_us", "ratio", "bare_us", "overhead_us"))
        print(f"{width:7d} {batch:7d}", *(f"{value:9.3f}" for value in values), f"{row['gradient_error']:9.1e}")
    mean = math.exp(statistics.fmean(math.log(row["ratio"]) for row in rows))
    print(f"geometric mean of the ratios {mean:.3f}, largest overhead {max(r['overhead_us'] for r in rows):.2f}")
    if args.json:
        found = {"layers": args.layers, "T": args.T, "versions": versions, "rows": rows, "geometric_mean": mean}
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n")


def add(commands, number: Callable, versions: Callable[[], dict[str, str]]) -> None:
    """The command for the parser of `bench.py`."""
    one = commands.add_parser("engine", help="the exact serial engine against autograd", allow_abbrev=False)
    one.set_defaults(run=lambda args: run(args, versions()))
    one.add_argument("--layers", type=number(1), default=512)
    one.add_argument("--widths", type=number(1), nargs="+", default=[w for w, _ in SHAPES])
    one.add_argument("--batches", type=number(1), nargs="+", default=[b for _, b in SHAPES], help="one for each width")
    one.add_argument("--T", type=number(0, float), default=4.0)
    one.add_argument("--seed", type=number(0), default=0)
    one.add_argument("--rounds", type=number(1), default=11)
    one.add_argument("--json", help="write the table to this file")


def run(args: argparse.Namespace, versions: dict[str, str]) -> None:
    """After a look at the shapes."""
    if len(args.widths) != len(args.batches):
        raise lpnet.InputError(f"--batches: {len(args.batches)} given for {len(args.widths)} widths, as many allowed")
    engine(args, versions)
