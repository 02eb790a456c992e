#!/usr/bin/env python
"""A training run that is killed again and again, and what is left of it: everything, or this says what is not.

    python scripts/chaos.py [--kills 50 --seed 0 --steps 400 --ranks 3 --resume-ranks 1 5 --json FILE] [--KEY VALUE ...]

First an undisturbed run on --ranks ranks, then the same run, which is struck at random moments: while it starts,
between steps, while a checkpoint is written, in an evaluation, at its end. A strike is SIGKILL to one rank, SIGTERM to
all of them, SIGTERM to mpirun, SIGKILL to everything but the ranks, or a disk without room. Each time the run goes on
on a random number of ranks from --resume-ranks. If it is done before it was struck often enough, another one begins.

After every strike: all processes have ended within --limit seconds (where they end in good order, or have lost mpirun
while they start, those that the undisturbed run took for its end and its start come on top), with the exit code that
docs/operations.md promises; all checkpoints that there are can be read, and there is one as soon as there are metrics;
temporary files of earlier strikes are gone as soon as there is a new one. At the end: each step has one line of
metrics, equal to that of the undisturbed run but for the time, to rounding (TOLERANCE), and bit for bit up to the
first checkpoint behind which the number of ranks was another; summary and weights are equal to rounding; the folder
has the same files, among them no temporary file and no lock. Other options (--section.key VALUE) are those of `python
-m lpnet.train`.

Exit code 0: all of this held; 1: some of it did not, and the folder is kept; 2: something given is not allowed.
"""

import argparse
import json
import math
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from remains import Folder, difference
from strikes import VALIDATE, Blow, Strike, plan, promised
from victims import Broken, Disk, Job, options, send

from lpnet.arguments import Parser, above_0, whole
from lpnet.checkpoint.file import read
from lpnet.errors import InputError
from lpnet.folders import write_text
from lpnet.launch import BAD_INPUT, STOPPED
from lpnet.scaling.origin import origin
from lpnet.slab import Comm

RUN = (
    "peaks", "--data.train=200", "--data.validation=50", "--trunk.layers=20", "--trunk.width=4", "--training.batch=32",
    "--solver.forward.coarsening=4", "--solver.adjoint.coarsening=4",
    f"--training.validate_every={VALIDATE}", "--schedule.warmup=20", "--run.dtype=float64", "--run.progress=false",
    "--run.checkpoint_every=5",
)  # fmt: skip
TOLERANCE = 1e-9
"""Largest relative difference of histories on different numbers of ranks; about 1e-14 is seen without strikes."""
PATIENCE = 300.0
"""Seconds within which anything at all must happen."""


@dataclass(frozen=True)
class Reference:
    """The undisturbed run: what it left, and the seconds up to its first line and behind its last one."""

    records: list[dict[str, Any]]
    folder: Folder
    starting: float
    ending: float


