"""Modelled times of any number of ranks, from costs of steps that are measured on one, and the best solvers by them.

    t(P) = critical path of one gradient (`lpnet.cost`) with the costs of N/P layers a rank and the messages of a fabric

Costs are measured for each number of layers a rank, since how much of their memory is in the cache depends on it. The
serial engine has those of all layers. The gradient error is measured, for it does not depend on the ranks.
"""

import statistics
from collections.abc import Iterator
from dataclasses import fields, replace
from functools import cache
from heapq import heapify, heappop, heappush
from typing import Literal

from lpnet import hierarchy
from lpnet.cost import Costs, critical_path, on_fabric, serial_work
from lpnet.fabrics import Fabric
from lpnet.measure import measure
from lpnet.options import MGRIT, Serial
from lpnet.scaling.problem import Gradients, Problem, error
from lpnet.scaling.solvers import EXACT, Pair, Wanted, in_parts
from lpnet.scaling.timing import exact, of_trunk
from lpnet.slab import Comm
from lpnet.steppers import Euler

MOST_LAYERS = 256
"""Layers with which costs are measured at most, as in `lpnet.measure`."""
COARSENINGS: tuple[tuple[int, ...], ...] = (
    (8,), (16,), (32,), (64,),
    (4, 4), (8, 2), (8, 4), (8, 8), (16, 2), (16, 4), (16, 8), (32, 2), (32, 4), (32, 8), (64, 2), (64, 4),
    (4, 4, 4), (8, 2, 2), (8, 4, 2), (8, 4, 4), (16, 2, 2), (16, 4, 2), (16, 4, 4), (32, 2, 2), (32, 4, 2),
    (4, 4, 4, 2), (8, 4, 2, 2), (8, 4, 4, 2), (16, 4, 2, 2), (16, 2, 2, 2), (16, 4, 4, 2),
)  # fmt: skip
"""Of two, three, four and five levels."""
COARSE: tuple[Literal["matched", "rediscretized"], ...] = ("matched", "rediscretized")
STARTS: tuple[Literal["coarse", "nested"], ...] = ("coarse", "nested")
"""Of two levels they are the same."""
CYCLES = ((0, 0), (1, 0), (1, 1), (2, 1), (2, 2))
PARTS = (1, 2, 4, 8)
"""Of the batch, for the chain of the coarsest level."""


