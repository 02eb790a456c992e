"""Whether modelled times may be trusted: the three kinds of time of the same gradients, on the same ranks, in turns.

    |t_kind / t_wall − 1| ≤ 0.15    for kind = virtual, simulated, on as many ranks as there are cores

The interconnect is that of this machine as measured, so that nothing is modelled but the clocks. This is the only place
where times of two kinds are compared.
"""

import math
from collections.abc import Iterator, Sequence

from lpnet.cost import Costs
from lpnet.fabrics import Fabric
from lpnet.measure import measure
from lpnet.scaling.model import Model
from lpnet.scaling.points import AUTOGRAD, SERIAL, Point
from lpnet.scaling.problem import Problem
from lpnet.scaling.solvers import Pair
from lpnet.scaling.timing import Taken
from lpnet.slab import Comm
from lpnet.stopwatch import virtual, wall
from lpnet.virtual import VirtualComm

TOLERANCE = 0.15
KINDS = ("virtual", "simulated")
BLOCKS = 3
"""Of rounds; costs are measured before each of them."""


def compare(problem: Problem, solvers: Sequence[tuple[str, Pair]], comm: Comm, rounds: int) -> dict[str, list[Taken]]:
    """Kind -> times of each solver on these ranks; all clocks and solvers take turns; collective, on rank 0."""
    taken: dict[tuple[str, int], list[float]] = {}
    y, _ = problem.data()
    for _ in range(BLOCKS):
        costs = measure(problem.trunk(solvers[0][1], comm), y)
        virtual_comm = VirtualComm(comm, measured_fabric(costs, problem))
        pairs = [(problem.trunk(pair, comm), problem.trunk(pair, virtual_comm)) for _, pair in solvers]
        for i, (_, pair) in enumerate(solvers):
            taken.setdefault(("simulated", i), []).append(Model.time(problem, comm.size, pair, costs))
        for _ in range(-(-rounds // BLOCKS)):
            for i, (plain, clocked) in enumerate(pairs):
                taken.setdefault(("wall", i), []).extend(wall(plain, y, 1))
                taken.setdefault(("virtual", i), []).extend(virtual(clocked, y, 1))
    return {
        kind: [Taken(series, str(pair), taken[kind, i], None, None) for i, (series, pair) in enumerate(solvers)]
        for kind in ("wall", *KINDS)
    }


def measured_fabric(costs: Costs, problem: Problem) -> Fabric:
    """The interconnect that these costs have been measured on."""
    return Fabric("measured", costs.latency, problem.state_bytes / costs.message if costs.message else math.inf)


def verdict(points: Sequence[Point]) -> tuple[bool, list[str]]:
    """Whether all modelled times are within the tolerance of those on the wall, and a table."""
    good, said = True, ["ranks  series  wall ms  virtual / wall  simulated / wall"]
    for one in points:
        if one.kind != "wall" or one.series in (SERIAL, AUTOGRAD):
            continue
        beside = {p.kind: p for p in points if (p.series, p.ranks) == (one.series, one.ranks)}
        ratios = {kind: beside[kind].seconds / one.seconds for kind in KINDS if kind in beside}
        good = good and all(abs(value - 1) <= TOLERANCE for value in ratios.values())
        said.append(f"{one.ranks:5d}  {one.series}  {1e3 * one.seconds:.2f}" + "".join(_told(ratios)))
    if any(p.kind == "virtual" and p.seconds < (1 - TOLERANCE) * q.seconds for p in points for q in points
           if (q.kind, q.series, q.ranks, p.ranks) == ("wall", p.series, 1, 1)):  # fmt: skip
        said.append("validate: on one rank processor time is far below the wall's: other work was on the cores")
    word = "within" if good else "NOT within"
    return good, [*said, f"validate: modelled times are {word} {TOLERANCE:.0%} of those on the wall"]


def _told(ratios: dict[str, float]) -> Iterator[str]:
    for kind in KINDS:
        value = ratios.get(kind)
        mark = "" if value is None or abs(value - 1) <= TOLERANCE else " !"
        yield f"  {'' if value is None else f'{value:.3f}'}{mark}"
