"""Strong and weak scaling: which points there are, and how each of them is made.

    wall         mpirun -n P for all P up to the cores at hand
    virtual      the same ranks on virtual clocks, as processes, beyond `processes_max` as threads that work in turn
    simulated    all P, by the cost model
"""

import statistics
from collections.abc import Iterator

import torch

from lpnet.cores import affinity
from lpnet.crew import Crew
from lpnet.errors import counted
from lpnet.scaling.files import clear, write_points
from lpnet.scaling.model import Model, errors_of, resolve
from lpnet.scaling.options import Study
from lpnet.scaling.origin import origin
from lpnet.scaling.points import SERIAL, Point
from lpnet.scaling.problem import Problem
from lpnet.scaling.ranks import launch
from lpnet.scaling.solvers import Pair, Wanted
from lpnet.scaling.timing import Taken, quartiles, race
from lpnet.slab import Comm
from lpnet.stopwatch import quiet
from lpnet.virtual import VirtualComm

Solvers = list[tuple[str, Pair]]


def conduct(study: Study) -> Iterator[str]:
    """Make all points of a study, in files; says what it does."""
    torch.set_num_threads(1)
    clear(study.out, study.study)
    model = Model(study.fabric, study.repeats)
    chosen: dict[int, Solvers] = {}
    for ranks in study.ranks:
        problem = study.problem(ranks)
        chosen[ranks] = [resolve(one, problem, ranks, model, study.gradient_tol) for one in study.solvers]
        points = simulated(study, ranks, chosen[ranks], model)
        write_points(study.out, f"{study.study}-simulated-{ranks}", points)
        yield f"{counted(ranks, 'rank')}, {counted(problem.layers, 'layer')}: simulated"
    for ranks in study.ranks:
        solvers = [Wanted(series, pair) for series, pair in chosen[ranks]]
        if ranks <= len(affinity()):
            launch(ranks, study.arguments(solvers, "wall"))
            yield f"{counted(ranks, 'rank')}: wall"
        if ranks <= study.processes_max:
            launch(ranks, study.arguments(solvers, "virtual"))
            yield f"{counted(ranks, 'rank')}: virtual clocks of processes"
        elif ranks <= study.threads_max:
            points = crewed(study, ranks, chosen[ranks])
            write_points(study.out, f"{study.study}-virtual-{ranks}", points)
            yield f"{counted(ranks, 'rank')}: virtual clocks of threads"


def simulated(study: Study, ranks: int, solvers: Solvers, model: Model) -> list[Point]:
    """By the cost model."""
    problem = study.problem(ranks)
    taken = [Taken(SERIAL, "exact=1", model.serial(problem), None, None)]
    for series, pair in solvers:
        wrong = errors_of(problem).of(pair)
        taken.append(Taken(series, str(pair), model.seconds(problem, ranks, pair), wrong, None))
    return points_of(study, ranks, taken, ("simulated", "counters"))


def crewed(study: Study, ranks: int, solvers: Solvers) -> list[Point]:
    """On the virtual clocks of threads."""
    problem = study.problem(ranks)

    def rank(comm: Comm) -> list[Taken]:
        return race(problem, solvers, VirtualComm(comm, study.fabric), study.rounds)

    with quiet():
        taken = Crew(ranks).run(rank)[0]
    return points_of(study, ranks, taken, ("virtual", "threads"))


def here(study: Study, comm: Comm, solvers: Solvers, kind: str) -> list[Point]:
    """On the ranks that there are, by their wall or virtual clocks; collective."""
    on = VirtualComm(comm, study.fabric) if kind == "virtual" else comm
    taken = race(study.problem(comm.size), solvers, on, study.rounds)
    return points_of(study, comm.size, taken, (kind, "processes"))


def points_of(study: Study, ranks: int, taken: list[Taken], how: tuple[str, str]) -> list[Point]:
    """Points from what was measured; `how`: kind and by."""
    problem: Problem = study.problem(ranks)
    return [
        Point(
            study=study.study,
            series=one.series,
            solver=one.solver,
            kind=how[0],
            by=how[1],
            ranks=ranks,
            layers=problem.layers,
            T=problem.T,
            width=problem.width,
            batch=problem.batch,
            dtype=problem.dtype,
            seconds=statistics.median(one.seconds),
            quartiles=quartiles(one.seconds),
            rounds=len(one.seconds),
            gradient_error=one.gradient_error,
            memory_mib=one.memory_mib,
            fabric=None if how[0] == "wall" else study.fabric.name,
            origin=origin(),
        )
        for one in taken
    ]
