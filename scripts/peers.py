"""When to use lpnet and when not: one full gradient by PyTorch's ways and by lpnet's, at equal gradient error.

    y_{j+1} = y_j + h tanh(K_j y_j + b_j),  h = T/N,  smooth weights;    over widths × batches × depths

Peers: autograd and torch.compile with one thread and with all, GPipe and 1F1B of torch.distributed.pipelining on all
ranks with the best number of micro-batches. lpnet: the exact engine with one thread and with all, the exact chain on
all ranks, MGRIT at given errors. All take turns on the same ranks; times are medians, the gradient error is the larger
of the relative errors of the input's and of all weights' gradients against autograd in float64.

Points that would take too long or too much memory are left out, with a note: the limits are options. Without a launcher
the command starts its ranks itself.
"""

import argparse
import gc
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path

import heatmap
import ours
import rivals
import torch
from contest import timed
from ours import Batches, Entry, Finder, Problem

import lpnet
from lpnet import folders, launch, slab
from lpnet.cores import affinity
from lpnet.experiments import folder
from lpnet.scaling.problem import Gradients, smooth_weights

CORES = len(affinity())
TOLS = (1e-2, 1e-4)
ROUNDS = (3, 21)
"""At least, and at most."""
FULL = {"widths": (2, 8, 32, 128, 256), "batches": (32, 256, 1000, 5000), "depths": (64, 512, 4096)}
QUICK = {"widths": (4, 64), "batches": (32, 500), "depths": (128,)}
COLUMNS = (
    "autograd", "autograd, all cores", "compile", "compile, all cores", "GPipe", "1F1B",
    "serial", "serial, all cores", "chain", "MGRIT",
)  # fmt: skip
"""Engines; of MGRIT there are several."""


@dataclass(frozen=True)
class Row:
    """What was measured of one contestant."""

    name: str
    engine: str
    ours: bool
    detail: str
    median_s: float
    quartiles_s: tuple[float, float]
    gradient_error: float


@dataclass
class Point:
    """One problem with all that was measured on it, or why nothing was."""

    layers: int
    width: int
    batch: int
    rows: list[Row] = field(default_factory=list)
    note: str = ""


# ---- one point -------------------------------------------------------------------------------------------------------


class Contest:
    """All points on the ranks at hand; every method is collective."""

    def __init__(self, args: argparse.Namespace, comm: slab.Comm) -> None:
        self.args, self.comm = args, comm
        self.finder, self.batches = Finder(TOLS, lambda *size: self.problem(*size)[0]), Batches()
        self.until = time.monotonic() + 60 * args.minutes

    def points(self) -> Iterator[Point]:
        """Small shapes first; of each shape all depths, so that what was compiled serves all of them."""
        shapes = product(self.args.widths, self.args.batches)
        for width, batch in sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape)):
            if not self.args.skip_compile:
                torch._dynamo.reset()
            rate = 0.0  # seconds of autograd per layer, so far
            for layers in sorted(self.args.depths):
                point = Point(layers, width, batch)
                point.note = self.refusal(point, rate)
                if not point.note:
                    point.rows = self.measured(point)
                    rate = point.rows[0].median_s / layers
                yield point

    def refusal(self, point: Point, rate: float) -> str:
        """Why this point is left out, if it is; the same on all ranks."""
        numbers = 2 * point.batch * point.width + 8 * point.width**2
        gib = 4 * point.layers * numbers / 2**30
        if gib > self.args.memory:
            return f"memory: autograd and the weights of all contestants would take {gib:.1f} GiB"
        if rate * point.layers > self.args.longest:
            return f"time: one gradient by autograd would take {rate * point.layers:.1f} s"
        late = self.comm.rank == 0 and time.monotonic() > self.until
        return "time was up" if ours.of_rank_0(self.comm, late) else ""

    def measured(self, point: Point) -> list[Row]:
        """Rows of all contestants."""
        problem, net = self.problem(point.layers, point.width, point.batch)
        entries = list(self.entries(problem, net))
        errors = [problem.error(entry) for entry in entries]
        seconds: list[list[float]] = [[] for _ in entries]
        while self.again(seconds):
            for taken, entry in zip(seconds, entries, strict=True):
                taken.append(timed(entry, self.comm))
        rows = [row(e, s, wrong) for e, s, wrong in zip(entries, seconds, errors, strict=True)]
        del entries, problem, net
        gc.collect()
        return rows

    def again(self, seconds: list[list[float]]) -> bool:
        """Whether one more round is to follow; the same on all ranks."""
        rounds, spent = len(seconds[0]), sum(map(sum, seconds))
        more = rounds < ROUNDS[0] or (rounds < ROUNDS[1] and spent + spent / rounds < self.args.seconds)
        return bool(ours.of_rank_0(self.comm, more))

    def problem(self, layers: int, width: int, batch: int) -> tuple[Problem, torch.nn.Sequential]:
        """A problem, and this rank's network by PyTorch: on rank 0 of all layers, else of its own."""
        args, comm = self.args, self.comm
        generator = torch.Generator().manual_seed(args.seed)
        theta = {name: t.float() for name, t in smooth_weights(layers, width, generator).items()}
        y, bar = (torch.randn(batch, width, generator=generator) for _ in range(2))
        problem = Problem(comm, layers, width, args.T, theta, y, bar)
        starts = slab.partition(layers, comm.size)
        mine = range(layers) if comm.rank == 0 else range(starts[comm.rank], starts[comm.rank + 1])
        net = rivals.network(theta, args.T / layers, mine, y.dtype)
        if comm.rank == 0:
            problem.true = rivals.exact(net, y, bar)
        comm.barrier(idle=comm.rank != 0)
        return problem, net

    def entries(self, problem: Problem, net: torch.nn.Sequential) -> Iterator[Entry]:
        """All contestants, the peers first."""
        yield from self.alone(problem, net, net, "autograd")
        if not self.args.skip_compile:
            for threads in sorted({1, self.args.cores}):
                model = rivals.compiled(net, self.args.block) if self.comm.rank == 0 else net
                yield from self.alone(problem, net, model, "compile", (threads,))
        if self.comm.size > 1:
            for kind in rivals.KINDS:
                yield from self.pipeline(problem, net, kind)
        yield from ours.serial(problem, self.batches, self.args.cores)
        yield from self.finder.entries(problem)

    def alone(
        self, problem: Problem, net: torch.nn.Sequential, model: torch.nn.Module, engine: str,
        threads: Iterable[int] = (),
    ) -> Iterator[Entry]:  # fmt: skip
        """PyTorch on rank 0, with one thread and with all."""
        run = rivals.by_autograd(model, net, problem.y, problem.bar)
        for n in threads or sorted({1, self.args.cores}):
            words = "1 thread" if n == 1 else f"{n} threads"
            kind = engine if n == 1 else f"{engine}, all cores"
            yield Entry(f"PyTorch {engine}, {words}", run, True, n, kind, collect=rivals.stacked)

    def pipeline(self, problem: Problem, net: torch.nn.Sequential, kind: str) -> Iterator[Entry]:
        """A schedule with its best number of micro-batches."""
        comm, own = self.comm, slab.Slab(problem.layers, self.comm)
        part = net[: own.hi - own.lo]  # rank 0 has all layers, and its own are the first

        def collect(found: Gradients) -> Gradients:
            x, weights = rivals.stacked(found)
            return x, [own.gather(g) for g in weights]

        def make(q: int) -> Entry:
            steps = rivals.schedule(kind, q, part, comm)
            run = rivals.by_pipeline(steps, part, comm, problem.y, problem.bar)
            return Entry(f"PyTorch {kind}", run, engine=kind, detail=f"{q}", collect=collect)

        return self.batches.entries(kind, problem, make, comm.size if kind == "1F1B" else 1)


