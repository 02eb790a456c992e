"""One GPU: lpnet against PyTorch run eagerly, as a CUDA graph, and compiled. See `bench.py`.

    y_{j+1} = y_j + h tanh(K_j y_j + b_j),    one full gradient: of the input, of all K and of all b

A GPU is bound by launches where layers are small, so what counts is depth, not work: N layers one after the other for
autograd and lpnet's exact engine, about 2 N/m + m for MGRIT, whose intervals go through a layer together. Coarse steps
with samples = m use the weights of all layers of an interval in one batched product.

A CUDA graph is the same gradient, launched at once; lpnet's may be captured since on one rank nothing of it is read by
the host. Contestants take turns; times are of CUDA events, and of the wall on a processor. `--count` counts the
launches of a gradient, which needs no GPU: its tensors have shapes and no memory.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import rivals
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import lpnet
from lpnet import devices, slab
from lpnet.scaling.problem import Gradients, error, smooth_weights
from lpnet.scaling.timing import of_trunk

Run = Callable[[], Gradients]

WITHIN = 1e-2
"""Gradient error up to which contestants are compared with autograd."""
WARMUP = 3
"""Runs before a capture."""


@dataclass
class Entry:
    """A contestant, and what was found of it; `note` says why it did not run."""

    name: str
    make: Callable[[], Run]
    run: Run | None = None
    collect: Callable[[Gradients], Gradients] = lambda found: found
    seconds: list[float] = field(default_factory=list)
    gradient_error: float = 0.0
    memory_mib: float | None = None
    note: str = ""


def graphed(run: Run) -> Run:
    """The same gradient as a CUDA graph, captured once: its results lie in the same memory each time."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(WARMUP):
            run()
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = run()

    def again() -> Gradients:
        graph.replay()
        return found

    return again


VIEWS = {
    "alias", "as_strided", "chunk", "detach", "expand", "permute", "select", "slice", "split", "squeeze", "t",
    "transpose", "unbind", "unsqueeze", "view", "_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty",
}  # fmt: skip
"""Operations that launch nothing."""


class Launches(TorchDispatchMode):
    """Counts the operations inside, without views."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ not in VIEWS
        return func(*args, **(kwargs or {}))


def count(args: argparse.Namespace) -> dict[str, int]:
    """Launches of a gradient by each contestant that is run eagerly."""
    args.skip_compile, found = True, {}
    for entry in Problem(args, torch.device("meta")).entries():
        run = entry.make()
        run()  # which prepares what later ones find
        with Launches() as launches:
            run()
        found[entry.name] = launches.count
    return found


class Problem:
    """One gradient, and those who compute it."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device
        generator = torch.Generator().manual_seed(args.seed)
        theta = smooth_weights(args.layers, args.width, generator)
        self.theta = {name: value.to(device) for name, value in theta.items()}
        y, bar = (torch.randn(args.batch, args.width, generator=generator, dtype=torch.float64) for _ in range(2))
        self.y, self.bar = (value.to(device, torch.float32) for value in (y, bar))

    def network(self) -> torch.nn.Sequential:
        args = self.args
        return rivals.network(self.theta, args.T / args.layers, range(args.layers), torch.float32)

    def true(self) -> Gradients:
        """By autograd in float64."""
        return rivals.exact(self.network(), self.y, self.bar)

    def eager(self) -> Run:
        net = self.network()
        return rivals.by_autograd(net, net, self.y, self.bar)

    def compiled(self) -> Run:
        net = self.network()
        return rivals.by_autograd(rivals.compiled(net, self.args.block), net, self.y, self.bar)

    def trunk(self, options: lpnet.MGRIT | lpnet.Serial) -> Run:
        args = self.args
        made = lpnet.LayerParallel(
            lpnet.dynamics.Dense(args.width), args.layers, args.T,
            forward=options, adjoint=options, comm=slab.Comm(), dtype=torch.float32,
        ).to(self.device)  # fmt: skip
        made.load_state_dict(dict(self.theta))
        return of_trunk(made, self.y, self.bar)

    def entries(self) -> Iterator[Entry]:
        """All contestants; graphs exist on GPUs alone."""
        ways: dict[str, Callable[[], Run]] = {"PyTorch autograd": self.eager}
        ways |= {f"lpnet {name}": lambda o=options: self.trunk(o) for name, options in solvers(self.args).items()}
        for name, make in ways.items():
            collect = rivals.stacked if name.startswith("PyTorch") else lambda found: found
            yield Entry(name, make, collect=collect)
            if self.device.type == "cuda":
                yield Entry(f"{name}, CUDA graph", lambda make=make: graphed(make()), collect=collect)
        if not self.args.skip_compile:
            yield Entry("PyTorch torch.compile", self.compiled, collect=rivals.stacked)


