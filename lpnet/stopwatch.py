"""What one gradient of a trunk takes, by three clocks that must agree where all of them can be read.

    wall        seconds until the last rank is done, on as many cores as there are ranks
    virtual     the same solve on ranks with virtual clocks (`lpnet.virtual`), real ones or a crew of threads
    simulated   the critical path (`lpnet.cost`) with costs that were measured on one rank

The last two are modelled time. They are compared with the wall here and nowhere else.
"""

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from lpnet.cost import Costs, critical_path, on_fabric
from lpnet.crew import Crew
from lpnet.errors import InputError
from lpnet.fabrics import Fabric, fabric_of
from lpnet.measure import measure
from lpnet.module import LayerParallel
from lpnet.slab import Comm
from lpnet.virtual import VirtualComm, bytes_of

Make = Callable[[Comm], LayerParallel]
"""The trunk on these ranks, with its weights and solvers."""
ROUNDS = 15


class Clocks(NamedTuple):
    """Median seconds of a gradient by each clock, the same on all ranks."""

    ranks: int
    wall: float
    virtual: float
    simulated: float

    def agree(self, tolerance: float = 0.15) -> bool:
        """Whether the modelled times are the wall's, but for so large a part."""
        return all(abs(t / self.wall - 1) <= tolerance for t in (self.virtual, self.simulated))


def gradient(trunk: LayerParallel, batch: Tensor) -> None:
    """One gradient of all weights and of the input, by the solvers of the trunk; collective."""
    y = batch.detach().clone().requires_grad_()
    wanted = [y, *(p for p in trunk.parameters() if p.requires_grad)]
    out = trunk(y)
    torch.autograd.grad(out, wanted, torch.ones_like(out))


def wall(trunk: LayerParallel, batch: Tensor, rounds: int = ROUNDS) -> list[float]:
    """Seconds of each gradient until the last rank is done, the first left out; collective."""
    found = []
    for _ in range(rounds + 1):
        trunk.comm.barrier()
        begin = time.perf_counter()
        gradient(trunk, batch)
        trunk.comm.barrier()
        found.append(time.perf_counter() - begin)
    return found[1:]


def virtual(trunk: LayerParallel, batch: Tensor, rounds: int = ROUNDS) -> list[float]:
    """Virtual seconds of each gradient until the last rank is done, the first left out; collective.

    Raises:
        InputError: the ranks of the trunk have no virtual clocks.
    """
    comm = trunk.comm
    if not isinstance(comm, VirtualComm):
        raise InputError(f"comm: {type(comm).__name__} given, a VirtualComm allowed")
    found = []
    for _ in range(rounds + 1):
        comm.reset()
        gradient(trunk, batch)
        found.append(comm.latest())
    return found[1:]


def crew(make: Make, batch: Tensor, ranks: int, fabric: Fabric | str = "default", rounds: int = 5) -> list[float]:
    """Virtual seconds of each gradient on so many ranks, which are threads of this process."""
    with quiet():
        return Crew(ranks).run(lambda comm: virtual(make(VirtualComm(comm, fabric)), batch, rounds))[0]


@contextmanager
def quiet() -> Iterator[None]:
    """No garbage collection, which would meet one of many ranks at a time, and no word of idle ranks."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="lpnet: .* ranks idle")
            yield
    finally:
        if enabled:
            gc.enable()


def simulated(trunk: LayerParallel, ranks: int, costs: Costs) -> float:
    """The critical path of a gradient by the solvers of the trunk on so many ranks, in the unit of the costs."""
    return critical_path(
        trunk.stepper, trunk.layers, ranks, trunk.forward_solver, trunk.adjoint_solver, costs
    ).total


def compare(make: Make, batch: Tensor, comm: Comm, rounds: int = ROUNDS) -> Clocks:
    """A gradient by all three clocks on the ranks at hand, with the messages as they are measured; collective.

    Meaningful where every rank has a core for itself. Wall and virtual clock take turns.
    """
    plain = make(comm)
    costs = measure(plain, batch)
    bandwidth = bytes_of(batch) / costs.message if costs.message else float("inf")
    clocked = make(VirtualComm(comm, Fabric("measured", costs.latency, bandwidth)))
    times: list[tuple[float, float]] = []
    for _ in range(rounds + 1):
        times.append((wall(plain, batch, 1)[0], virtual(clocked, batch, 1)[0]))
    medians = [statistics.median(each) for each in zip(*times[1:], strict=True)]
    found = torch.tensor([*medians, simulated(plain, comm.size, costs)], dtype=torch.float64)
    return Clocks(comm.size, *comm.bcast_(found, 0).tolist())


@dataclass(frozen=True)
class Modelled:
    """Modelled seconds of a gradient on so many ranks, from a crew and from the critical path alone."""

    ranks: int
    virtual: float
    simulated: float


def modelled(make: Make, batch: Tensor, ranks: int, fabric: Fabric | str = "default", rounds: int = 5) -> Modelled:
    """Both modelled times on the same fabric; costs are measured on this rank with as many layers as one would have."""
    with quiet():
        one = make(Comm())
        costs = on_fabric(measure(one, batch, ranks), fabric_of(fabric), bytes_of(batch) * one.stepper.memory)
    times = crew(make, batch, ranks, fabric, rounds)
    return Modelled(ranks, statistics.median(times), simulated(one, ranks, costs))
