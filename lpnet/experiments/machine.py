"""A modelled machine: layers as fast as measured here, and a network of 2 µs and 10 GB/s between any two ranks.

Times are those of `lpnet.cost`: critical paths of one training step, forward, adjoint and weight gradients. They are
modelled, never measured, for the ranks are not there.
"""

from dataclasses import replace

from torch import Tensor

from lpnet import MGRIT, LayerParallel, Serial
from lpnet.cost import Costs, critical_path, serial_work
from lpnet.measure import measure
from lpnet.oneshot import remembering
from lpnet.steppers import Euler

LATENCY, BANDWIDTH = 2e-6, 1e10
"""Seconds of an empty message, bytes a second."""
METHODS = ("serial", "pipelined", "sgd", "oneshot")
NAMES = {
    "serial": "serial chain, one rank",
    "pipelined": "pipelined chain, best Q",
    "sgd": "(i) MGRIT forward and back, 1 + 1 cycles",
    "oneshot": "(ii) simultaneous, one sweep each way",
}


def machine(trunk: LayerParallel, batch: Tensor, rounds: int) -> Costs:
    """Costs in seconds of the trunk's steps as measured on the ranks at hand, and of the network; collective.

    Of so many rounds the fastest counts, for other work on the machine can only slow a round down.
    """
    found = [measure(trunk, batch) for _ in range(rounds)]
    costs = min(found, key=lambda one: one.fine + one.pull + one.gradient)
    return replace(costs, latency=LATENCY, message=batch.numel() * batch.element_size() / BANDWIDTH)


def times(layers: int, ranks: int, solver: MGRIT, costs: Costs, parts: int) -> dict[str, float]:
    """Method -> modelled time of a training step of Euler layers, in the unit of the costs.

    Args:
        layers: N.
        ranks: P.
        solver: of (i) in both directions; (ii) is one sweep each way on the same levels.
        costs: of the single steps.
        parts: of the batch, at most, for the pipelined chain.
    """
    euler = Euler()
    chains = [Serial(2**q) for q in range(min(parts, 8 * ranks).bit_length())]
    simultaneous = remembering(solver, 0)
    return {
        "serial": serial_work(layers, costs).total,
        "pipelined": min(critical_path(euler, layers, ranks, s, s, costs).total for s in chains),
        "sgd": critical_path(euler, layers, ranks, solver, solver, costs).total,
        "oneshot": critical_path(euler, layers, ranks, simultaneous, simultaneous, costs).total,
    }


def crossover(ranks: tuple[int, ...], mine: list[float], theirs: list[float]) -> int | None:
    """The smallest of these numbers of ranks from which on `mine` is always the shorter time; None if it never is."""
    found = None
    for P, a, b in reversed(list(zip(ranks, mine, theirs, strict=True))):
        if a >= b:
            break
        found = P
    return found