class Run:
    """One run, and all that befalls it.

    Args:
        args: of the command.
        disk: where its folder is.
        name: of its folder.
        reference: the undisturbed one.
    """

    def __init__(self, args: argparse.Namespace, disk: Disk, name: str, reference: Reference) -> None:
        self.args, self.disk, self.reference = args, disk, reference
        self.folder, self.ranks, self.parts = Folder(disk.folder / name), args.ranks, set[tuple[Path, int]]()
        self.exact = args.steps  # steps up to which nothing but the time may differ
        self.version, self.newest = 0, -1

    def survive(self, strikes: Sequence[Strike]) -> Iterator[Blow]:
        """Take the strikes until the run is done, and finish it."""
        for strike in strikes:
            with self.start() as job:
                blow = self.strike(job, strike)
            self.disk.clear()
            if blow is None:
                return
            yield blow
            self.ranks = strike.ranks
        with self.start() as job:
            code, _, _ = job.end(PATIENCE)
        if code != 0:
            raise Broken(f"the last start of the run ended with code {code}:\n{job.said}")

    def start(self) -> Job:
        """Begin the run, or go on from the newest checkpoint."""
        kept = self.folder.checkpoints()
        self.parts, self.version, self.newest = self.folder.parts(), self.folder.version, max(kept, default=-1)
        if kept:
            if self.ranks != self.args.ranks:
                self.exact = min(self.exact, self.newest)
            return Job(self.ranks, ("-m", "lpnet.train", "--resume", str(self.folder.path)))
        shutil.rmtree(self.folder.path, ignore_errors=True)
        return Job(self.args.ranks, begun(self.args, self.folder))

    def strike(self, job: Job, strike: Strike) -> Blow | None:
        """Wait for the moment, and see what becomes of the job; None: it has finished before."""
        if strike.kind in ("mpirun", "launcher") and job.ranks == 1:  # there is none
            strike = replace(strike, kind="rank")
        if self.wait(job, strike):
            stepping = self.folder.version not in (0, self.version)
            blow = Blow(strike, job.ranks, self.folder.step() if stepping else max(self.newest, 0))
            if self.hit(job, strike):
                limit = self.limit(strike.kind, stepping)
                full = strike.kind == "disk"
                blow.code, blow.seconds, left = job.end(limit, lambda: self.disk.fill(job) if full else None)
                self.examine(job, blow, stepping, left)
                if blow.code != 0 or blow.faults:
                    return blow
        code, _, _ = job.end(PATIENCE)
        if code != 0 or not self.folder.summary.exists():
            raise Broken(f"a run that nobody struck ended with code {code}:\n{job.said}")
        return None

    def limit(self, kind: str, stepping: bool) -> float:
        """Seconds within which a job must have ended."""
        if kind == "rank" or (kind == "launcher" and stepping):
            return self.args.limit
        more = 0.0 if stepping else 5 * self.reference.starting  # it notices when it has started, on up to five ranks
        return self.args.limit + self.reference.ending + more

    def wait(self, job: Job, strike: Strike) -> bool:
        """Until the moment has come; False: the job has ended before."""
        until, lasts = time.monotonic() + PATIENCE, {"start": self.reference.starting, "end": self.reference.ending}
        while job.runs and not self.ripe(job, strike):
            if time.monotonic() > until:
                raise Broken(f"nothing happened for {PATIENCE:g} s before {strike}")
            time.sleep(0.001)
        if strike.moment != "checkpoint":
            time.sleep(strike.delay * lasts.get(strike.moment, 0.05))
        return job.runs

    def ripe(self, job: Job, strike: Strike) -> bool:
        """Whether the moment has come."""
        if strike.moment == "start":
            return bool(job.workers())
        if self.folder.version in (0, self.version) or self.folder.step() < strike.step:
            return False
        return strike.moment != "checkpoint" or self.folder.writes()

    def hit(self, job: Job, strike: Strike) -> bool:
        """Do it; whether anybody was there."""
        workers, launchers = job.workers(), job.launchers()
        if not workers:
            return False
        if strike.kind == "disk":
            self.disk.fill(job)
            return True
        if strike.kind == "all":
            return send(workers, signal.SIGTERM) > 0
        if strike.kind == "mpirun" and launchers:
            return send([job.process.pid], signal.SIGTERM) > 0
        if strike.kind == "launcher" and launchers:
            return send(launchers, signal.SIGKILL) > 0
        return send([workers[int(strike.victim * len(workers))]], signal.SIGKILL) > 0

    def examine(self, job: Job, blow: Blow, stepping: bool, left: int) -> None:
        """What must hold after a strike."""
        done, faults = self.folder.summary.exists(), blow.faults
        if blow.code is None or left:
            faults.append(f"{left} processes were left after {blow.seconds:.1f} s")
        if blow.code not in promised(blow.strike.kind, stepping, done):
            faults.append(f"ended with code {blow.code}: {job.said}")
        for step, path in self.folder.checkpoints().items():
            try:
                read(path, Comm())
            except InputError as error:
                faults.append(f"a checkpoint that cannot be read: {error}")
            blow.kept.append(step)
        if self.folder.step() and not blow.kept:
            faults.append("there are metrics, and no checkpoint")
        parts = self.folder.parts()
        if blow.kept and max(blow.kept) > self.newest and parts & self.parts:
            faults.append(f"temporary files of an earlier start are left: {sorted(str(path) for path, _ in parts)}")
        if max(blow.kept, default=-1) < self.newest:
            faults.append(f"the checkpoint of step {self.newest} is lost")
        if blow.code == STOPPED and (parts or max(blow.kept, default=-1) < blow.step):
            faults.append(f"stopped at step {blow.step} without its checkpoint, or with temporary files: {parts}")

    def compare(self) -> float:
        """What must hold at the end; the largest difference from the undisturbed run.

        Raises:
            Broken: it does not hold.
        """
        found, expected = self.folder.records(), self.reference.records
        steps = [record["step"] for record in found]
        if steps != [record["step"] for record in expected]:
            lost = sorted(set(range(1, self.args.steps + 1)) - set(steps))
            raise Broken(f"{self.folder.metrics}: {len(steps)} lines; lost: {lost}, in order: {steps == sorted(steps)}")
        bits = difference(expected[: self.exact], found[: self.exact])
        worst = max(difference(expected, found), difference(self.reference.folder.results(), self.folder.results()))
        if bits or not worst <= TOLERANCE:
            raise Broken(f"histories differ by {worst:.1e}, up to step {self.exact} by {bits:.1e}")
        left = self.folder.files() ^ self.reference.folder.files()
        if left:
            raise Broken(f"files of the disturbed or the undisturbed run only: {sorted(left)}")
        return worst