class Model:
    """Costs of steps on a fabric, measured as they are asked for.

    Args:
        fabric: the interconnect.
        repeats: how often costs are measured; the median of the times counts.
    """

    def __init__(self, fabric: Fabric, repeats: int = 3) -> None:
        self.fabric, self.repeats = fabric, repeats
        self._known: dict[object, list[Costs]] = {}

    def costs(self, problem: Problem, ranks: int) -> list[Costs]:
        """In seconds, measured several times, with as many layers as a rank has."""
        layers = min(-(-problem.layers // ranks), MOST_LAYERS)
        key = (layers, problem.T / problem.layers, problem.width, problem.batch, problem.dtype)
        if key not in self._known:
            trunk = problem.trunk(Pair(Serial(), Serial()), Comm())
            y, _ = problem.data()
            found = [measure(trunk, y, ranks) for _ in range(self.repeats)]
            self._known[key] = [on_fabric(one, self.fabric, problem.state_bytes) for one in found]
        return self._known[key]

    def middle(self, problem: Problem, ranks: int) -> Costs:
        """The medians of the costs."""
        found = self.costs(problem, ranks)
        return Costs(**{f.name: statistics.median(getattr(one, f.name) for one in found) for f in fields(Costs)})

    def seconds(self, problem: Problem, ranks: int, pair: Pair) -> list[float]:
        """Of one gradient, by each measurement of the costs."""
        return [self.time(problem, ranks, pair, one) for one in self.costs(problem, ranks)]

    def serial(self, problem: Problem) -> list[float]:
        """Of one gradient by the exact engine on one rank."""
        return [serial_work(problem.layers, one).total for one in self.costs(problem, 1)]

    @staticmethod
    def time(problem: Problem, ranks: int, pair: Pair, costs: Costs) -> float:
        """Of one gradient with these costs."""
        return critical_path(Euler(), problem.layers, ranks, pair.forward, pair.adjoint, costs).total


class Errors:
    """Gradient errors of solvers on a problem, measured once each, on one rank."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._known: dict[Pair, float] = {}
        self._true: Gradients | None = None

    def of(self, pair: Pair) -> float:
        """The gradient error; micro-batches change it by rounding only."""
        pair = in_parts(pair, 1)
        if pair not in self._known:
            if self._true is None:
                self._true = exact(self.problem)
            found = of_trunk(self.problem.trunk(pair, Comm()), *self.problem.data())()
            self._known[pair] = error(found, self._true)
        return self._known[pair]


@cache
def errors_of(problem: Problem) -> Errors:
    """The errors of a problem, of which there is one collection."""
    return Errors(problem)


def resolve(wanted: Wanted, problem: Problem, ranks: int, model: Model, tol: float) -> tuple[str, Pair]:
    """Series and solvers of what is wanted, on so many ranks.

    Args:
        wanted: solvers, "exact" or "auto".
        problem: what the gradient is of.
        ranks: P.
        model: says which is fastest.
        tol: largest gradient error of "auto".
    """
    if isinstance(wanted.solver, Pair):
        return wanted.series, wanted.solver
    costs = model.middle(problem, ranks)
    if wanted.solver == EXACT:
        return wanted.series, best_chain(problem, ranks, costs)
    return wanted.series, best(problem, ranks, costs, tol)


def best_chain(problem: Problem, ranks: int, costs: Costs) -> Pair:
    """The exact chain with the best number of micro-batches by the cost model."""
    most = max(1, min(problem.batch, 4 * ranks)) if ranks > 1 else 1
    chains = [Pair(Serial(2**q), Serial(2**q)) for q in range(most.bit_length())]
    return min(chains, key=lambda pair: Model.time(problem, ranks, pair, costs))


def best(problem: Problem, ranks: int, costs: Costs, tol: float) -> Pair:
    """The fastest MGRIT by the cost model with a gradient error of at most `tol`.

    Where none of the candidates has, the most accurate of them.
    """
    errors = errors_of(problem)
    shapes = candidates(problem.layers)
    queue = [(Model.time(problem, ranks, pairs[0], costs), str(pairs[0]), pairs) for pairs in shapes]
    heapify(queue)
    tried: list[Pair] = []
    while queue:
        _, _, (pair, *more) = heappop(queue)
        tried.append(pair)
        if errors.of(pair) <= tol:
            break
        if more:  # more cycles take longer
            heappush(queue, (Model.time(problem, ranks, more[0], costs), str(more[0]), more))
    found = tried[-1] if errors.of(tried[-1]) <= tol else min(tried, key=errors.of)
    choices = [in_parts(found, parts) for parts in PARTS if parts <= problem.batch]
    return min(choices, key=lambda pair: Model.time(problem, ranks, pair, costs))


def candidates(layers: int) -> Iterator[list[Pair]]:
    """MGRIT with all coarsenings that so many layers have, each with more and more cycles.

    Rediscretised coarse steps cost half of matched ones; where much error is allowed they are the faster.
    """
    every = [
        MGRIT(factors, 1 + len(factors), cycles=0, coarse=coarse, initial=initial)
        for factors in COARSENINGS
        for coarse in COARSE
        for initial in (STARTS if len(factors) > 1 else STARTS[:1])
    ]
    known = [base for base in every if len(hierarchy.bounds(layers, base)) == base.levels]
    for base in known or [MGRIT(2, 2, cycles=0)]:
        yield [Pair(replace(base, cycles=ahead), replace(base, cycles=back)) for ahead, back in CYCLES]
