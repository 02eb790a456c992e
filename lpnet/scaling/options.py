"""The command line of the studies."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpnet.arguments import Form, Parser, above_0, one_of, whole
from lpnet.config import MOST_LAYERS, MOST_WIDTH
from lpnet.cores import affinity
from lpnet.errors import InputError, shown
from lpnet.fabrics import FABRICS, Fabric, fabric_of
from lpnet.launch import Answer
from lpnet.scaling.problem import Problem
from lpnet.scaling.solvers import Wanted, parse

STUDIES = ("strong", "weak")
COMMANDS = (*STUDIES, "point", "collect", "validate")
POINTS = (*STUDIES, "validate")
MOST_RANKS = 65536
_ONLY_OUT = ("layers", "width", "batch", "T", "dtype", "seed", "ranks", "solver", "gradient_tol", "fabric", "rounds")
UNUSED = {
    "strong": ("kind",),
    "weak": ("kind",),
    "point": ("processes_max", "threads_max"),
    "collect": (*_ONLY_OUT, "repeats", "processes_max", "threads_max", "kind"),
    "validate": ("processes_max", "threads_max", "kind"),
}
"""Options that a command would ignore."""
USAGE = """python -m lpnet.scaling strong|weak [options]
       mpirun -n P python -m lpnet.scaling point strong|weak [options]
       python -m lpnet.scaling collect DIR [DIR ...] [--out DIR]
       python -m lpnet.scaling validate [options]"""


@dataclass(frozen=True)
class Study:
    """What a study is of; see the help of the command line."""

    study: str
    layers: int
    width: int
    batch: int
    T: float
    dtype: str
    seed: int
    ranks: tuple[int, ...]
    solvers: tuple[Wanted, ...]
    gradient_tol: float
    fabric: Fabric
    rounds: int
    repeats: int
    processes_max: int
    threads_max: int
    kind: str
    out: Path

    def problem(self, ranks: int) -> Problem:
        """On so many ranks."""
        weak = self.study == "weak"
        layers, whole = (self.layers * ranks, self.layers * max(*self.ranks, ranks)) if weak else (self.layers,) * 2
        return Problem(layers, whole, self.T, self.width, self.batch, self.dtype, self.seed)

    def arguments(self, solvers: Sequence[Wanted], kind: str) -> list[str]:
        """Those of `point` for the same study with these solvers."""
        keys = ("layers", "width", "batch", "T", "dtype", "seed", "gradient_tol", "rounds", "repeats", "out")
        pairs = [(f"--{key.replace('_', '-')}", str(getattr(self, key))) for key in keys]
        pairs += [("--solver", str(one)) for one in solvers] + [("--kind", kind), ("--fabric", self.fabric.name)]
        return ["point", self.study, *(word for pair in pairs for word in pair), "--ranks", *map(str, self.ranks)]


@dataclass(frozen=True)
class Command:
    """What is to be done."""

    name: str
    study: Study
    folders: tuple[Path, ...] = ()


def _parser() -> Parser:
    parser = Parser(
        prog="python -m lpnet.scaling", usage=USAGE, add_help=False,
        description="Scaling over ranks, measured and modelled: points, scaling.csv, scaling.json, scaling.png.",
    )  # fmt: skip
    add: Any = parser.add_argument
    solver = Form(parse, "exact, exact=Q, auto, or KEY=VALUE,…")
    add("words", nargs="*", metavar="COMMAND", help=", ".join(COMMANDS))
    add("--layers", type=whole(1, MOST_LAYERS), help="strong: N (1024, validate: 256); weak: layers a rank (16)")
    add("--width", type=whole(1, MOST_WIDTH), default=32, help="(32)")
    add("--batch", type=whole(1, MOST_LAYERS), default=256, help="(256)")
    add("--T", type=above_0(), default=4.0, help="final time; weak: on the most ranks (4)")
    add("--dtype", type=one_of(("float32", "float64")), default="float32", help="(float32)")
    add("--seed", type=whole(0, 2**62 - 1), default=0, help="of weights and input (0)")
    add("--ranks", type=whole(1, MOST_RANKS), nargs="+", help="(1 2 4 … 32; weak: 8 … 256; validate: 1 2)")
    add("--solver", type=solver, action="append", help="exact, exact=Q, auto, coarsening=16x4,cycles=1+0, …")
    add("--gradient-tol", type=above_0(1.0), default=5e-2, help="gradient error of auto (0.05)")
    add("--fabric", type=Form(fabric_of, f"one of {', '.join(FABRICS)}"), default=fabric_of("default"), help=(
        "of modelled times (default)"))
    add("--rounds", type=whole(1), default=11, help="of measurements (11)")
    add("--repeats", type=whole(1), default=3, help="of measurements of costs (3)")
    add("--processes-max", type=whole(), default=len(affinity()), help="virtual: of mpirun (cores)")
    add("--threads-max", type=whole(), default=32, help="virtual: beyond, as threads in turn (32)")
    add("--kind", type=one_of(("wall", "virtual", "all")), default="wall", help="of point (wall)")
    add("--out", type=Path, help="folder (runs/scaling-STUDY; collect: the first DIR)")
    add("-h", "--help", action="store_true", help="print this")
    return parser


def read(arguments: Sequence[str]) -> Command:
    """The command.

    Raises:
        InputError: an unknown argument, or a value that is not allowed.
        Answer: help was asked for.
    """
    parser = _parser()
    given = parser.parse_args(list(arguments))
    if given.help:
        raise Answer(parser.format_help())
    name, rest = (given.words[0], given.words[1:]) if given.words else ("nothing", [])
    if name not in COMMANDS:
        raise InputError(f"command: {shown(name)} given, one of {', '.join(COMMANDS)} allowed")
    study, folders = name, tuple(map(Path, rest))
    if name == "point":
        study, folders = (rest[0] if len(rest) == 1 else " ".join(rest) or "nothing"), ()
        if study not in POINTS:
            raise InputError(f"point: {shown(study)} given, one of {', '.join(POINTS)} allowed")
    elif rest and name != "collect":
        raise InputError(f"{name}: {shown(' '.join(rest))} given, options allowed")
    if name == "collect" and not folders:
        raise InputError("collect: nothing given, folders with points allowed")
    for key in UNUSED[name]:
        if key in parser.given or (key == "solver" and given.solver):
            raise InputError(f"--{key.replace('_', '-')}: given with {name}, only {_used(name)} allowed")
    return Command(name, _study(study, given, folders), folders)


def _used(name: str) -> str:
    keys = (action.dest for action in _parser()._actions)
    return ", ".join(f"--{key.replace('_', '-')}" for key in keys if key not in ("words", "help", *UNUSED[name]))


def _study(study: str, given: argparse.Namespace, folders: Sequence[Path]) -> Study:
    usual = {"weak": (8, 16, 32, 64, 128, 256), "validate": (1, 2)}
    layers = {"weak": 16, "validate": 256}
    solvers = given.solver or [parse("exact"), parse("auto")]
    names = [one.series for one in solvers]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(f"solver: {', '.join(twice)} given twice, different names allowed")
    return Study(
        study=study,
        layers=given.layers or layers.get(study, 1024),
        ranks=tuple(sorted(set(given.ranks or usual.get(study, (1, 2, 4, 8, 16, 32))))),
        solvers=tuple(solvers),
        out=given.out or (folders[0] if folders else Path(f"runs/scaling-{study}")),
        **{
            key: getattr(given, key)
            for key in (
                "width", "batch", "T", "dtype", "seed", "gradient_tol", "fabric", "rounds", "repeats", "processes_max",
                "threads_max", "kind",
            )
        },
    )  # fmt: skip