def solvers(args: argparse.Namespace) -> dict[str, lpnet.MGRIT | lpnet.Serial]:
    """lpnet's ways: the exact engine, and MGRIT with cheap coarse steps and with those of all layers."""
    found: dict[str, lpnet.MGRIT | lpnet.Serial] = {"Serial": lpnet.Serial()}
    for m in args.coarsenings:
        for k in args.cycles:
            found[f"MGRIT m={m}, {k}+{k} cycles"] = lpnet.MGRIT(coarsening=m, cycles=k)
            deep = lpnet.MGRIT(coarsening=m, cycles=k, samples=m, passes=args.passes)
            found[f"MGRIT m={m}, {k}+{k} cycles, samples={m}"] = deep
    return found


def begin(entry: Entry, true: Gradients, device: torch.device) -> None:
    """Make a contestant, and find its error and its memory; what the device cannot do is noted."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
    try:
        entry.run = entry.make()
        entry.gradient_error = error(entry.collect(entry.run()), true)
    except RuntimeError as wrong:  # no compiler, no capture, no memory
        entry.run, entry.note = None, str(wrong).strip().splitlines()[0][:100]
        return
    if device.type == "cuda":
        entry.memory_mib = (torch.cuda.max_memory_allocated(device) - before) / 2**20


def seconds_of(run: Run, device: torch.device) -> float:
    """From the first launch to the end of the last."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    first.record()
    run()
    last.record()
    torch.cuda.synchronize(device)
    return first.elapsed_time(last) / 1e3


def measure(problem: Problem) -> list[Entry]:
    """All contestants, in turns."""
    true, entries = problem.true(), list(problem.entries())
    for entry in entries:
        begin(entry, true, problem.device)
    for round_ in range(problem.args.rounds + 1):
        for entry in entries:
            if entry.run is not None:
                taken = seconds_of(entry.run, problem.device)
                entry.seconds += [taken] * bool(round_)  # not of the first round
    return entries


def verdicts(entries: list[Entry]) -> dict[str, float]:
    """PyTorch's time over that of lpnet's fastest within the allowed error, for each of PyTorch's ways."""
    ran = {e.name: statistics.median(e.seconds) for e in entries if e.seconds}
    good = [e.name for e in entries if e.seconds and e.name.startswith("lpnet") and e.gradient_error <= WITHIN]
    best = min(good, key=ran.__getitem__)
    return {f"{name} / {best}": t / ran[best] for name, t in ran.items() if name.startswith("PyTorch")}


def gpu(args: argparse.Namespace, about: dict[str, str]) -> None:
    """Measure, print the table, write it."""
    if args.count:
        for name, launches in count(args).items():
            print(f"{name:48s}{launches:8d} launches")
        return
    device = devices.own(args.device, slab.Comm()) or torch.device("cpu")
    what = torch.cuda.get_device_name(device) if device.type == "cuda" else "processor"
    print(f"layers {args.layers}, width {args.width}, batch {args.batch}, T {args.T}, float32, {what}")
    entries = measure(Problem(args, device))
    first = statistics.median(entries[0].seconds)
    print(f"{'':48s}{'median ms':>10s}{'ratio':>8s}{'gradient error':>16s}{'peak MiB':>10s}")
    rows = []
    for entry in entries:
        if entry.note:
            print(f"{entry.name:48s}did not run: {entry.note}")
        else:
            median = statistics.median(entry.seconds)
            peak = "-" if entry.memory_mib is None else f"{entry.memory_mib:.0f}"
            print(f"{entry.name:48s}{1e3 * median:10.2f}{median / first:8.3f}{entry.gradient_error:16.1e}{peak:>10s}")
        rows.append({key: value for key, value in asdict(entry).items() if key not in ("make", "run", "collect")})
    found = verdicts(entries)
    for name, ratio in found.items():
        print(f"{ratio:8.2f} = {name} (gradient error at most {WITHIN:g})")
    if args.json:
        given = {key: value for key, value in vars(args).items() if key not in ("json", "run")}
        whole = {"problem": given, "device": what, "versions": about, "rows": rows, "ratios": found}
        args.json.write_text(json.dumps(whole, indent=2) + "\n")


def add(commands, number: Callable, versions: Callable[[], dict[str, str]]) -> None:
    """The command for the parser of `bench.py`."""
    one = commands.add_parser("gpu", help="one full gradient on one GPU", allow_abbrev=False)
    one.set_defaults(run=lambda args: gpu(args, versions()))
    for key, value in {"layers": 1024, "width": 64, "batch": 256, "rounds": 21, "passes": 2, "block": 32}.items():
        one.add_argument(f"--{key}", type=number(1), default=value, help=f"({value})")
    one.add_argument("--T", type=number(0, float), default=4.0, help="(4)")
    one.add_argument("--seed", type=number(0), default=0, help="(0)")
    one.add_argument("--coarsenings", type=number(2), nargs="+", default=[8, 16, 32], help="(8 16 32)")
    one.add_argument("--cycles", type=number(0), nargs="+", default=[0, 1], help="(0 1)")
    one.add_argument("--skip-compile", action="store_true", help="leave out torch.compile")
    one.add_argument("--count", action="store_true", help="count launches only, without a GPU")
    one.add_argument("--json", type=Path, help="write the table to this file")
    one.add_argument("--device", default="cuda", help=argparse.SUPPRESS)
