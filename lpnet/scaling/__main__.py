"""Scaling studies from the command line: see `lpnet.scaling`.

    python -m lpnet.scaling strong [--layers 1024 --ranks 1 2 4 8 16 32 --solver auto --out DIR]
    python -m lpnet.scaling weak [--layers 16 --ranks 8 16 32 64 128 256]
    mpirun -n P python -m lpnet.scaling point strong|weak [--kind wall|virtual]
    python -m lpnet.scaling collect DIR [DIR ...]
    python -m lpnet.scaling validate

Exit codes: see `lpnet.launch`; `validate` ends with 1 where modelled times are too far from those on the wall.
"""

import os
import sys
from collections.abc import Sequence

import torch

from lpnet import folders, launch, plots
from lpnet.cores import affinity
from lpnet.errors import InputError
from lpnet.launch import together
from lpnet.scaling.files import clear, lines, read_points, write_points, write_table
from lpnet.scaling.model import Model, resolve
from lpnet.scaling.options import STUDIES, Command, Study, read
from lpnet.scaling.picture import draw
from lpnet.scaling.points import Point
from lpnet.scaling.problem import require_room
from lpnet.scaling.ranks import launch as launched
from lpnet.scaling.solvers import Pair, Wanted, parse
from lpnet.scaling.studies import Solvers, conduct, here, points_of
from lpnet.scaling.validation import compare, verdict
from lpnet.slab import Comm

NAME = "lpnet.scaling"


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; the exit code."""
    failed: list[str] = []

    def job(comm: Comm) -> None:
        with together(comm):
            command = read(sys.argv[1:] if arguments is None else arguments)
        with together(comm):
            _refuse(command, comm)
            if comm.rank == 0:
                folders.make(command.study.out, "out")
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        if command.name == "point":
            _point(command.study, comm)
        elif command.name == "validate":
            failed.extend(_validate(command.study))
        else:
            _study(command)

    code = launch.run(NAME, job)
    return code or (launch.FAILED if failed else launch.DONE)


def _refuse(command: Command, comm: Comm) -> None:
    if comm.size > 1 and command.name != "point":
        raise InputError(f"ranks: {comm.size} of a launcher given to {command.name}, 1 allowed (or the command point)")
    cores, most = len(affinity()), max(command.study.ranks)
    if command.name == "validate" and most > cores:
        raise InputError(f"ranks: {most} given, at most {cores} (the cores, for the wall's time) allowed")
    if command.name != "collect":
        problem = command.study.problem(max(comm.size, most))
        require_room(problem.whole, problem.width, problem.batch)


def _study(command: Command) -> None:
    study = command.study
    if command.name in STUDIES:
        for line in conduct(study):
            print(line, flush=True)
    points = read_points(command.folders or (study.out,))
    write_table(study.out, points)
    print("\n".join(lines(points)))
    for name in STUDIES:
        own = [point for point in points if point.study == name]
        if own:
            path = study.out / f"{name}.png"
            plots.save(draw(own), path)
            print(path)


def _point(study: Study, comm: Comm) -> None:
    """The points of the ranks that there are."""
    solvers = _resolved(study, comm)
    if study.study == "validate":
        found = compare(study.problem(comm.size), solvers, comm, study.rounds)
        points = [p for kind, taken in found.items() for p in points_of(study, comm.size, taken, (kind, "processes"))]
        _write(study, comm, "all", points)
        return
    for kind in ("wall", "virtual") if study.kind == "all" else (study.kind,):
        _write(study, comm, kind, here(study, comm, solvers, kind))


def _resolved(study: Study, comm: Comm) -> Solvers:
    """What rank 0 finds best; collective."""
    if all(isinstance(one.solver, Pair) for one in study.solvers):
        return [(one.series, one.solver) for one in study.solvers if isinstance(one.solver, Pair)]
    text = ""
    if comm.rank == 0:
        model, problem = Model(study.fabric, study.repeats), study.problem(comm.size)
        chosen = [resolve(one, problem, comm.size, model, study.gradient_tol) for one in study.solvers]
        text = "\n".join(str(Wanted(series, pair)) for series, pair in chosen)
    found = [parse(line) for line in launch.share(comm, text).split("\n")]
    return [(one.series, one.solver) for one in found if isinstance(one.solver, Pair)]


def _write(study: Study, comm: Comm, kind: str, points: list[Point]) -> None:
    if comm.rank == 0:
        print(write_points(study.out, f"{study.study}-{kind}-{comm.size}", points), flush=True)


def _validate(study: Study) -> list[str]:
    clear(study.out, study.study)
    for ranks in study.ranks:
        launched(ranks, study.arguments(study.solvers, "all"))
    points = [point for point in read_points([study.out]) if point.study == "validate"]
    good, said = verdict(points)
    print("\n".join(said))
    return [] if good else said


if __name__ == "__main__":
    launch.command(main)
