"""Ranks, mostly threads of one process, whose clocks count evaluations and messages of the real engine."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
from reference import normal
from torch import Tensor

from lpnet import MGRIT, engine
from lpnet.coarse_steps import CoarseSteps
from lpnet.cost import Costs, slab_unit
from lpnet.dynamics import Dense, Hamiltonian, SecondOrder
from lpnet.engine import Engine
from lpnet.fabrics import Fabric
from lpnet.mgrit import Solver
from lpnet.residuals import Info
from lpnet.slab import Comm, Slab
from lpnet.stack import Stack
from lpnet.steppers import Stepper, stages_of
from lpnet.virtual import VirtualComm

WIDTH, BATCH = 3, 8
_SOLVE = {"fine": 1.0, "pull": 1.75, "gradient": 0.625, "batched": 0.375, "fixed": 0.25, "overhead": 0.1875}
UNEVEN = Costs(**_SOLVE, latency=0.3125, message=0.4375, call=0.5, level=0.625, point=0.0625)
MODULES = {("f",): Dense, ("kick", "drift"): Hamiltonian, ("kick",): SecondOrder}


class Counted(Fabric):
    """Sums of a few numbers take latency alone, as in the model."""

    def gather(self, size: float, ranks: int) -> float:
        return super().gather(0, ranks)


class CountedComm(VirtualComm):
    """A rank whose clock is driven by what its work is said to cost; for states of so much memory."""

    def __init__(self, comm: Comm, costs: Costs, memory: int = 1) -> None:
        self.costs, self.work = costs, 0.0
        state = memory * WIDTH * BATCH * 8
        fabric = Counted("counted", costs.latency, state / costs.message if costs.message else math.inf)
        super().__init__(comm, fabric, lambda: self.work)


class TimedField:
    """A field whose evaluations take the time of a rank."""

    def __init__(self, field: Any, comm: CountedComm, stages: int) -> None:
        self.field, self.comm, self.stages = field, comm, stages

    def __getattr__(self, name: str) -> Any:
        return getattr(self.field, name)

    def spend(self, cost: float, batch: int) -> None:
        fixed = self.comm.costs.fixed
        self.comm.work += cost / self.stages * (fixed + (1 - fixed) * batch / BATCH)

    def add(self, source: Any, target: Any, *more: Any) -> None:
        self.spend(self.comm.costs.fine, target.view.shape[-1])
        self.field.add(source, target, *more)

    def plus(self, y: Tensor, *more: Any) -> None:
        self.spend(self.comm.costs.fine, y.shape[-1])
        self.field.plus(y, *more)

    plus_linear = plus

    def pull(self, source: Any, target_bar: Tensor, *more: Any) -> None:
        self.spend(self.comm.costs.pull, target_bar.shape[-1])
        self.field.pull(source, target_bar, *more)

    def pull_grad(self, source: Any, target_bar: Tensor, *more: Any) -> None:
        self.spend(self.comm.costs.pull + self.comm.costs.gradient, target_bar.shape[-1])
        self.field.pull_grad(source, target_bar, *more)

    def blocks(self, at: Any) -> None:
        """Nothing: the model knows layers one by one."""

    def batch(self, parts: range, y: Tensor) -> Any:
        self.spend(self.comm.costs.fine * (1 + (len(parts) - 1) * self.comm.costs.batched), y.shape[-1])
        return self.field.batch(parts, y)

    def batch_pull(self, parts: range, bar: Tensor, kept: Any) -> Tensor:
        self.spend(self.comm.costs.pull * (1 + (len(parts) - 1) * self.comm.costs.batched), bar.shape[-1])
        return self.field.batch_pull(parts, bar, kept)


class TimedCoarseSteps(CoarseSteps):
    """Coarse steps with their overhead."""

    def spend(self) -> None:
        comm = next(iter(self.fields.values())).comm  # type: ignore[attr-defined]
        comm.work += comm.costs.overhead

    def step(self, k: int, x: Tensor) -> Tensor:
        self.spend()
        return super().step(k, x)

    def linearize(self, k: int, x: Tensor, tangents: bool = True) -> None:
        self.spend()
        super().linearize(k, x, tangents)

    def pull(self, k: int, z: Tensor) -> Tensor:
        self.spend()
        return super().pull(k, z)


class TimedEngine(Engine):
    """An engine whose solves and coarse levels take time besides."""

    def work(self, cost: float) -> None:
        assert isinstance(self.comm, CountedComm)
        self.comm.work += cost

    def forward(self, *given: Any) -> Any:
        self.work(self.comm.costs.call)  # type: ignore[attr-defined]
        return super().forward(*given)

    def adjoint(self, *given: Any) -> Any:
        self.work(self.comm.costs.call)  # type: ignore[attr-defined]
        return super().adjoint(*given)

    def coarse(self, *given: Any) -> Any:
        self.work(self.comm.costs.level)  # type: ignore[attr-defined]
        return super().coarse(*given)


class TimedSolver(Solver):
    """Whose residuals take time."""

    def _residual(self) -> np.ndarray:
        self.comm.work += len(self.c) * self.comm.costs.point  # type: ignore[attr-defined]
        return super()._residual()


@contextmanager
def timed_parts() -> Iterator[None]:
    """The engine makes coarse steps and solvers that take time."""
    with mock.patch.object(engine, "CoarseSteps", TimedCoarseSteps), mock.patch.object(engine, "Solver", TimedSolver):
        yield


class Observed(NamedTuple):
    """When a rank has done the forward solve, and the adjoint without and with gradients; and their infos."""

    times: list[float]
    ahead: Info
    back: Info


def observed(comm: CountedComm, stepper: Stepper, layers: int, solvers: tuple[Any, Any]) -> Observed:
    """One training step of the real engine, after another one where a solve starts from an earlier one; collective."""
    stack = Stack(MODULES[stepper.terms](WIDTH), stepper)
    theta = {"K": normal(layers, WIDTH, WIDTH), "b": normal(layers, WIDTH, seed=1)}
    x = normal(stepper.memory, WIDTH, BATCH, seed=2)
    own = TimedEngine(stepper, 1.0 / layers, Slab(layers, comm, slab_unit(layers, comm.size, *solvers)))
    stages = len(stages_of(stepper.stages(1.0)))

    def timed(weights: Any, _: Any) -> Any:
        return {term: TimedField(field, comm, stages) for term, field in stack.fields(weights).items()}

    prepared = own.prepare({name: value[own.slab.lo : own.slab.hi] for name, value in theta.items()}, timed)
    carried: list[Any] = [None, None]
    for _ in range(2):
        comm.reset()
        _, solution, ahead = own.forward(prepared, x, solvers[0], True, carried[0])
        times = [comm.now]
        for gradients in (False, True):
            comm.reset()
            _, info, back = own.adjoint(prepared, solution, x, solvers[1], gradients, carried[1])
            times.append(comm.now)
        carried = [c if goes_on(options) else None for c, options in zip((ahead, back), solvers, strict=True)]
    return Observed(times, solution.info, info)


def goes_on(options: Any) -> bool:
    """A solve that starts from an earlier one."""
    return isinstance(options, MGRIT) and options.initial in ("warm", "tau")
