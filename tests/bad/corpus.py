"""The corpus of bad input: each case is one clear line, exit code 2, and nothing is written.

A case is an entry of a YAML file beside this one:

    name     (optional; else its run)
    run      what is given to the command, as in a shell
    says     what the one line has to say, in pieces
    files    name -> text, or {maker: argument} of `makers`
    warned   (optional) true: warnings of one line each may come before
    alone    (optional) true: of a command that starts its ranks itself, and says so where a launcher has

and a file has `command` (with arguments before the case's) and `arguments` (behind them) for all its cases.

    python tests/bad/corpus.py [--ranks P] [--every N]    each case, or each N-th one, as a command of its own
    [mpirun -n P] python tests/bad/corpus.py --here       all cases in this process, or in those of P ranks

A command is started by what LPNET_MPIRUN says, else by the mpirun beside Python, else by the first on PATH.
"""

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PATIENCE = 15.0
"""Seconds within which a case is over."""
sys.path += [str(folder) for folder in (HERE, HERE.parent, ROOT / "scripts") if str(folder) not in sys.path]

LINE = re.compile(r"(lpnet(\.\w+)?|bench\.py): error: [^\n]+: [^\n]*\b(given|unknown)\b[^\n]*\n")
WARNINGS = r"\A(lpnet\.\w+: warning: [^\n]+\n)+"
ENDS = ("allowed", "needed", "did you mean")
"""Of key, what was given, and what is allowed the last one."""

# command -> the words that start it, and the module whose main() does it here
COMMANDS = {
    "train": (["-m", "lpnet.train"], "lpnet.train"),
    "predict": (["-m", "lpnet.predict"], "lpnet.predict"),
    "trace": (["-m", "lpnet.trace"], "lpnet.trace.__main__"),
    "scaling": (["-m", "lpnet.scaling"], "lpnet.scaling.__main__"),
    "experiments": (["-m", "lpnet.experiments"], "lpnet.experiments.__main__"),
    "info": (["-m", "lpnet.info"], "lpnet.info"),
    "bench": ([str(ROOT / "scripts" / "bench.py")], "bench"),
    "layer": ([str(HERE / "layers.py")], "layers"),
}


@dataclass(frozen=True)
class Case:
    """One thing that cannot be used."""

    name: str
    command: str
    arguments: tuple[str, ...]
    says: tuple[str, ...]
    files: Mapping[str, Any] = field(default_factory=dict)
    warned: bool = False
    alone: bool = False

    def words(self) -> list[str]:
        """What starts it, behind the name of the interpreter."""
        return [*COMMANDS[self.command][0], *self.arguments]

    def main(self) -> int:
        """Its exit code in this process."""
        code = importlib.import_module(COMMANDS[self.command][1]).main(list(self.arguments))
        assert isinstance(code, int)
        return code

    def prepare(self, folder: Path) -> None:
        """Make its files."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, str):
                path.write_text(content, encoding="utf-8")
            else:
                ((maker, argument),) = content.items()
                getattr(importlib.import_module("makers"), maker)(path, argument)

    def faults(self, code: int, out: str, err: str, ranks: int = 1) -> list[str]:
        """What is wrong with an outcome on so many ranks; empty: nothing."""
        found = []
        if code != 2:
            found.append(f"exit code {code}")
        if out:
            found.append(f"says {out!r} on standard output")
        error = re.sub(WARNINGS, "", err) if self.warned else err
        if not LINE.fullmatch(error) or not any(end in err for end in ENDS):
            found.append(f"no line of key, given and allowed: {err!r}")
        says = (f"ranks: {ranks} of a launcher given",) if self.alone and ranks > 1 else self.says
        return found + [f"does not say {part!r}: {err!r}" for part in says if part not in err]


def cases() -> Iterator[Case]:
    """All of them."""
    for file in sorted(HERE.glob("*.yaml")):
        group = yaml.safe_load(file.read_text(encoding="utf-8"))
        command, *before = shlex.split(group["command"])
        behind = shlex.split(group.get("arguments", ""))
        for one in group["cases"]:
            run = str(one.get("run", ""))
            name = f"{file.stem}: {one.get('name', run) or 'nothing'}"
            words, says = (*before, *shlex.split(run), *behind), tuple(one["says"])
            how = {key: one[key] for key in ("files", "warned", "alone") if key in one}
            yield Case(name, command, words, says, **how)


def state(folder: Path) -> dict[str, str]:
    """What is in a folder: path -> digest of the file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def judged(
    case: Case,
    folder: Path,
    outcome: Callable[[], tuple[int, str, str]],
    clock: Callable[[], float],
    ranks: int = 1,
    patience: Callable[[], float] = lambda: PATIENCE,
) -> list[str]:
    """What is wrong with a case that is done in a folder with its files.

    Args:
        case: what is done,
        folder: where,
        outcome: how: its code, standard output and standard error,
        clock: tells seconds,
        ranks: on so many.
        patience: the most seconds that it may take.
    """
    before, start = state(folder), clock()
    code, out, err = outcome()
    taken = clock() - start
    found = case.faults(code, out, err, ranks)
    if taken > PATIENCE and taken > patience():
        found.append(f"takes {taken:.1f} s")
    if state(folder) != before:
        found.append(f"leaves {sorted(set(state(folder)) ^ set(before))}")
    return found