def row(entry: Entry, seconds: list[float], wrong: float) -> Row:
    """Median and quartiles."""
    low, _, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return Row(entry.name, entry.engine, entry.ours, entry.detail, statistics.median(seconds), (low, high), wrong)


# ---- table and files -------------------------------------------------------------------------------------------------


def verdict(point: Point, tol: float | None) -> tuple[float, str, str]:
    """Time of the fastest peer over that of the fastest of lpnet, and their engines; tol None: exact ones only."""
    def allowed(row: Row) -> bool:
        return row.engine != "MGRIT" or (tol is not None and row.gradient_error <= tol)

    best = min((row for row in point.rows if row.ours and allowed(row)), key=lambda row: row.median_s)
    peer = min((row for row in point.rows if not row.ours), key=lambda row: row.median_s)
    return peer.median_s / best.median_s, best.engine, peer.engine


WIDTHS = (8, 10, 8, 10, 9, 9, 8, 10, 9, 15, 15)
"""Of the columns of times."""


def head(args: argparse.Namespace, ranks: int) -> str:
    """What is done, and the names of the columns."""
    bounds = [f"≤ {tol:g}" for tol in TOLS]
    names = ["autograd", "all cores", "compile", "all cores", "GPipe", "1F1B", "serial", "all cores", "chain"]
    names += [f"MGRIT {bound}" for bound in bounds]
    about = f"T {args.T:g}, float32, {ranks} ranks, {args.cores} cores. Times over autograd's on one thread; in "
    about += "brackets micro-batches, or m and cycles of MGRIT. Last: fastest peer over lpnet's fastest."
    about += f" torch.compile left out: {args.compile}." if args.skip_compile else ""
    ends = "".join(f"{end:>9s}" for end in ("exact", *bounds))
    return f"{about}\n{'layers width batch':>18s}{'ms':>9s}{aligned(names)}{ends}"


def aligned(cells: Iterable[str]) -> str:
    """In columns."""
    return "".join(f"{cell:>{width + 1}s}" for cell, width in zip(cells, WIDTHS, strict=True))


