"""lpnet's contestants at one point: the exact engines, and MGRIT with the options that are best at an allowed error.

The options of MGRIT are found in two steps. Errors hardly depend on the batch, and on the depth only by the number of
coarse intervals. So for each width they are measured on small problems and remembered: cycles × intervals. Of those
that are good enough, on the point itself too, the two with the least work are timed, and the faster one takes part.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from contest import Contestant, gathered, timed
from torch import Tensor

import lpnet
from lpnet import slab
from lpnet.scaling.problem import Gradients, error
from lpnet.scaling.timing import of_trunk

CYCLES = ((0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 3))
"""Of the forward and the adjoint solve."""
INTERVALS = (4, 8, 16, 32, 64)
ROOM = 0.7
"""Share of the allowed error that the small problem may have, so that others keep to it too."""
SMALL = (256, 32)
"""Layers and batch of a small problem, at most."""
FINALISTS = 2
SLOWER = 1.1
"""A number of micro-batches that takes so much more time than the best one ends the search."""

MICRO_BATCHES = (1, 2, 4, 8, 16)
TRIAL_S, TRIALS = 0.2, 5
"""Where one of several is chosen: no more runs after so many seconds, or so many runs."""

Choice = tuple[int, tuple[int, int]]
"""Coarse intervals and cycles."""


@dataclass
class Entry(Contestant):
    """A contestant, the engine that it stands for, and how its gradients become those of all layers (collective)."""

    engine: str = ""
    ours: bool = False
    detail: str = ""
    collect: Callable[[Gradients], Gradients] = lambda found: found


@dataclass
class Problem:
    """One gradient of a network: weights of all layers, input and cotangent, and the true gradient on rank 0."""

    comm: slab.Comm
    layers: int
    width: int
    T: float
    theta: dict[str, Tensor]
    y: Tensor
    bar: Tensor
    true: Gradients | None = None

    def trunk(self, forward: lpnet.MGRIT | lpnet.Serial, adjoint: lpnet.MGRIT | lpnet.Serial, comm: slab.Comm | None):
        """The network by lpnet."""
        made = lpnet.LayerParallel(
            lpnet.dynamics.Dense(self.width), self.layers, self.T,
            forward=forward, adjoint=adjoint, comm=comm or self.comm, dtype=self.y.dtype,
        )  # fmt: skip
        made.load_state_dict(dict(self.theta))
        return made

    def entry(self, trunk: lpnet.LayerParallel, name: str, engine: str, detail: str = "", **more) -> Entry:
        """A trunk as a contestant."""
        run = of_trunk(trunk, self.y, self.bar)
        return Entry(name, run, engine=engine, ours=True, detail=detail, collect=lambda g: gathered(trunk, g), **more)

    def error(self, entry: Entry) -> float:
        """Of one run, the same number on all ranks; collective."""
        torch.set_num_threads(entry.threads)
        value = 0.0
        if not entry.alone or self.comm.rank == 0:
            found = entry.collect(entry.run())
            if self.comm.rank == 0 and self.true is not None:
                value = error(found, self.true)
        self.comm.barrier(idle=entry.alone and self.comm.rank != 0)
        torch.set_num_threads(1)
        return of_rank_0(self.comm, value)


def of_rank_0(comm: slab.Comm, value: float) -> float:
    """The number that rank 0 has; collective."""
    return float(comm.bcast_(torch.tensor([value], dtype=torch.float64), 0))


def quick(entry: Entry, comm: slab.Comm) -> float:
    """Seconds of a run: the least of some while they are short; the same number on all ranks; collective."""
    seconds = [of_rank_0(comm, timed(entry, comm))]
    while sum(seconds) < TRIAL_S and len(seconds) < TRIALS:
        seconds.append(of_rank_0(comm, timed(entry, comm)))
    return min(seconds)


def fastest(entries: Iterable[Entry], comm: slab.Comm, patient: bool = False) -> Entry:
    """Of entries in the order of a number that has a best value; `patient`: in any order; collective."""
    best, least = None, float("inf")
    for entry in entries:
        seconds = quick(entry, comm)
        if seconds < least:
            best, least = entry, seconds
        elif not patient and seconds > SLOWER * least:
            break
    if best is None:
        raise AssertionError("no entries")
    return best


class Batches:
    """The best numbers of micro-batches: found at the first depth of a shape, and kept for its other depths."""

    def __init__(self) -> None:
        self._best: dict[tuple[str, int, int], int] = {}

    def entries(self, kind: str, problem: Problem, make: Callable[[int], Entry], least: int = 1) -> Iterator[Entry]:
        """The fastest of `make(q)`, whose detail is q, if any q of at least `least` divides the batch; collective."""
        key = kind, problem.width, len(problem.y)
        allowed = [q for q in sorted({*MICRO_BATCHES, least}) if q >= least and len(problem.y) % q == 0]
        if key in self._best:
            yield make(self._best[key])
        elif allowed:
            found = fastest(map(make, allowed), problem.comm)
            self._best[key] = int(found.detail)
            yield found


def serial(problem: Problem, batches: Batches, threads: int) -> Iterator[Entry]:
    """The exact engine on one rank, with one thread and with so many, and the chain over all ranks; collective."""
    alone = problem.trunk(lpnet.Serial(), lpnet.Serial(), slab.Comm())
    yield problem.entry(alone, "lpnet Serial, 1 thread", "serial", alone=True)
    if threads > 1:
        name = f"lpnet Serial, {threads} threads"
        yield problem.entry(alone, name, "serial, all cores", alone=True, threads=threads)

    def chain(q: int) -> Entry:
        trunk = problem.trunk(lpnet.Serial(q), lpnet.Serial(q), None)
        return problem.entry(trunk, "lpnet chain", "chain", f"{q}")

    if problem.comm.size > 1:
        yield from batches.entries("chain", problem, chain)


class Finder:
    """Options of MGRIT for allowed errors; remembers the errors of small problems.

    Args:
        tols: the allowed errors.
        small: layers, width, batch -> a problem to measure errors on.
    """

    def __init__(self, tols: tuple[float, ...], small: Callable[[int, int, int], Problem]) -> None:
        self.tols, self.small = tols, small
        self._errors: dict[tuple[int, int], dict[Choice, float]] = {}

    def entries(self, problem: Problem) -> Iterator[Entry]:
        """The fastest for each allowed error, where there is one; collective."""
        key = problem.width, min(problem.layers, SMALL[0])
        if key not in self._errors:
            small = self.small(key[1], problem.width, min(len(problem.y), SMALL[1]))
            self._errors[key] = _errors(small, ROOM * min(self.tols))
        for tol in self.tols:
            found = []
            for choice in ordered(self._errors[key], ROOM * tol, problem.layers, problem.comm.size):
                if len(found) == FINALISTS:
                    break
                entry = self._entry(problem, choice, tol)
                if problem.error(entry) <= tol:
                    found.append(entry)
            if found:
                yield found[0] if len(found) == 1 else fastest(found, problem.comm, patient=True)

    def _entry(self, problem: Problem, choice: Choice, tol: float) -> Entry:
        solver = solvers(choice, problem.layers)
        name, detail = f"lpnet MGRIT, error ≤ {tol:g}", f"m {solver[0].coarsening}, {choice[1][0]} + {choice[1][1]}"
        return problem.entry(problem.trunk(*solver, None), name, "MGRIT", detail)


def solvers(choice: Choice, layers: int) -> tuple[lpnet.MGRIT, lpnet.MGRIT]:
    """Forward and adjoint."""
    intervals, (forward, adjoint) = choice
    m = layers // intervals
    return lpnet.MGRIT(m, cycles=forward), lpnet.MGRIT(m, cycles=adjoint)


def _errors(problem: Problem, least: float) -> dict[Choice, float]:
    """Of all choices, for each pair of cycles up to the first below `least`; collective."""
    trunk, found = problem.trunk(lpnet.Serial(), lpnet.Serial(), None), {}
    for cycles in CYCLES:
        for intervals in INTERVALS:
            if problem.layers < 2 * intervals:
                break
            trunk.steer(*solvers((intervals, cycles), problem.layers), None)
            found[intervals, cycles] = problem.error(problem.entry(trunk, "", "MGRIT"))
            if found[intervals, cycles] <= least:
                break
    return found


def ordered(errors: dict[Choice, float], allowed: float, layers: int, ranks: int) -> list[Choice]:
    """The choices whose error is allowed, of each pair of cycles that with the least work, in the order of work."""
    def work(choice: Choice) -> float:
        intervals, (forward, adjoint) = choice
        return (forward + 1 + 2 * (adjoint + 1)) * (layers / ranks + 2 * intervals)

    best: dict[tuple[int, int], Choice] = {}
    for choice in sorted(errors, key=work):
        if errors[choice] <= allowed:
            best.setdefault(choice[1], choice)
    return list(best.values())
