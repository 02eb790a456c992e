"""The command line of the studies."""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from lpnet.cores import affinity
from lpnet.errors import InputError
from lpnet.fabrics import Fabric, fabric_of
from lpnet.launch import Answer
from lpnet.scaling.problem import Problem
from lpnet.scaling.solvers import Wanted, parse

STUDIES = ("strong", "weak")
COMMANDS = (*STUDIES, "point", "collect", "validate")
MOST_RANKS = 65536
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


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message.removeprefix('argument ')}; python -m lpnet.scaling --help shows what is allowed")


class _RefusedError(Exception):
    """An `InputError` on its way through argparse, which would replace it by words of its own."""


def _typed(read_one: Callable[[str], Any]) -> Callable[[str], Any]:
    def typed(text: str) -> Any:
        try:
            return read_one(text)
        except InputError as error:
            raise _RefusedError(str(error)) from None

    return typed


def _whole(key: str, least: int, most: float = math.inf) -> Callable[[str], int]:
    def parse_whole(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            limit = f"at least {least}" if most == math.inf else f"{least} to {most}"
            raise InputError(f"{key}: {text} given, a whole number of {limit} allowed")
        return value

    return _typed(parse_whole)


def _above_0(key: str, below: float = math.inf) -> Callable[[str], float]:
    def parse_number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not 0 < value < below:
            limit = "a finite number above 0" if below == math.inf else f"a number above 0 and below {below:g}"
            raise InputError(f"{key}: {text} given, {limit} allowed")
        return value

    return _typed(parse_number)


def _choice(key: str, allowed: Sequence[str]) -> Callable[[str], str]:
    def parse_choice(text: str) -> str:
        if text not in allowed:
            raise InputError(f"{key}: {text!r} given, one of {', '.join(allowed)} allowed")
        return text

    return parse_choice


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m lpnet.scaling", usage=USAGE, allow_abbrev=False, add_help=False,
        description="Scaling over ranks, measured and modelled: points, scaling.csv, scaling.json, scaling.png.",
    )  # fmt: skip
    add: Any = parser.add_argument
    add("words", nargs="*", metavar="COMMAND", help=", ".join(COMMANDS))
    add("--layers", type=_whole("layers", 1), help="strong: N (1024, validate: 256); weak: layers a rank (16)")
    add("--width", type=_whole("width", 1), default=32, help="(32)")
    add("--batch", type=_whole("batch", 1), default=256, help="(256)")
    add("--T", type=_above_0("T"), default=4.0, help="final time; weak: on the most ranks (4)")
    add("--dtype", type=_typed(_choice("dtype", ("float32", "float64"))), default="float32", help="(float32)")
    add("--seed", type=_whole("seed", 0), default=0, help="of weights and input (0)")
    add("--ranks", type=_whole("ranks", 1, MOST_RANKS), nargs="+", help="(1 2 4 … 32; weak: 8 … 256; validate: 1 2)")
    add("--solver", type=_typed(parse), action="append", help="exact, exact=Q, auto, coarsening=16x4,cycles=1+0, …")
    add("--gradient-tol", type=_above_0("gradient-tol", 1.0), default=5e-2, help="gradient error of auto (0.05)")
    add("--fabric", type=_typed(fabric_of), default=fabric_of("default"), help="of modelled times (default)")
    add("--rounds", type=_whole("rounds", 1), default=11, help="of measurements (11)")
    add("--repeats", type=_whole("repeats", 1), default=3, help="of measurements of costs (3)")
    add("--processes-max", type=_whole("processes-max", 0), default=len(affinity()), help="virtual: of mpirun (cores)")
    add("--threads-max", type=_whole("threads-max", 0), default=32, help="virtual: beyond, as threads in turn (32)")
    add("--kind", type=_typed(_choice("kind", ("wall", "virtual", "all"))), default="wall", help="of point (wall)")
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
    try:
        given = parser.parse_args(list(arguments))
    except _RefusedError as error:
        raise InputError(str(error)) from None
    if given.help:
        raise Answer(parser.format_help())
    name, rest = (given.words[0], given.words[1:]) if given.words else ("nothing", [])
    if name not in COMMANDS:
        raise InputError(f"command: {name!r} given, one of {', '.join(COMMANDS)} allowed")
    study, folders = name, tuple(map(Path, rest))
    if name == "point":
        study, folders = (rest[0] if len(rest) == 1 else " ".join(rest) or "nothing"), ()
        _choice("point", (*STUDIES, "validate"))(study)
    elif rest and name != "collect":
        raise InputError(f"{name}: {' '.join(rest)!r} given, options allowed")
    if name == "collect" and not folders:
        raise InputError("collect: nothing given, folders with points allowed")
    return Command(name, _study(study, given, folders), folders)


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
