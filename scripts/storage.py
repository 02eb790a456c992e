"""Speed of checkpoints: weights and the state of Adam, against plain writes of as many bytes to the same disk.

    plain        rank 0 writes the bytes in pieces of 16 MiB and flushes them to the disk
    checkpoint   `lpnet.checkpoint`: streamed through rank 0, with check sums, flushed, renamed
    read         opened and all check sums verified, each rank its share; from memory where the system still has it

The three take turns; the speed of a disk changes from one second to the next.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from footprint import forget, resident

import lpnet
from lpnet import folders, launch, slab
from lpnet.checkpoint import file, states
from lpnet.checkpoint.content import Content

_PIECE = 16 * 2**20


def content(layers: int, width: int) -> Content:
    """Of a trunk after some steps of Adam, this rank's layers."""
    trunk = lpnet.LayerParallel(lpnet.dynamics.Dense(width), layers, 1.0, init="random")
    optimizer = torch.optim.Adam(trunk.parameters(), fused=True)
    for p in trunk.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()
    return states.of_net(trunk) | states.of_optimizer(optimizer, trunk)


def plain(path: Path, size: int, piece: torch.Tensor) -> float:
    """Seconds of a plain write."""
    began, raw = time.perf_counter(), memoryview(piece.numpy())
    with path.open("wb", buffering=0) as out:
        for start in range(0, size, len(raw)):
            out.write(raw[: size - start])
        os.fsync(out.fileno())
    return time.perf_counter() - began


def storage(args: argparse.Namespace, versions: dict[str, str]) -> None:
    """Measure, and print the table on rank 0."""
    comm = slab.world()
    with launch.together(comm):
        if comm.rank == 0:
            folders.make(args.folder, "--folder")
    own = content(args.layers, args.width)
    piece = torch.randint(0, 256, (_PIECE,), dtype=torch.uint8)
    seconds: dict[str, list[float]] = {"plain": [], "checkpoint": [], "read": []}
    held = tempfile.TemporaryDirectory(dir=args.folder) if comm.rank == 0 else None
    folder = Path(launch.share(comm, held.name if held is not None else ""))
    size = memory = 0
    for round_ in range(args.rounds + 1):
        found = {}
        comm.barrier(idle=True)
        if comm.rank == 0 and round_:
            found["plain"] = plain(folder / "plain", size, piece)
            (folder / "plain").unlink()
        comm.barrier(idle=True)
        before = resident("VmRSS")
        forget()
        written = file.write(folder / "checkpoint.h5", comm, own)
        memory = comm.agree(resident("VmHWM") - before)
        found["checkpoint"], size = written.seconds, written.bytes
        comm.barrier(idle=True)
        began = time.perf_counter()
        file.read(folder / "checkpoint.h5", comm).close()
        found["read"] = time.perf_counter() - began
        comm.barrier(idle=True)
        if comm.rank == 0:
            (folder / "checkpoint.h5").unlink()
            for name, value in found.items() if round_ else ():  # the first round warms up
                seconds[name].append(value)
    if held is not None:
        held.cleanup()
        _report(args, (comm.size, size, memory), seconds, versions)


def _report(
    args: argparse.Namespace, case: tuple[int, int, int], seconds: dict[str, list[float]], versions: dict[str, str]
) -> None:
    ranks, size, memory = case
    median = {name: statistics.median(values) for name, values in seconds.items()}
    pairs = zip(seconds["plain"], seconds["checkpoint"], strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{args.layers} layers, width {args.width}, {size / 2**30:.2f} GiB, {ranks} ranks, {args.rounds} rounds")
    print(f"{'':12s} {'median s':>9s} {'least s':>9s} {'GiB/s':>7s}")
    for name, value in median.items():
        print(f"{name:12s} {value:9.2f} {min(seconds[name]):9.2f} {size / 2**30 / value:7.2f}")
    print(f"speed of a checkpoint over that of plain writes, median of the rounds: {ratio:.2f}")
    print(f"memory of a rank meanwhile, at most, beside its own rows: {memory / 2**20:.1f} MiB")
    if args.json:
        problem = {key: getattr(args, key) for key in ("layers", "width", "rounds")}
        found = {"problem": problem, "ranks": ranks, "versions": versions, "bytes": size, "memory": memory}
        Path(args.json).write_text(json.dumps(found | {"seconds": seconds, "ratio": ratio}, indent=2) + "\n")


def add(commands, number: Callable, versions: Callable[[], dict[str, str]]) -> None:
    """The command for the parser of `bench.py`."""
    one = commands.add_parser("checkpoint", help="checkpoints against plain writes", allow_abbrev=False)
    one.set_defaults(run=lambda args: storage(args, versions()))
    for key, value in {"layers": 1365, "width": 256, "rounds": 5}.items():
        one.add_argument(f"--{key}", type=number(1), default=value)
    one.add_argument("--folder", type=Path, default=Path("runs"), help="on the disk that is measured (runs)")
    one.add_argument("--json", help="write the figures to this file")
