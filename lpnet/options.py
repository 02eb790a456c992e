"""Options of the solvers: `MGRIT` (iterative, parallel over the layers) and `Serial` (exact, pipelined).

Both are frozen and validate themselves; they hold no state and start no work.
"""

import dataclasses
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from lpnet.errors import InputError, counted, shown

MOST_CYCLES = 10_000
"""Two levels are exact after as many as there are intervals."""


def _whole(key: str, given: object, least: int, most: int | None = None) -> None:
    if isinstance(given, bool) or not isinstance(given, int) or given < least or (most is not None and given > most):
        which = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InputError(f"{key}: {shown(given)} given, a whole number {which} allowed")


def _choice(key: str, given: object, allowed: tuple[str, ...]) -> None:
    if given not in allowed:
        raise InputError(f"{key}: {shown(given)} given, one of {', '.join(allowed)} allowed")


@dataclass(frozen=True)
class Serial:
    """Exact propagation: a chain of layers through the ranks, pipelined over parts of the batch.

    Args:
        micro_batches: number Q of parts of the batch; on P ranks the chain runs at efficiency Q / (Q + P - 1).
    """

    micro_batches: int = 1

    def __post_init__(self) -> None:
        _whole("micro_batches", self.micro_batches, 1)


@dataclass(frozen=True)
class MGRIT:
    """Multigrid reduction in time over the layers, by the full approximation scheme.

    Source: Falgout, Friedhoff, Kolev, MacLachlan, Schroder, Parallel time integration with multigrid (2014).

    Args:
        coarsening: factor m between a level and the next coarser one; one number, or one for each coarsening.
        levels: number of levels, at most; fewer are used where the points run out (1: the exact chain).
        cycles: multigrid cycles per solve, at most 10 000; 0 is allowed, but for ``initial="constant"``.
        relaxation: "F", or "FCF" (one more sweep per cycle).
        coarse: "matched" (agrees with m fine steps to third order in H) or "rediscretized" (second order).
        samples: parts s of an interval, each with its own weights in the coarse step.
        passes: Picard passes p of the coarse step; None: 2 for one sample, else 3.
        coarse_weights: "mean" of the weights of a part, or "inject" those of its first layer.
        initial: first guess of the C-points: "coarse" (one coarse solve: nested iteration from the coarsest level up,
            with a cycle on each level between), "nested" (the same without these cycles: half the work on the coarse
            levels where there are more than one, and about a digit less), "tau" (one coarse solve with the defects τ
            of the last solution: a cycle at the cost of a coarse start), "warm" (the last solution), "constant".
        cycle_shape: "V" or "F".
        tol: stop as soon as the relative residual is at or below this value; None: always do all cycles.
        micro_batches: parts of the batch in which the chain of coarse steps on the coarsest level goes through the
            ranks, one behind the other (with too few points for two levels: the exact chain).
    """

    coarsening: int | tuple[int, ...] = 16
    levels: int = 2
    cycles: int = 1
    relaxation: Literal["F", "FCF"] = "F"
    coarse: Literal["matched", "rediscretized"] = "matched"
    samples: int = 1
    passes: int | None = None
    coarse_weights: Literal["mean", "inject"] = "mean"
    initial: Literal["coarse", "nested", "tau", "warm", "constant"] = "coarse"
    cycle_shape: Literal["V", "F"] = "V"
    tol: float | None = None
    micro_batches: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.coarsening, Iterable):  # a list, as configurations bring it
            object.__setattr__(self, "coarsening", tuple(self.coarsening))
        factors = self.coarsening if isinstance(self.coarsening, tuple) else (self.coarsening,)
        if not factors:
            raise InputError("coarsening: an empty list given, at least one factor needed")
        for m in factors:
            _whole("coarsening", m, 2)
        _whole("levels", self.levels, 1)
        if isinstance(self.coarsening, tuple) and len(factors) < self.levels - 1:
            given = f"{counted(len(factors), 'factor')} given for {self.levels} levels"
            raise InputError(f"coarsening: {given}, at least {self.levels - 1} needed")
        _whole("cycles", self.cycles, 0, MOST_CYCLES)
        _choice("relaxation", self.relaxation, ("F", "FCF"))
        _choice("coarse", self.coarse, ("matched", "rediscretized"))
        _whole("samples", self.samples, 1)
        if self.passes is not None:
            _whole("passes", self.passes, 1)
        _choice("coarse_weights", self.coarse_weights, ("mean", "inject"))
        _choice("initial", self.initial, ("coarse", "nested", "tau", "warm", "constant"))
        _choice("cycle_shape", self.cycle_shape, ("V", "F"))
        if self.cycles < self.least_cycles:
            raise InputError('cycles: 0 given with initial="constant", at least 1 allowed (or initial="coarse")')
        if self.coarse == "rediscretized":
            if self.samples != 1:
                raise InputError(f'samples: {self.samples} given with coarse="rediscretized", 1 allowed')
            if self.passes is not None:
                raise InputError(f'passes: {self.passes} given with coarse="rediscretized", none allowed')
        _whole("micro_batches", self.micro_batches, 1)
        number = isinstance(self.tol, float | int) and not isinstance(self.tol, bool)
        if self.tol is not None and not (number and 0 < self.tol < math.inf):
            raise InputError(f"tol: {shown(self.tol)} given, a positive number or none allowed")

    @property
    def least_cycles(self) -> int:
        """Smallest number of cycles that is allowed: from constant C-points at least one is needed."""
        return 1 if self.initial == "constant" else 0

    def with_cycles(self, cycles: int) -> "MGRIT":
        """The same with so many cycles."""
        return dataclasses.replace(self, cycles=cycles)

    def factor(self, level: int) -> int:
        """Coarsening factor from `level` to `level + 1`."""
        return self.coarsening[level] if isinstance(self.coarsening, tuple) else self.coarsening


SolverOptions = MGRIT | Serial
