"""Times of gradients on ranks that are there: on the wall, or on virtual clocks; all contestants take turns.

    wall       from one barrier to the next
    virtual    the latest of the ranks' clocks after the gradient, all set to 0 before it
"""

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lpnet.gradient import solved_of
from lpnet.module import LayerParallel
from lpnet.options import Serial
from lpnet.scaling.points import AUTOGRAD, SERIAL
from lpnet.scaling.problem import Gradients, Problem, error
from lpnet.scaling.solvers import Pair
from lpnet.slab import Comm
from lpnet.virtual import VirtualComm

MIB = 2.0**20
MOST_OF_AUTOGRAD = 2e9
"""Bytes that autograd may keep; beyond, it takes no part."""

Run = Callable[[], Gradients]


class Taken(NamedTuple):
    """What was measured of one contestant."""

    series: str
    solver: str
    seconds: list[float]
    gradient_error: float | None
    memory_mib: float | None


class Contestant(NamedTuple):
    """A way to the gradient, on all ranks or on rank 0 alone."""

    series: str
    solver: str
    run: Run
    trunk: LayerParallel | None
    alone: bool


def race(
    problem: Problem, wanted: Sequence[tuple[str, Pair]], comm: Comm, rounds: int, bound: float = 60.0
) -> list[Taken]:
    """Times of one gradient by each solver, and by serial ones on rank 0 alone; collective, on rank 0.

    Args:
        problem: what the gradient is of.
        wanted: series and solvers.
        comm: the ranks; where it is a `VirtualComm`, times are virtual.
        rounds: of which the first warms up and does not count; there is one more.
        bound: seconds after which no further round begins.
    """
    contestants = _contestants(problem, wanted, comm)
    true = exact(problem) if comm.rank == 0 else None
    errors = [_error(c, true, comm) for c in contestants]
    memory = [_memory(c, problem, comm) for c in contestants]
    seconds: list[list[float]] = [[] for _ in contestants]
    begin = time.perf_counter()
    for done in range(rounds + 1):
        for taken, contestant in zip(seconds, contestants, strict=True):
            taken.append(_seconds(contestant, comm))
        late = comm.rank == 0 and time.perf_counter() - begin > bound
        if done and comm.agree(late):
            break
    parts = zip(contestants, seconds, errors, memory, strict=True)
    return [Taken(c.series, c.solver, taken[1:], wrong, kept) for c, taken, wrong, kept in parts]


def exact(problem: Problem) -> Gradients:
    """By the exact engine in float64."""
    trunk = problem.trunk(Pair(Serial(), Serial()), Comm(), torch.float64)
    return of_trunk(trunk, *problem.data(torch.float64))()


def of_trunk(trunk: LayerParallel, y: Tensor, bar: Tensor) -> Run:
    """One gradient by lpnet, of the input and of this rank's weights."""
    return _of(trunk, list(trunk.theta.values()), y, bar)


def of_plain(net: nn.Module, y: Tensor, bar: Tensor) -> Run:
    """One gradient by autograd on a plain network, of the input and of all parameters, one by one."""
    return _of(net, list(net.parameters()), y, bar)


def _of(net: nn.Module, parameters: Sequence[Tensor], y: Tensor, bar: Tensor) -> Run:
    def run() -> Gradients:
        x = y.clone().requires_grad_()
        with torch.enable_grad():
            out = net(x)
        found = torch.autograd.grad(out, [x, *parameters], bar)
        return found[0], list(found[1:])

    return run


def quartiles(seconds: Sequence[float]) -> tuple[float, float]:
    """The lower and the upper one."""
    if len(seconds) < 2:
        return seconds[0], seconds[0]
    lower, _, upper = statistics.quantiles(seconds, n=4, method="inclusive")
    return lower, upper


def _contestants(problem: Problem, wanted: Sequence[tuple[str, Pair]], comm: Comm) -> list[Contestant]:
    y, bar = problem.data()
    pair = Pair(Serial(), Serial())
    alone = problem.trunk(pair, Comm())
    found = []
    if 2 * problem.layers * problem.state_bytes <= MOST_OF_AUTOGRAD:
        found.append(Contestant(AUTOGRAD, "", of_plain(alone.as_sequential(), y, bar), None, True))
    found.append(Contestant(SERIAL, str(pair), of_trunk(alone, y, bar), alone, True))
    for series, solver in wanted:
        trunk = problem.trunk(solver, comm)
        found.append(Contestant(series, str(solver), of_trunk(trunk, y, bar), trunk, False))
    return found


def _seconds(contestant: Contestant, comm: Comm) -> float:
    """Until the last rank is done, the same on all ranks in virtual time, on rank 0 on the wall."""
    idle = contestant.alone and comm.rank > 0
    if isinstance(comm, VirtualComm):
        comm.reset()
        if not idle:
            contestant.run()
        return comm.latest()
    comm.barrier()
    begin = time.perf_counter()
    if not idle:
        contestant.run()
    comm.barrier(idle=idle)
    return time.perf_counter() - begin


def _error(contestant: Contestant, true: Gradients | None, comm: Comm) -> float | None:
    """On rank 0; collective."""
    if contestant.alone:
        if true is None:
            return None
        inputs, weights = contestant.run()
        if contestant.trunk is None:
            weights = [torch.stack(weights[0::2]), torch.stack(weights[1::2])]
        return error((inputs, weights), true)
    assert contestant.trunk is not None
    inputs, local = contestant.run()
    weights = [contestant.trunk._slab.gather(one) for one in local]
    return None if true is None else error((inputs, weights), true)


def _memory(contestant: Contestant, problem: Problem, comm: Comm) -> float | None:
    """MiB of weights and of what is kept between forward and backward, of the largest rank; collective."""
    if contestant.trunk is None or (contestant.alone and comm.rank > 0):
        return None
    held = bytes_of(contestant.trunk.theta.values()) + kept(contestant.trunk, problem.data()[0])
    return held / MIB if contestant.alone else comm.agree(held) / MIB


def kept(trunk: LayerParallel, y: Tensor) -> int:
    """Bytes that this rank keeps between forward and backward, its weights not counted."""
    with torch.enable_grad():
        out = trunk(y.clone().requires_grad_())
    tensors: list[Tensor] = []
    for tape in solved_of(out).solution.tapes:
        tensors += [t for layers in tape.kept for t in layers if t is not None]
        tensors += [*tape.starts.values(), *tape.ends.values(), *tape.states.values()]
    return bytes_of(tensors)


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """Of the distinct storages behind these tensors."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
