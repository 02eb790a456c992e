"""Costs of the steps of a trunk from the time that whole solves take on one rank.

On one rank nothing waits, so the time of a solve is linear in the costs, with counts that the cost model itself gives:

    t(solve) = Σ_c count_c(solve) c        c = fine, pull, gradient, overhead, call, level, point

Forward and adjoint solves of some depths and solvers are timed in turn; their medians give the costs by non-negative
least squares of the relative errors. So everything that a step does is in one of the costs, and the model is right on
one rank for what lies between the solves that were timed.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from scipy.optimize import nnls
from torch import Tensor

from lpnet.cost import Costs, critical_path
from lpnet.module import LayerParallel
from lpnet.options import MGRIT, Serial, SolverOptions
from lpnet.slab import Comm
from lpnet.stability import Watch
from lpnet.steppers import Stepper

T = TypeVar("T")
FITTED = ("fine", "pull", "gradient", "overhead", "call", "level", "point")
SHARE, SEGMENT = 4, 16
"""Parts of the batch, layers of an interval at most."""
SECONDS, ROUNDS = 0.8, (5, 25)
"""About how long solves are timed, within so many rounds."""
FIRST = 4.0
"""Weight of the exact chain of all layers, which is almost nothing but layers: by it their costs are known best."""
BUDGET, FEWEST = 0.1, 16
"""Seconds of one solve; fewer layers are taken where they would need more, but not fewer than so many."""


class Trial(NamedTuple):
    """A solver on the first layers of a trunk."""

    layers: int
    solver: SolverOptions


def trials(layers: int) -> list[Trial]:
    """What is timed, the exact chain of all layers first."""
    few, m = max(1, layers // 8), max(2, min(SEGMENT, layers // 8))
    shapes = [MGRIT(m, cycles=k) for k in range(3)] + [MGRIT((m, 2), 3, cycles=1), MGRIT(2 * m, cycles=1)]
    return [Trial(layers, Serial()), Trial(few, Serial()), *(Trial(layers, shape) for shape in shapes)]


def fitted(trunk: LayerParallel, batch: Tensor, layers: int) -> tuple[Costs, float]:
    """Costs of this trunk's steps on this rank, with so many layers, and the largest relative error of the fit.

    Messages are left out, and samples at once.
    """
    with torch.random.fork_rng(devices=[]):  # ranks do not call random layers equally often
        layers = max(1, min(layers, max(FEWEST, int(BUDGET / _layer(trunk, batch)))))
        asked = trials(layers)
        parts = min(SHARE, len(batch))
        acts = [Timed(trunk, batch, t) for t in (*asked, Trial(layers, Serial(parts)))]
        rounds = in_turns(acts, SECONDS, ROUNDS)
    seconds = np.array([[statistics.median(each) for each in zip(*times, strict=True)] for times in rounds])
    rows = np.array([row for t in asked for row in counts(trunk, t)])
    taken = seconds[: len(asked)].reshape(-1)
    scaled = rows / taken[:, None]
    weight = np.repeat([FIRST] + [1.0] * (len(asked) - 1), 2)
    found, _ = nnls(weight[:, None] * scaled, weight)
    costs = Costs(**dict(zip(FITTED, found.tolist(), strict=True)))
    floor = 1e-3 * taken[:2].sum() / layers  # nothing is free
    costs = replace(costs, **{c: max(floor, getattr(costs, c)) for c in ("fine", "pull", "gradient")})
    fixed = _fixed(trunk.stepper, costs, layers, (parts, seconds[-1].sum()))
    return replace(costs, fixed=fixed), float(abs(scaled @ found - 1).max())


def counts(trunk: LayerParallel, trial: Trial) -> list[list[float]]:
    """How often each cost is in a forward solve, and in an adjoint one with gradients."""
    nothing = Costs(**dict.fromkeys(FITTED, 0.0))
    found = [
        critical_path(trunk.stepper, trial.layers, 1, trial.solver, trial.solver, replace(nothing, **{c: 1.0}))
        for c in FITTED
    ]
    return [[work.forward for work in found], [work.adjoint + work.gradient for work in found]]


def _fixed(stepper: Stepper, costs: Costs, layers: int, chain: tuple[int, float]) -> float:
    """`fixed` from the exact chain over so many parts of the batch and its seconds."""
    parts, seconds = chain
    if parts == 1:
        return 0.0
    whole = critical_path(stepper, layers, 1, Serial(), Serial(), costs).total
    share = (seconds - 2 * costs.call) / (whole - 2 * costs.call) / parts
    return float(min(1.0, max(0.0, (share - 1 / parts) / (1 - 1 / parts))))


class Timed:
    """Forward and adjoint solves on this rank alone, of a trunk with the first weights of another one.

    Weights of the last layer are repeated where there are too few.
    """

    def __init__(self, trunk: LayerParallel, batch: Tensor, trial: Trial) -> None:
        weights = trunk.layer_weights()
        rows = torch.arange(trial.layers).clamp(max=len(next(iter(weights.values()))) - 1)
        own = LayerParallel(
            trunk._stack.module,
            trial.layers,
            trial.layers * trunk.h,
            trunk.stepper,
            forward=trial.solver,
            adjoint=trial.solver,
            seed=trunk.seed,
            comm=Comm(),
            dtype=batch.dtype,
            device=batch.device,
            gradient=trunk.gradient,
            store=trunk.store,
        )
        own.load_state_dict(own.state_dict() | {name: value[rows.to(value.device)] for name, value in weights.items()})
        own._watch = Watch(told=True, undone=True)
        self.trunk, self.batch = own.train(trunk.training), batch.detach()
        self.clock = processor_time(batch.device)

    def __call__(self) -> tuple[float, float]:
        """Seconds of the forward and of the adjoint solve."""
        y = self.batch.clone().requires_grad_()
        wanted = [y, *(p for p in self.trunk.parameters() if p.requires_grad)]
        times = [self.clock()]
        with torch.enable_grad():
            out = self.trunk(y)
        times.append(self.clock())
        torch.autograd.grad(out, wanted, torch.ones_like(out))
        times.append(self.clock())
        return times[1] - times[0], times[2] - times[1]


def _layer(trunk: LayerParallel, batch: Tensor) -> float:
    """About what a layer takes, forward and back."""
    one = Timed(trunk, batch, Trial(2, Serial()))
    one()
    return max(1e-6, min(sum(one()) for _ in range(2)) / 2)


def in_turns(acts: Sequence[Callable[[], T]], seconds: float, rounds: tuple[int, int]) -> list[list[T]]:
    """What each act gives in each round but the first, which warms up; acts take turns.

    Args:
        acts: what is done in a round.
        seconds: after which no round begins.
        rounds: that there are at least and at most, whatever the time.
    """
    found: list[list[T]] = [[] for _ in acts]
    start = time.perf_counter()
    least, most = rounds
    for done in range(most + 1):
        for given, act in zip(found, acts, strict=True):
            given.append(act())
        if done >= least and time.perf_counter() - start > seconds:
            break
    return [given[1:] for given in found]


def processor_time(device: torch.device) -> Callable[[], float]:
    """A clock of what this thread computes, which stands still while others have the core, where it does all the work.

    Elsewhere (a GPU, several threads) a clock on the wall, read when the device has done what it was asked for.
    """
    if device.type == "cpu":
        return time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def settled() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return settled
