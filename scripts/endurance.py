#!/usr/bin/env python
"""Long runs: whether memory grows with the steps, and what checkpoints cost.

    python scripts/endurance.py [--steps 10000 --ranks 1 2 --rounds 3 --paired 2000 --json FILE] [--KEY VALUE ...]

Memory: one run of --steps steps on each number of ranks, with checkpoints whenever they are due. The resident memory of
each rank is looked at during the run; a line is fitted to that behind step 500. It may grow by 1 % up to the last step.

Overhead: runs of --paired steps with checkpoints at the default interval and without any between the first and the last
take turns, --rounds times; the time is that between the first and the last line of the metrics. Checkpoints are written
between the steps, each of which says how long it took (`seconds`). So what they cost is the difference of what
neighbours spend beside their steps, over the time of the one without: its median may be 2 %. The ratios of the whole
times and of processor time are printed too; they have all the noise of a shared machine. --rounds 0: not at all.

Other options (--section.key VALUE) are those of `python -m lpnet.train`. Exit code 0: both are kept; 1: they are not;
2: something given is not allowed.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from remains import Folder
from victims import Broken, Job, options

from lpnet.arguments import Parser, whole
from lpnet.errors import InputError
from lpnet.folders import write_text
from lpnet.launch import BAD_INPUT
from lpnet.scaling.origin import origin

RUN = (
    "peaks", "--data.train=64", "--data.validation=32", "--trunk.layers=8", "--trunk.width=4", "--training.batch=32",
    "--training.validate_every=1000", "--run.progress=false",
)  # fmt: skip
SETTLED = 500
"""Steps behind which memory may not grow."""
GROWTH, OVERHEAD = 0.01, 0.02
EVERY = 0.1
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Course:
    """A run as it was seen.

    Args:
        seconds: between its first line and its last one.
        processor: the same, of processor time of all ranks.
        beside: the same, of the time that was spent beside steps: with checkpoints, and lines of the metrics.
        steps: at which memory was looked at.
        resident: MiB of each rank, at each of these steps.
    """

    seconds: float
    processor: float
    beside: float
    steps: list[int]
    resident: list[list[float]]

    def growth(self) -> list[float]:
        """Of each rank behind `SETTLED`, relative to what it has there, by a line."""
        steps, resident = np.array(self.steps), np.array(self.resident)
        settled = steps >= SETTLED
        slope, start = np.polyfit(steps[settled] - SETTLED, resident[settled], 1)
        grown: list[float] = (slope * (steps[-1] - SETTLED) / start).tolist()
        return grown


def seen(ranks: int, folder: Path, arguments: Sequence[str], steps: int) -> Course:
    """Do a run of so many steps, and look at it.

    Raises:
        Broken: it failed; what it said.
    """
    run, at, resident = Folder(folder), list[int](), list[list[float]]()
    given = ("-m", "lpnet.train", *RUN, f"--training.steps={steps}", *arguments, f"--run.dir={folder}")
    begun, first, last, looked, workers = 0, (0.0, 0.0), (0.0, 0.0), 0.0, list[int]()
    with Job(ranks, given) as job:
        while job.runs:
            step, now = run.step(), time.monotonic()
            if step and not workers:
                workers = job.workers()
                begun, first = step, (now, processor(workers))
            if step == steps and last == (0.0, 0.0):
                last = now, processor(workers)
            elif workers and step < steps and now > looked + EVERY:
                resident.append([mebibytes(pid) for pid in workers])
                at.append(step)
                looked = now
            time.sleep(0.005)
        code, _, _ = job.end(10.0)
    if code != 0:
        raise Broken(f"a run ended with code {code}: {job.said}")
    seconds = last[0] - first[0]
    within = sum(record["seconds"] for record in run.records() if record["step"] > begun)
    return Course(seconds, last[1] - first[1], seconds - within, at, resident)


def processor(pids: Sequence[int]) -> float:
    """Seconds of processor time of some processes so far."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def mebibytes(pid: int) -> float:
    """Resident memory of a process; none if it has ended."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(args: argparse.Namespace, folder: Path) -> dict[int, Course]:
    """Long runs, by their number of ranks; what is seen of each is printed."""
    found = {}
    for ranks in args.ranks:
        course = found[ranks] = seen(ranks, folder / f"long-{ranks}", args.more, args.steps)
        each = zip(course.growth(), course.resident[-1], strict=True)
        grown = ", ".join(f"{part:+.3%} of {now:.0f} MiB" for part, now in each)
        print(f"{args.steps} steps on {ranks} rank(s) in {course.seconds:.0f} s: memory grows by {grown}", flush=True)
        shutil.rmtree(folder / f"long-{ranks}")
    return found


@dataclass(frozen=True)
class Cost:
    """What checkpoints cost, relative to the time of a neighbour without them.

    Args:
        beside: of the time beside steps.
        seconds: of all time.
        processor: of processor time.
    """

    beside: float
    seconds: float
    processor: float


def overhead(args: argparse.Namespace, folder: Path) -> dict[int, list[Cost]]:
    """What checkpoints cost in each round, by ranks."""
    found: dict[int, list[Cost]] = {ranks: [] for ranks in args.ranks}
    for number in range(args.rounds):
        for ranks, costs in found.items():
            taken = {}
            for kind in ("with", "without")[:: 1 if number % 2 else -1]:
                more = () if kind == "with" else (f"--run.checkpoint_every={10 * args.paired}",)
                path = folder / f"paired-{number}-{ranks}-{kind}"
                taken[kind] = seen(ranks, path, (*args.more, *more), args.paired)
                shutil.rmtree(path)
            new, old = taken["with"], taken["without"]
            cost = Cost(
                (new.beside - old.beside) / old.seconds,
                new.seconds / old.seconds - 1,
                new.processor / old.processor - 1,
            )
            costs.append(cost)
            print(
                f"checkpoints on {ranks} rank(s): {cost.beside:+.2%} of {old.seconds:.2f} s; whole runs "
                f"{cost.seconds:+.2%}, processors {cost.processor:+.2%}",
                flush=True,
            )
    return found


def given(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=whole(2 * SETTLED), default=10000, help="of a long run (10000)")
    parser.add_argument("--ranks", type=whole(1), nargs="+", default=[1, 2], help="numbers of ranks (1 2)")
    parser.add_argument("--rounds", type=whole(), default=3, help="of paired runs (3)")
    parser.add_argument("--paired", type=whole(100), default=2000, help="steps of paired runs (2000)")
    parser.add_argument("--json", help="a file for what was found")
    return options(parser, arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    try:
        args = given(arguments)
        with tempfile.TemporaryDirectory(prefix="lpnet-endurance-") as folder:
            courses, costs = memory(args, Path(folder)), overhead(args, Path(folder))
    except InputError as error:
        print(f"endurance.py: error: {error}", file=sys.stderr)
        return BAD_INPUT
    except Broken as error:
        print(f"endurance.py: {error}", file=sys.stderr)
        return 1
    most = max(grown for course in courses.values() for grown in course.growth())
    filled = [each for each in costs.values() if each]
    beside = max((statistics.median(cost.beside for cost in each) for each in filled), default=0.0)
    whole = max((statistics.median(cost.seconds for cost in each) for each in filled), default=0.0)
    print(f"memory grows by {most:.2%} at most ({GROWTH:.0%} allowed)")
    if filled:
        print(f"checkpoints take {beside:.2%} ({OVERHEAD:.0%} allowed); whole runs, with all their noise: {whole:+.2%}")
    if args.json is not None:
        found = {
            **origin(),
            "memory": {ranks: asdict(course) for ranks, course in courses.items()},
            "overhead": {ranks: [asdict(cost) for cost in each] for ranks, each in costs.items()},
        }
        write_text(Path(args.json), json.dumps(found) + "\n")
    return 0 if most <= GROWTH and beside <= OVERHEAD else 1


if __name__ == "__main__":
    sys.exit(main())
