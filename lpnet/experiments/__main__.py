"""Reproduce the experiments of the field: a picture and a file of numbers for each.

    python -m lpnet.experiments NAME [NAME ...] [--quick] [--out DIR] [--seed S]
    python -m lpnet.experiments all --quick
    python -m lpnet.experiments list
    mpirun -n 2 python -m lpnet.experiments orders

Exit codes: see `lpnet.launch`.
"""

import difflib
import os
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from lpnet import folders, launch
from lpnet.arguments import Parser, whole
from lpnet.errors import InputError
from lpnet.experiments import folder
from lpnet.experiments.base import Context, Experiment
from lpnet.experiments.registry import REGISTRY
from lpnet.launch import Answer
from lpnet.slab import Comm


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    experiments: tuple[Experiment, ...]
    quick: bool
    out: Path
    seed: int


def parse(arguments: Sequence[str]) -> Options:
    """The options.

    Raises:
        InputError: an unknown argument or experiment.
        Answer: help or the list was asked for.
    """
    parser = Parser(
        prog="python -m lpnet.experiments",
        description="Reproduce the experiments of the field: NAME.png and NAME.json for each.",
        add_help=False,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="experiments (see list), all, or list")
    parser.add_argument("--quick", action="store_true", help="small versions, a few seconds each")
    parser.add_argument("--out", help="folder for the files (runs/gallery, or runs/gallery-quick)")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0, help="of everything random (0)")
    parser.add_argument("-h", "--help", action="store_true", help="print this")
    given = parser.parse_args(list(arguments))
    if given.help:
        raise Answer(parser.format_help())
    if given.names == ["list"]:
        raise Answer("\n".join(f"{e.number:2d} {e.name:<11} {e.title}" for e in REGISTRY.values()))
    out = given.out if given.out is not None else f"runs/gallery{'-quick' if given.quick else ''}"
    return Options(_named(given.names), given.quick, Path(os.path.expanduser(out)), given.seed)


def _named(names: Sequence[str]) -> tuple[Experiment, ...]:
    allowed = f"one of all, list, {', '.join(REGISTRY)} allowed"
    if not names:
        raise InputError(f"NAME: nothing given, {allowed}")
    if list(names) == ["all"]:
        return tuple(REGISTRY.values())
    for name in names:
        if name not in REGISTRY:
            close = difflib.get_close_matches(name, REGISTRY, n=1)
            raise InputError(f"NAME: {name!r} given, {f'did you mean {close[0]}?' if close else allowed}")
    return tuple(REGISTRY[name] for name in dict.fromkeys(names))


def job(comm: Comm, arguments: Sequence[str]) -> None:
    """Run the experiments one after the other; collective."""
    with launch.together(comm):
        options = parse(arguments)
        if comm.rank == 0:
            folders.make(options.out, "--out")
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # the layers of these experiments are small: threads would only get in the way
    context = Context(comm, options.quick, options.seed)
    for experiment in options.experiments:
        start = time.perf_counter()
        result = experiment.run(context)
        seconds = time.perf_counter() - start
        if comm.rank == 0:
            folder.write(options.out, experiment, context, result, seconds)
            print(f"{experiment.number}. {experiment.title}: {options.out / experiment.name}.png ({seconds:.1f} s)")
            print(textwrap.indent(textwrap.fill(result.see, 116), "   "), flush=True)
    if comm.rank == 0:
        page = folder.page(options.out)
        print(f"all pictures: {page}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run as the arguments say (those of the process, if None); the exit code. Collective."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return launch.run("lpnet.experiments", lambda comm: job(comm, given))


if __name__ == "__main__":
    launch.command(main)
