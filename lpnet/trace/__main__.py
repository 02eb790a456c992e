"""Draw a trace.

    python -m lpnet.trace plot runs/mine/trace.json [--out trace.png] [--from MS] [--to MS]
"""

import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from lpnet import folders, launch
from lpnet.arguments import Parser, number
from lpnet.errors import InputError
from lpnet.launch import Answer
from lpnet.slab import Comm


def _parser() -> Parser:
    parser = Parser(prog="python -m lpnet.trace", add_help=False)
    parser.add_argument("-h", "--help", action="store_true", help="print this")
    parser.add_argument("command", nargs="?", help="plot")
    parser.add_argument("file", metavar="FILE", nargs="?", help="trace.json")
    parser.add_argument("--out", metavar="PNG", help="picture; beside FILE, with its name, if not given")
    add = partial(parser.add_argument, metavar="MS", type=number())
    add("--from", dest="begin", default=-math.inf, help="drawn from here on")
    add("--to", dest="end", default=math.inf, help="drawn up to here")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the picture that the arguments ask for; the exit code."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return launch.run("lpnet.trace", lambda comm: job(comm, given))


def job(comm: Comm, arguments: Sequence[str]) -> None:
    """Rank 0 draws; collective."""
    with launch.together(comm):
        options = _parser().parse_args(arguments)
        if options.help:
            raise Answer(_parser().format_help())
        if options.command != "plot":
            raise InputError(f"command: {options.command or 'nothing'} given, plot allowed")
        if options.file is None:
            raise InputError("FILE: nothing given, a trace.json needed as in lpnet.trace plot runs/mine/trace.json")
        if comm.rank == 0:
            beside = f"{os.path.splitext(options.file)[0]}.png"
            out = Path(beside if options.out is None else options.out)
            _plot(Path(options.file), out, options.begin, options.end)


def _plot(file: Path, out: Path, begin: float, end: float) -> None:
    from lpnet.trace import picture  # brings matplotlib, which takes a second

    trace = picture.read(file)
    folders.check_file(out, "--out")
    picture.draw(trace, out, begin, end)
    print(f"{trace.ranks} rank{'s' * (trace.ranks > 1)}, {trace.about['time']} time: {out}")


if __name__ == "__main__":
    launch.command(main)
