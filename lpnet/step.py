"""The solves of one call of a trunk: forward, adjoint, from the same weights, input and start.

    x_{j+1} = Φ_j(x_j),        z_j = (∂Φ_j/∂x)ᵀ z_{j+1},    g_j = (∂Φ_j/∂θ)ᵀ z_{j+1}
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from lpnet.control import Controller, Report, Schedule, exact_of
from lpnet.controls import Grid
from lpnet.engine import Engine, Prepared, Solution
from lpnet.memory import FROM_EARLIER, Memory, Solve
from lpnet.options import MGRIT, SolverOptions
from lpnet.residuals import Info
from lpnet.slab import Slab
from lpnet.stability import Watch
from lpnet.stack import Stack
from lpnet.steppers import Stepper

Guess = dict[str, list[Tensor] | None]


@dataclass
class Infos:
    """What the solves of a trunk did.

    Attributes:
        forward, adjoint: the last solves, evaluations and line searches too; None before the first.
        gradient: the forward and the adjoint solve of the last gradient; None before the first. Evaluations and line
            searches leave it as it is, and `control` and `schedules` too.
        control: what error control says of that gradient; None where it was not under control.
        schedules: of all gradients of that step: one, and those of a check.
        layer_evaluations: layers that this rank has evaluated so far for gradients, forward and adjoint, with those
            that `store` has run again.
        round_trip: with store="reverse", the largest relative error of the states that the last adjoint undid on this
            rank, found where the begin of a segment is known; None: nothing was undone.
    """

    forward: Info | None = None
    adjoint: Info | None = None
    gradient: tuple[Info, Info] | None = None
    control: Report | None = None
    schedules: list[Schedule] = field(default_factory=list)
    layer_evaluations: int = 0
    round_trip: float | None = None

    @property
    def is_exact(self) -> bool:
        """Whether the last gradient is that of the exact chain."""
        if self.control is not None:
            return self.control.exact
        return self.gradient is not None and all(one.solver == "serial" for one in self.gradient)

    @property
    def diverged(self) -> bool:
        """Whether cycles of the last gradient's schedule led nowhere."""
        if self.control is not None:
            return self.control.diverged
        return self.gradient is not None and any(one.diverged for one in self.gradient)

    @property
    def gradient_error(self) -> float | None:
        """The estimate for that schedule; 0 where it is exact, None where nothing is known."""
        if self.control is not None:
            return self.control.gradient_error
        return 0.0 if self.is_exact else None

    def found(self, forward: Info, adjoint: Info, schedule: Schedule, first: bool = True) -> None:
        """A gradient was found by these solves: the first of a step, or another one of its check."""
        self.gradient = forward, adjoint
        self.control = None if first else self.control
        self.schedules = [schedule] if first else [*self.schedules, schedule]


class Repeat(Protocol):
    """Says that a call of the trunk repeats the last step: by which schedule, and from what its solves start."""

    @property
    def keeps(self) -> bool:
        """What the solves leave is kept for the next step."""

    @property
    def schedule(self) -> Schedule: ...
    @property
    def guess(self) -> Guess: ...


class Trunk(Protocol):
    """What is needed of a `lpnet.LayerParallel`."""

    stepper: Stepper
    forward_solver: SolverOptions
    adjoint_solver: SolverOptions
    memory: Memory
    info: Infos
    exact: bool
    training: bool
    _engine: Engine
    _slab: Slab
    grid: Grid
    _stack: Stack
    _watch: Watch
    _controller: Controller | None
    _again: "Repeat | None"
    _last: "Trial | None"
    _calls_left: int | None

    @property
    def theta(self) -> dict[str, nn.Parameter]: ...
    def _prepare(self, y: Tensor, copied: bool = False) -> Prepared: ...
    def _gradients(self, prepared: Prepared) -> list[Tensor]: ...


@dataclass
class Gradient:
    """Gradients of the local weights and of the input (packed, without memory), and how they were found."""

    weights: list[Tensor]
    inputs: Tensor
    forward: Info
    adjoint: Info

    @property
    def residuals(self) -> tuple[float, float]:
        """The last residual of either solve."""
        return self.forward.residuals[-1], self.adjoint.residuals[-1]


