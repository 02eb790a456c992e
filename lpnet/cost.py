"""Cost model: the critical path of one training step on any number of ranks, by the clocks of `lpnet.clock`.

For two levels with F-relaxation and slabs of n = N/P ≥ m layers, k cycles and c evaluations per coarse step, a solve
with a coarse start takes

    c N/m + (k + 1) n + k c n/m

and not (k + 1)(n + c N/m): a rank begins its next cycle while the chain of the last one still runs through later ranks.

Not counted: weights of coarse steps that travel, where intervals lie on several ranks, and what is outside the trunk.
"""

import math
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from lpnet import hierarchy
from lpnet.clock import Run, end_of
from lpnet.costs import Costs
from lpnet.errors import InputError
from lpnet.fabrics import Fabric, fabric_of
from lpnet.options import MGRIT, SolverOptions
from lpnet.steppers import Stepper

__all__ = ["UNIT", "Costs", "Work", "critical_path", "on_fabric", "serial_work", "slab_unit"]

UNIT = Costs()
"""Every evaluation costs one, communication nothing."""


class Work(NamedTuple):
    """Time on the critical path of one training step, in the unit of the costs.

    Attributes:
        forward: of the forward solve.
        adjoint: of the adjoint solve, linearising the coarse steps included.
        gradient: by which the weight gradients lengthen it.
    """

    forward: float
    adjoint: float
    gradient: float

    @property
    def total(self) -> float:
        """The whole step."""
        return self.forward + self.adjoint + self.gradient


def serial_work(layers: int, costs: Costs = UNIT) -> Work:
    """The exact engine on one core: N layers forward, N adjoint, N weight gradients."""
    return Work(layers * costs.fine + costs.call, layers * costs.pull + costs.call, layers * costs.gradient)


def on_fabric(costs: Costs, fabric: Fabric | str, state: int) -> Costs:
    """These costs, in seconds, with the messages of a fabric; a state of the whole batch has so many bytes."""
    found = fabric_of(fabric)
    return replace(costs, latency=found.latency, message=state / found.bandwidth)


@lru_cache(maxsize=65536)
def critical_path(
    stepper: Stepper,
    layers: int,
    ranks: int,
    forward: SolverOptions,
    adjoint: SolverOptions,
    costs: Costs = UNIT,
) -> Work:
    """Critical path of one training step: forward, adjoint and weight gradients.

    Solves stop at no residual: with `tol` this is the cost of all cycles, the sums after each cycle included. The
    earlier solve that a "warm" or "tau" start needs is taken to be there.

    Args:
        stepper: says what a layer and a coarse step consist of.
        layers: N.
        ranks: P.
        forward: solver of the forward propagation.
        adjoint: solver of the adjoint.
        costs: of the single steps.

    Raises:
        InputError: `layers` or `ranks` below 1, or options that the stepper cannot honour.
    """
    for key, given in (("layers", layers), ("ranks", ranks)):
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise InputError(f"{key}: {given!r} given, a whole number of at least 1 allowed")
    for options in (forward, adjoint):
        if isinstance(options, MGRIT):
            stepper.check(options)
    unit = slab_unit(layers, ranks, forward, adjoint)
    ahead = end_of(Run(stepper, layers, ranks, unit, False, forward, costs))
    back = end_of(Run(stepper, layers, ranks, unit, True, adjoint, costs))
    return Work(ahead.plain, back.plain, back.graded - back.plain)


def slab_unit(layers: int, ranks: int, *solvers: SolverOptions) -> int:
    """Slabs are cut at C-points of both solvers if there are enough, else at those of one of them, else anywhere."""
    mgrit = [s for s in solvers if isinstance(s, MGRIT) and len(hierarchy.bounds(layers, s)) > 1]
    factors = [s.factor(0) for s in mgrit]
    for unit in (math.lcm(*factors), *factors) if factors else ():
        if -(-layers // unit) >= ranks:
            return unit
    return 1