def begun(args: argparse.Namespace, folder: Folder) -> list[str]:
    """Arguments of Python for a new run."""
    return ["-m", "lpnet.train", *RUN, f"--training.steps={args.steps}", *args.more, f"--run.dir={folder.path}"]


def undisturbed(args: argparse.Namespace, path: Path) -> Reference:
    """Do the run without any strike."""
    folder, began = Folder(path), time.monotonic()
    first, last = math.inf, math.inf
    with Job(args.ranks, begun(args, folder)) as job:
        while job.runs:
            now, step = time.monotonic(), folder.step()
            first = min(first, now) if step else first
            last = min(last, now) if step == args.steps else last
            time.sleep(0.005)
        code, _, _ = job.end(PATIENCE)
    if code == BAD_INPUT:
        raise InputError(job.said.strip())
    if code != 0:
        raise Broken(f"the undisturbed run ended with code {code}:\n{job.said}")
    return Reference(folder.records(), folder, first - began, time.monotonic() - last)


def given(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = Parser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=whole(1), default=50, help="strikes (50)")
    parser.add_argument("--seed", type=whole(), default=0, help="of all that is random (0)")
    parser.add_argument("--steps", type=whole(2 * VALIDATE), default=400, help="of the run (400)")
    parser.add_argument("--ranks", type=whole(1), default=3, help="of the undisturbed run, and when the run begins (3)")
    parser.add_argument("--resume-ranks", type=whole(1), nargs=2, default=(1, 5), metavar=("LEAST", "MOST"))
    parser.add_argument("--limit", type=above_0(), default=10.0, help="seconds within which a struck job ends (10)")
    parser.add_argument("--json", help="a file for what happened")
    args = options(parser, arguments)
    lowest, highest = args.resume_ranks
    if lowest > highest:
        raise InputError(f"--resume-ranks: {lowest} {highest} given, two counts in order allowed")
    return args


def chaos(args: argparse.Namespace, folder: Path) -> tuple[list[Blow], list[float]]:
    """Strike until it is enough; what happened, and how far each run was from the undisturbed one."""
    chance, blows, apart = random.Random(args.seed), list[Blow](), list[float]()
    reference = undisturbed(args, folder / "undisturbed")
    print(f"undisturbed: {args.steps} steps, first one after {reference.starting:.1f} s", flush=True)
    disk = Disk(folder / "disk", 64)
    try:
        while len(blows) < args.kills:
            run = Run(args, disk, f"run-{len(apart) + 1}", reference)
            for blow in run.survive(plan(chance, args.kills - len(blows), args.steps, args.resume_ranks)):
                blows.append(blow)
                print(f"{len(blows):3d}  {blow.line()}", flush=True)
            apart.append(run.compare())
            print(f"run {len(apart)} is done: equal to {apart[-1]:.1e}, bit for bit up to step {run.exact}", flush=True)
    except Exception:
        shutil.copytree(disk.folder, folder / "kept")
        raise
    finally:
        disk.leave()
    return blows, apart


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    folder = Path(tempfile.mkdtemp(prefix="lpnet-chaos-"))
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends its jobs, and leaves the disk
    try:
        args = given(arguments)
        blows, apart = chaos(args, folder)
    except InputError as error:
        print(f"chaos.py: error: {error}", file=sys.stderr)
        shutil.rmtree(folder)
        return BAD_INPUT
    except Broken as error:
        print(f"chaos.py: {error}\nkept: {folder}", file=sys.stderr)
        return 1
    faults = sum(len(blow.faults) for blow in blows)
    print(f"{len(blows)} strikes on {len(apart)} runs, {faults} faults; histories equal to {max(apart):.1e}")
    for kind in dict.fromkeys(blow.strike.kind for blow in blows):
        seconds = [blow.seconds for blow in blows if blow.strike.kind == kind]
        print(f"{kind}: {len(seconds)}, after which jobs ended within {max(seconds):.1f} s")
    if args.json is not None:
        found = {**origin(), "seed": args.seed, "blows": [asdict(blow) for blow in blows], "apart": apart}
        write_text(Path(args.json), json.dumps(found, indent=1) + "\n")
    shutil.rmtree(folder)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