def here(case: Case) -> tuple[int, str, str]:
    """Code, standard output and standard error of a case in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = case.main()
    return code, out.getvalue(), err.getvalue()


def together(case: Case, folder: Path) -> list[str]:
    """What is wrong with a case on the ranks that there are, in one process each; collective.

    The folder is that of all ranks. Rank 0 makes the files and speaks, and all ranks have the same exit code.
    """
    from lpnet import launch, slab

    comm = slab.world()
    if comm.rank == 0:
        case.prepare(folder)
    comm.barrier()
    before, files = Path.cwd(), state(folder)
    os.chdir(folder)
    try:
        code, out, err = here(case)
    finally:
        os.chdir(before)
    found = case.faults(code, out, err, comm.size) if comm.rank == 0 else []
    comm.barrier()
    if state(folder) != files:
        found.append(f"leaves {sorted(set(state(folder)) ^ set(files))}")
    if comm.rank and (code, out, err) != (2, "", ""):
        found.append(f"rank {comm.rank}: exit code {code}, says {out + err!r}")
    teller = comm.size - comm.agree(comm.size - comm.rank if found else 0)
    return json.loads(launch.share(comm, json.dumps(found), teller)) if teller < comm.size else []


def apart(case: Case, folder: Path, ranks: int) -> tuple[int, str, str]:
    """The same as a command of its own, on so many ranks."""
    beside = Path(sys.executable).parent / "mpirun"
    found = str(beside) if beside.exists() else str(shutil.which("mpirun"))
    launch = [*os.environ.get("LPNET_MPIRUN", found).split(), "-n", str(ranks)] if ranks > 1 else []
    paths = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    done = subprocess.run(
        [*launch, sys.executable, *case.words()], cwd=folder, capture_output=True, text=True, check=False,
        timeout=4 * PATIENCE, env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def main() -> int:
    """Do all cases; the exit code: 0 where all are refused as they should."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--here", action="store_true")
    given = parser.parse_args()
    return done_here() if given.here else done_apart(given.ranks, given.every)


def done_apart(ranks: int, every: int) -> int:
    """The cases as commands, or each so many-th of them."""
    count, wrong = 0, 0
    for case in list(cases())[::every]:
        with tempfile.TemporaryDirectory(prefix="lpnet-bad-") as name:
            folder = Path(name)
            case.prepare(folder)
            outcome = partial(apart, case, folder, ranks)
            found = judged(case, folder, outcome, time.monotonic, ranks, partial(_patience, case, folder, ranks))
        count, wrong = count + 1, wrong + bool(found)
        print(f"{'wrong ' if found else 'ok    '} {case.name}", *found, sep="\n        ", flush=True)
    print(f"{count} cases on {ranks} ranks, {wrong} wrong")
    return int(wrong > 0)


def _patience(case: Case, folder: Path, ranks: int) -> float:
    """Seconds for a case, which are more where the machine is so busy that mere help takes half of them."""
    start = time.monotonic()
    apart(replace(case, command="train", arguments=("--help",)), folder, ranks)
    return max(PATIENCE, 2 * (time.monotonic() - start))


def done_here() -> int:
    """All cases in this process, or in those of all ranks; collective."""
    from lpnet import launch, slab

    comm, count, wrong = slab.world(), 0, 0
    for case in cases():
        with tempfile.TemporaryDirectory(prefix="lpnet-bad-") as name:
            found = together(case, Path(launch.share(comm, name)))
            comm.barrier()
        count, wrong = count + 1, wrong + bool(found)
        if comm.rank == 0 and found:
            print(f"wrong  {case.name}", *found, sep="\n        ", flush=True)
    if comm.rank == 0:
        print(f"{count} cases on {comm.size} ranks, {wrong} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