class Step:
    """The solves of one call of a trunk: one version of the weights, one input, and what to start from.

    With `copied` it stays at its weights whatever becomes of the parameters, and leaves nothing for the next step.
    """

    def __init__(self, trunk: Trunk, y: Tensor, copied: bool = False) -> None:
        self.trunk, self.prepared, self.wanted = trunk, trunk._prepare(y, copied), True
        self.field = next(iter(self.prepared.layers.fields.values()))
        self.x = self._packed(y)
        self.z = self.x
        self.guess: Guess = trunk._again.guess if trunk._again else {}
        self.remembers = trunk.training  # a look at other data leaves what training remembers alone
        self.leaves = self.remembers and not copied  # and so does a linearisation, which starts from it
        # Residuals are read where nobody waits for that alone: on a processor, after messages, and in the steps of a
        # training loop of lpnet, which waits for the loss anyway. A single GPU in a loop of the user's own goes on.
        steered = (trunk._controller, trunk._again, trunk._calls_left)
        self.looks = self.x.device.type == "cpu" or trunk._slab.comm.size > 1 or any(s is not None for s in steered)

    def _packed(self, y: Tensor) -> Tensor:
        """(y, 0, …) as the field stores states."""
        memory = self.trunk.stepper.memory
        return self.field.pack(torch.stack([y.detach()] + [torch.zeros_like(y)] * (memory - 1)))

    def unpacked(self, y: Tensor) -> Tensor:
        """(batch, *features) from a packed state without memory."""
        return self.field.unpack(y[None])[0]

    def _solve(self, which: str, options: SolverOptions) -> Solve | None:
        if not isinstance(options, MGRIT) or options.initial not in FROM_EARLIER:
            return None
        x = self.x if which == "forward" else self.z
        return Solve(which, options, x, self.field.batch_dim(x))

    def _start(self, which: str, options: SolverOptions) -> list[Tensor] | None:
        """What the memory has to start from; the same for all solves of the step."""
        solve = self._solve(which, options)
        if solve is None:
            return None
        if which not in self.guess and self.remembers:
            self.guess[which] = self.trunk.memory.load(solve)
        return self.guess.get(which)

    def _keep(self, which: str, options: SolverOptions, carry: list[Tensor], info: Info) -> None:
        """For the next step, unless it is not finite or led nowhere (all ranks have the same residual)."""
        solve, again = self._solve(which, options), self.trunk._again
        if solve is None or not self.leaves or not (again is None or again.keeps):
            return
        if info.diverged:
            self.trunk.memory.save(solve, None)
        elif info.solver == "mgrit":
            self.trunk.memory.save(solve, carry if math.isfinite(info.residuals[-1]) else None)

    def _is_lost(self, info: Info) -> bool:
        """Whether cycles have led nowhere, the same on all ranks."""
        return self.looks and info.solver == "mgrit" and info.leads_nowhere

    def forward(self, options: SolverOptions, keep: bool) -> tuple[Tensor, Solution]:
        """y_N, packed, and what the adjoint needs; by the exact chain where the cycles diverge. Collective."""
        guess, engine = self._start("forward", options), self.trunk._engine
        out, solution, carry = engine.forward(self.prepared, self.x, options, keep, guess)
        if self._is_lost(solution.info):
            lost, carry = solution.info, []
            del solution  # so that its memory is free for the chain
            out, solution, _ = engine.forward(self.prepared, self.x, exact_of(options), keep)
            solution.info.replaces(lost)
        self._keep("forward", options, carry, solution.info)
        self.trunk.info.layer_evaluations += solution.info.layers if keep else 0
        return out, solution

    def pulled(self, info: Info) -> None:
        """An adjoint solve was done."""
        self.trunk.info.layer_evaluations += info.layers
        self.trunk.info.round_trip = info.round_trip
        self.trunk._watch.undone(info.round_trip, self.x.dtype)

    def adjoint(self, solution: Solution, options: SolverOptions, wanted: bool) -> Gradient:
        """The gradient for the cotangent `z`; by the exact chain where cycles diverge, here or forward. Collective."""
        engine, exact = self.trunk._engine, exact_of(options)
        if solution.info.diverged:
            out, info, carry = engine.adjoint(self.prepared, solution, self.z, exact, wanted)
            info.diverged = exact != options
        else:
            guess = self._start("adjoint", options)
            out, info, carry = engine.adjoint(self.prepared, solution, self.z, options, wanted, guess)
        if self._is_lost(info):
            lost, carry = info, []
            out, info, _ = engine.adjoint(self.prepared, solution, self.z, exact, wanted)
            info.replaces(lost)
        self._keep("adjoint", options, carry, info)
        self.pulled(info)
        weights: list[Tensor] = []
        if wanted:
            weights = self.trunk._gradients(self.prepared)
        return Gradient(weights, out, solution.info, info)


@dataclass(frozen=True)
class Trial:
    """The schedule of a step, and what its solves started from: to evaluate the same function at other weights."""

    schedule: Schedule
    guess: Guess
    keeps: ClassVar[bool] = False