def line(point: Point) -> str:
    """One line of the table."""
    text = f"{point.layers:6d}{point.width:6d}{point.batch:6d}"
    if point.note:
        return f"{text}  left out: {point.note}"
    first = point.rows[0].median_s
    cells = dict.fromkeys([*COLUMNS[:-1], *(f"{tol:g}" for tol in TOLS)], "-")
    for one in point.rows:
        key = one.name.split()[-1] if one.engine == "MGRIT" else one.engine
        short = one.detail.replace("m ", "").replace(" + ", "+").replace(", ", " ")
        cells[key] = f"{one.median_s / first:.2f}" + (f" ({short})" if short else "")
    gains = "".join(f"{verdict(point, tol)[0]:9.2f}" for tol in (None, *TOLS))
    return f"{text}{1e3 * first:9.2f}{aligned(cells.values())}{gains}"


def contest(args: argparse.Namespace, comm: slab.Comm, about: dict[str, str]) -> None:
    """Measure, print, and write the numbers and the picture."""
    with launch.together(comm):
        if comm.rank == 0:
            folders.make(args.docs / "results", "--docs")
    torch.set_num_threads(1)
    found = []
    if comm.rank == 0:
        print(head(args, comm.size), flush=True)
    with rivals.process_group(comm) if comm.size > 1 else nullcontext():
        for point in Contest(args, comm).points():
            found.append(point)
            if comm.rank == 0:
                print(line(point), flush=True)
    if comm.rank == 0:
        write(args, comm.size, about, found)


def write(args: argparse.Namespace, ranks: int, about: dict[str, str], found: list[Point]) -> None:
    """The numbers, and the picture."""
    keys = ("widths", "batches", "depths", "T", "seed", "seconds", "minutes", "memory", "longest", "block", "cores")
    settings = {key: getattr(args, key) for key in keys} | {"ranks": ranks, "torch.compile": args.compile}
    points = [asdict(point) for point in found]
    whole = {"settings": settings, "versions": about, "points": points}
    (args.docs / "results" / "peers.json").write_text(folder.text(folder.plain(whole)) + "\n")
    measured = [point for point in found if point.rows]
    gains = {(tol, p.layers, p.width, p.batch): verdict(p, tol) for tol in (None, TOLS[0]) for p in measured}
    if gains:
        heatmap.drawn(gains, ranks, args.docs / "peers.png")


# ---- command ---------------------------------------------------------------------------------------------------------


def add(commands, number: Callable, versions: Callable[[], dict[str, str]]) -> None:
    """The command for the parser of `bench.py`."""
    one = commands.add_parser("peers", help="PyTorch's ways and lpnet's over many sizes", allow_abbrev=False)
    one.set_defaults(run=lambda args: run(args, versions))
    one.add_argument("--quick", action="store_true", help="few sizes: less than a minute")
    for key in FULL:
        one.add_argument(f"--{key}", type=number(1), nargs="+", help=f"({' '.join(map(str, FULL[key]))})")
    one.add_argument("--T", type=number(0, float), default=4.0)
    one.add_argument("--seed", type=number(0), default=0)
    one.add_argument("--ranks", type=number(1), default=2, help="where no launcher has started some (2)")
    one.add_argument("--cores", type=number(1), default=CORES, help=f"threads of what uses all cores ({CORES})")
    one.add_argument("--seconds", type=number(0, float), help="of the rounds at a point, at most (4; quick: 0.5)")
    one.add_argument("--minutes", type=number(0, float), default=15.0, help="after which no point is begun (15)")
    one.add_argument("--memory", type=number(0, float), default=4.0, help="GiB that a point may take (4)")
    one.add_argument("--longest", type=number(0, float), default=1.5, help="seconds of a gradient by autograd (1.5)")
    one.add_argument("--block", type=number(1), help="layers that torch.compile sees at once (16; quick: 8)")
    one.add_argument("--skip-compile", action="store_true", help="leave out torch.compile")
    one.set_defaults(compile="skipped")
    one.add_argument(
        "--docs", type=Path, default=Path("runs/bench-peers"),
        help="folder for peers.png and results/peers.json, which are overwritten (runs/bench-peers)",
    )  # fmt: skip


def run(args: argparse.Namespace, versions: Callable[[], dict[str, str]]) -> None:
    """Under a launcher do it, else start the ranks."""
    for key, value in (QUICK if args.quick else FULL).items():
        setattr(args, key, getattr(args, key) or list(value))
    args.seconds = args.seconds if args.seconds is not None else (0.5 if args.quick else 4.0)
    args.block = args.block or (8 if args.quick else 16)
    if slab.launcher() is None and args.ranks > 1:
        sys.exit(started(args.ranks))
    # One thread compiles: helpers would take the cores of the next contestant.
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    args.compile = "skipped" if args.skip_compile else "in turn with the others"
    if not args.skip_compile and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        args.skip_compile, args.compile = True, "no C++ compiler"
    contest(args, slab.world(), versions())


def started(ranks: int) -> int:
    """The exit code of the same command on so many ranks."""
    beside = Path(sys.executable).parent / "mpirun"
    mpirun = str(beside) if beside.exists() else shutil.which("mpirun")
    if mpirun is None:
        raise lpnet.InputError(f"--ranks: {ranks} given without mpirun, 1 allowed")
    return subprocess.run([mpirun, "-n", str(ranks), sys.executable, *sys.argv], check=False).returncode
