#!/usr/bin/env python
"""Benchmarks of lpnet: ratios of medians (`engine`: of least times), all contestants side by side in one run.

    mpirun -n 2 python scripts/bench.py gradient [--layers 256 --width 32 --batch 256 --T 4 --json FILE]
    python scripts/bench.py optimizers [--layers 32 --work 600 --problems peaks ellipses swissroll --docs docs]
    python scripts/bench.py engine [--layers 512 --json FILE]
    mpirun -n P python scripts/bench.py memory [--layers 1024 --width 32 --batch 512 --coarsening 32 --cycles 1]
    python scripts/bench.py gpu [--layers 1024 --width 64 --batch 256 --json FILE] [--count]
    mpirun -n P python scripts/bench.py checkpoint [--layers 1365 --width 256 --rounds 5 --folder runs --json FILE]
    python scripts/bench.py peers [--quick --widths 2 8 --batches 32 256 --depths 64 512 --docs docs]

`gradient`: contestants take turns within each round, so that a change of the machine's speed meets all of them. While
one rank works alone, the others sleep. `optimizers` (see `optimizers.py`) writes results/optimizers.json and
optimizers.png in runs/bench-optimizers (--docs: another folder). `engine` is the exact engine on one core,
`memory` the peak memory of a rank, `gpu` one gradient on a GPU, `checkpoint` the speed of checkpoints against plain
writes (see `engine.py`, `footprint.py`, `gpu.py`, `storage.py`). `peers` (see `peers.py`) starts its ranks itself and
writes results/peers.json and peers.png in runs/bench-peers. Exit code 2: something given is not allowed.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import engine
import footprint
import gpu
import peers
import storage
import torch
from contest import Contestant, exact_gradient, gathered, stacked, timed
from optimizers import PROBLEMS, optimizers
from torch import Tensor, nn

import lpnet
from lpnet import arguments, folders, launch, slab
from lpnet.cores import affinity
from lpnet.errors import counted
from lpnet.scaling.origin import origin
from lpnet.scaling.problem import error, smooth_weights
from lpnet.scaling.timing import bytes_of, kept, of_plain, of_trunk


def versions() -> dict[str, str]:
    """What the figures depend on."""
    return {**origin(), "cores": str(len(affinity()))}


def gradient(args: argparse.Namespace) -> None:
    """One full gradient: forward, adjoint and weight gradients."""
    comm = slab.world()
    dtype = getattr(torch, args.dtype)
    generator = torch.Generator().manual_seed(args.seed)
    theta = smooth_weights(args.layers, args.width, generator)
    y = torch.randn(args.batch, args.width, generator=generator, dtype=torch.float64).to(dtype)
    bar = torch.randn(args.batch, args.width, generator=generator, dtype=torch.float64).to(dtype)

    def trunk(options: lpnet.MGRIT | lpnet.Serial, on: slab.Comm = comm) -> lpnet.LayerParallel:
        made = lpnet.LayerParallel(
            lpnet.dynamics.Dense(args.width),
            args.layers,
            args.T,
            forward=options,
            adjoint=options,
            comm=on,
            dtype=dtype,
        )
        made.load_state_dict(theta)
        return made

    alone = trunk(lpnet.Serial(), slab.Comm())
    plain = alone.as_sequential()
    m = args.coarsening
    solvers = {f"Serial({q})": lpnet.Serial(q) for q in ((1,) if comm.size == 1 else (1, 2, 4, 8))}
    solvers |= {f"MGRIT m={m}, {k}+{k} cycles": lpnet.MGRIT(coarsening=m, cycles=k) for k in (0, 1, 2)}
    trunks = {name: trunk(options) for name, options in solvers.items()}
    contestants = [
        Contestant("autograd, 1 thread", of_plain(plain, y, bar), alone=True),
        Contestant(f"autograd, {comm.size} threads", of_plain(plain, y, bar), alone=True, threads=comm.size),
        Contestant("Serial(1), 1 rank", of_trunk(alone, y, bar), alone=True),
    ]
    ranks = counted(comm.size, "rank")
    contestants += [Contestant(f"{name}, {ranks}", of_trunk(t, y, bar)) for name, t in trunks.items()]
    if comm.size == 1:
        del contestants[1:3]
    true = exact_gradient(plain, y, bar)
    errors = [error(stacked(of_plain(plain, y, bar)()), true)] * (1 if comm.size == 1 else 2)
    if comm.size > 1:
        errors.append(error(of_trunk(alone, y, bar)(), true))
    errors += [error(gathered(t, of_trunk(t, y, bar)()), true) for t in trunks.values()]
    share = args.layers / comm.size * args.batch * args.width * y.element_size()
    memory = {"autograd": kept_by_autograd(plain, y) / (comm.size * share)}
    memory |= {name: comm.agree(kept(t, y)) / share for name, t in trunks.items()}
    seconds: list[list[float]] = [[] for _ in contestants]
    for round_ in range(args.rounds + args.warmup):
        for taken, contestant in zip(seconds, contestants, strict=True):
            value = timed(contestant, comm)
            if round_ >= args.warmup:
                taken.append(value)
    if comm.rank == 0:
        results = [Result(c.name, s, e) for c, s, e in zip(contestants, seconds, errors, strict=True)]
        report(args, comm.size, results, memory)


def kept_by_autograd(net: nn.Module, y: Tensor) -> int:
    """Bytes of states that autograd keeps between forward and backward (weights not counted)."""
    saved: list[Tensor] = []
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        out = net(y.clone().requires_grad_())
    del out
    return bytes_of(t for t in saved if t.untyped_storage().data_ptr() not in weights)


@dataclass
class Result:
    """What was measured of one contestant."""

    name: str
    seconds: list[float]
    gradient_error: float


def report(args: argparse.Namespace, ranks: int, results: list[Result], memory: dict[str, float]) -> None:
    """Print the table and write it as JSON."""
    rows = []
    first = statistics.median(results[0].seconds)
    print(
        f"layers {args.layers}, width {args.width}, batch {args.batch}, T {args.T}, {args.dtype}, "
        f"{counted(ranks, 'rank')}, {counted(args.rounds, 'round')}"
    )
    print(f"{'':36s} {'median ms':>10s} {'ratio':>7s} {'gradient error':>15s}")
    for one in results:
        median = statistics.median(one.seconds)
        wrong = one.gradient_error
        rows.append({"name": one.name, "median_s": median, "ratio": median / first, "gradient_error": wrong})
        print(f"{one.name:36s} {1e3 * median:10.2f} {median / first:7.3f} {wrong:15.1e}")
    print("kept between forward and backward, largest rank, over (N/P) batch width: ", end="")
    print(", ".join(f"{name} {value:.3f}" for name, value in memory.items()))
    if args.json:
        problem = {key: value for key, value in vars(args).items() if key not in ("json", "run")}
        found = {"problem": problem, "ranks": ranks, "versions": versions(), "rows": rows, "memory": memory}
        Path(args.json).write_text(json.dumps(found, indent=2) + "\n")


def number(least: float, kind: type = int) -> arguments.Form:
    """A type of arguments: finite numbers of at least `least`."""
    return arguments.whole(int(least)) if kind is int else arguments.number(least)


def parser() -> arguments.Parser:
    """Of all commands."""
    made = arguments.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = made.add_subparsers(required=True, metavar="COMMAND", title="commands")
    one = commands.add_parser("gradient", help="one full gradient against autograd", allow_abbrev=False)
    one.set_defaults(run=gradient)
    for key, value in {"layers": 256, "width": 32, "batch": 256, "coarsening": 16, "seed": 0}.items():
        one.add_argument(f"--{key}", type=number(int(key != "seed")), default=value)
    one.add_argument("--T", type=arguments.above_0(), default=4.0)
    one.add_argument("--dtype", type=arguments.one_of(("float32", "float64")), default="float32")
    one.add_argument("--rounds", type=number(1), default=21)
    one.add_argument("--warmup", type=number(0), default=3)
    one.add_argument("--json", help="write the table to this file")
    two = commands.add_parser(
        "optimizers", help="objective against work and time of the optimizers", allow_abbrev=False
    )
    two.set_defaults(run=lambda args: optimizers(args, versions()))
    two.add_argument("--layers", type=number(1), default=32, help="of the trunks (32)")
    two.add_argument("--work", type=number(1), default=600, help="of each optimizer, in gradients (600)")
    two.add_argument("--seed", type=number(0), default=0, help="of data and initial weights (0)")
    two.add_argument("--iterations", type=number(1), default=20, help="of the inner solves, at most (20)")
    two.add_argument("--tol", type=number(0, float), default=0.1, help="of the inner solves (0.1)")
    two.add_argument("--radius", type=number(0, float), default=2.0, help="of the inner solves (2); 0: none")
    two.add_argument("--problems", nargs="+", type=arguments.one_of(tuple(PROBLEMS)), default=list(PROBLEMS))
    two.add_argument(
        "--docs", type=Path, default=Path("runs/bench-optimizers"),
        help="folder for optimizers.png and results/optimizers.json, which are overwritten (runs/bench-optimizers)",
    )  # fmt: skip
    for module in (engine, footprint, gpu, peers, storage):
        module.add(commands, number, versions)
    return made


def job(comm: slab.Comm, given: Sequence[str]) -> None:
    """Parse and run; collective."""
    with launch.together(comm):
        args = parser().parse_args(given)
        if getattr(args, "json", None) and comm.rank == 0:
            folders.make(Path(args.json).parent, "--json")
            folders.check_file(Path(args.json), "--json")
    torch.set_num_threads(1)
    args.run(args)


def main(given: Sequence[str] | None = None) -> int:
    """Run as the arguments say (those of the process, if None); the exit code. Collective."""
    return launch.run("bench.py", lambda comm: job(comm, sys.argv[1:] if given is None else given))


if __name__ == "__main__":
    launch.command(main)
