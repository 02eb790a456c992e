"""The sections of the configuration whose keys depend on a choice: solver (kind), schedule (name).

Keys belong to a choice: ``cycles`` to ``kind: mgrit``, ``power`` to ``name: polynomial``. They are null where nobody
gave them, which means the default of the choice (`resolved` writes it out), and they are an error with another choice.
"""

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lpnet.errors import InputError, shown
from lpnet.options import MGRIT, Serial, SolverOptions

SCHEDULES: dict[str, dict[str, float]] = {
    "constant": {},
    "linear": {"final": 0.0},
    "cosine": {"final": 0.0},
    "polynomial": {"power": 1.0},
    "exponential": {"gamma": 0.99},
    "step": {"step_size": 100, "gamma": 0.1},
    "onecycle": {"pct_start": 0.3},
}
"""Name of a schedule -> the options that belong to it, with their defaults."""

SOLVERS: dict[str, type[MGRIT] | type[Serial]] = {"mgrit": MGRIT, "serial": Serial}


LARGEST = 1e15
"""Largest number of the configuration: float32 holds products of two such. Beyond it there are slips of the finger."""


def require(ok: bool, key: str, given: object, allowed: str) -> None:
    """Raise `InputError` in the form that all keys share, unless `ok`."""
    if not ok:
        raise InputError(f"{key}: {shown(given)} given, {allowed} allowed")


def whole(key: str, given: object, least: int) -> None:
    """Require a whole number of at least `least`; None passes."""
    ok = isinstance(given, int) and not isinstance(given, bool) and given >= least
    require(ok or given is None, key, given, f"a whole number of at least {least}")


def number(key: str, given: object, low: float = 0.0, high: float = math.inf) -> None:
    """Require a finite number in [low, high], of no more than `LARGEST` in size; None passes."""
    finite = isinstance(given, int | float) and not isinstance(given, bool) and math.isfinite(given)
    ok = finite and low <= given <= high  # type: ignore[operator]
    allowed = "a finite number" + (f" of at least {low:g}" if low > -math.inf else "")
    require(ok or given is None, key, given, allowed + (f" and at most {high:g}" if high < math.inf else ""))
    _no_slip(key, given)


def positive(key: str, given: object) -> None:
    """Require a finite number above 0, at most `LARGEST`; None passes."""
    ok = isinstance(given, int | float) and not isinstance(given, bool) and 0 < given < math.inf
    require(ok or given is None, key, given, "a finite number above 0")
    _no_slip(key, given)


def _no_slip(key: str, given: Any) -> None:
    require(given is None or abs(given) <= LARGEST, key, given, f"at most {LARGEST:g} in size")


def one_of(key: str, given: object, allowed: Iterable[str], why: str = "") -> None:
    """Require one of some names."""
    names = tuple(allowed)
    require(given in names, key, given, f"one of {', '.join(names)}{why}")


def owned(section: str, choice: str, values: Mapping[str, Any], accepted: Mapping[str, Any]) -> None:
    """Require that keys which do not belong to the choice are null."""
    for key, value in values.items():
        if value is not None and key not in accepted:
            own = f"only {', '.join(accepted)}" if accepted else "no option of this kind"
            own += " allowed with it"
            raise InputError(f"{section}.{key}: {shown(value)} given with {choice}, {own}")


def defaults_of(kind: Callable[..., Any], names: Iterable[str]) -> dict[str, Any]:
    """Those of the names that are parameters of this class or function, with their defaults."""
    parameters = inspect.signature(kind).parameters
    return {name: parameters[name].default for name in names if name in parameters}


@dataclass(frozen=True)
class Solver:
    """How one direction is solved: the options of `lpnet.MGRIT` or of `lpnet.Serial`; null: the default of the kind.

    Args:
        kind: mgrit (iterative, parallel over the layers) or serial (exact, a pipeline through the ranks).
        coarsening: mgrit: factor m between a level and the next; one number, or one for each coarsening. Default 16.
        levels: mgrit: number of levels, at most. Default 2.
        cycles: mgrit: multigrid cycles per solve; 0 is allowed with the initial guess coarse. Default 1.
        relaxation: mgrit: F, or FCF (one more sweep a cycle). Default F.
        coarse: mgrit: coarse propagator, matched (third order in H) or rediscretized (second). Default matched.
        samples: mgrit: parts of an interval with weights of their own in the coarse step. Default 1.
        passes: mgrit: Picard passes of the coarse step. Default 2 for one sample, else 3.
        coarse_weights: mgrit: the mean of the weights of a part, or inject those of its first layer. Default mean.
        initial: mgrit: first guess: coarse (one coarse solve), nested (one without cycles on the coarse levels), tau
            (one with the defects of the last solution), warm (the last solution), constant. Default coarse.
        cycle_shape: mgrit: V or F. Default V.
        tol: mgrit: stop at this relative residual. Default: always do all cycles.
        micro_batches: parts of the batch in which the exact chain, or that of the coarsest level, goes through the
            ranks as a pipeline. Default 1.
    """

    kind: Literal["mgrit", "serial"] = "mgrit"
    coarsening: int | tuple[int, ...] | None = None
    levels: int | None = None
    cycles: int | None = None
    relaxation: Literal["F", "FCF"] | None = None
    coarse: Literal["matched", "rediscretized"] | None = None
    samples: int | None = None
    passes: int | None = None
    coarse_weights: Literal["mean", "inject"] | None = None
    initial: Literal["coarse", "nested", "tau", "warm", "constant"] | None = None
    cycle_shape: Literal["V", "F"] | None = None
    tol: float | None = None
    micro_batches: int | None = None

    def given(self) -> dict[str, Any]:
        """The options that are not null, without the kind."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k != "kind" and v is not None}

    def options(self, key: str = "solver") -> SolverOptions:
        """The solver's options object; `key` is how errors name this section."""
        one_of(f"{key}.kind", self.kind, SOLVERS)
        owned(key, f"kind {self.kind}", self.given(), solver_options(self.kind))
        try:
            return SOLVERS[self.kind](**self.given())
        except InputError as error:
            raise InputError(f"{key}.{error}") from None

    def resolved(self) -> "Solver":
        """With the numbers of the kind written out."""
        return Solver.of(self.options())

    @classmethod
    def of(cls, options: SolverOptions) -> "Solver":
        """The section that describes a solver's options object."""
        kind = next(name for name, known in SOLVERS.items() if isinstance(options, known))
        return cls(kind=kind, **dataclasses.asdict(options))  # type: ignore[arg-type]


def solver_options(kind: str) -> dict[str, Any]:
    """Options that belong to this kind of solver, with their defaults."""
    return {f.name: f.default for f in dataclasses.fields(SOLVERS[kind])}


@dataclass(frozen=True)
class Solvers:
    """The solvers of the two directions.

    Args:
        auto: choose both by the measured costs of this machine, for the gradient error control.gradient_tol (0.05 if
            null) and the number of ranks of the run; the choice replaces both in the config.yaml of the run.
        forward: of the states.
        adjoint: of the gradient.
    """

    auto: bool = False
    forward: Solver = field(default_factory=Solver)
    adjoint: Solver = field(default_factory=Solver)

    def __post_init__(self) -> None:
        require(isinstance(self.auto, bool), "solver.auto", self.auto, "true or false")
        self.forward.options("solver.forward")
        self.adjoint.options("solver.adjoint")

    def check_simultaneous(self) -> None:
        """Require what simultaneous training needs: MGRIT, started from earlier solves."""
        for key in ("forward", "adjoint"):
            solver: Solver = getattr(self, key)
            why = "with training.method simultaneous"
            require(solver.kind == "mgrit", f"solver.{key}.kind", solver.kind, f"mgrit {why}")
            ok = solver.initial in (None, "tau")
            require(ok, f"solver.{key}.initial", solver.initial, f"tau {why}")

    def with_levels(self, changed: Callable[[MGRIT], MGRIT]) -> "Solvers":
        """With coarsening, levels and samples as `changed` makes them of the solvers' options; the rest as given."""

        def one(key: str) -> Solver:
            solver: Solver = getattr(self, key)
            options = solver.options(f"solver.{key}")
            if not isinstance(options, MGRIT):
                return solver
            new = changed(options)
            return replace(solver, coarsening=new.coarsening, levels=new.levels, samples=new.samples)

        return Solvers(self.auto, one("forward"), one("adjoint"))

    def simultaneous(self) -> "Solvers":
        """With what simultaneous training needs where nothing is given: one sweep each way, started from τ."""
        both = (self.forward, self.adjoint)
        done = (replace(s, initial="tau", cycles=0 if s.cycles is None else s.cycles) for s in both)
        return Solvers(self.auto, *done)

    def resolved(self) -> "Solvers":
        """With the numbers of both written out."""
        return Solvers(self.auto, self.forward.resolved(), self.adjoint.resolved())


@dataclass(frozen=True)
class Schedule:
    """The learning rate over the steps, by torch.optim.lr_scheduler; null: the default of the schedule.

    Args:
        name: constant, linear, cosine, polynomial, exponential, step, onecycle.
        warmup: steps, at most half of all, over which the learning rate first grows linearly (not for onecycle).
        final: linear, cosine: last learning rate as a fraction of the first. Default 0.
        power: polynomial: exponent. Default 1.
        gamma: exponential: factor of each step, default 0.99; step: factor every step_size steps, default 0.1.
        step_size: step: steps between two reductions. Default 100.
        pct_start: onecycle: fraction of the steps over which the learning rate grows. Default 0.3.
    """

    name: str = "constant"
    warmup: int = 0
    final: float | None = None
    power: float | None = None
    gamma: float | None = None
    step_size: int | None = None
    pct_start: float | None = None

    def __post_init__(self) -> None:
        one_of("schedule.name", self.name, SCHEDULES)
        require(self.warmup is not None, "schedule.warmup", self.warmup, "a whole number of at least 0")
        whole("schedule.warmup", self.warmup, 0)
        require(self.warmup == 0 or self.name != "onecycle", "schedule.warmup", self.warmup, "0 for onecycle")
        number("schedule.final", self.final, 0.0, 1.0)
        number("schedule.pct_start", self.pct_start, 0.0, 1.0)
        positive("schedule.power", self.power)
        positive("schedule.gamma", self.gamma)
        whole("schedule.step_size", self.step_size, 1)
        owned("schedule", f"name {self.name}", self.given(), SCHEDULES[self.name])

    def given(self) -> dict[str, Any]:
        """The options that belong to a name and are not null."""
        values = dataclasses.asdict(self)
        return {k: v for k, v in values.items() if k not in ("name", "warmup") and v is not None}

    def resolved(self) -> "Schedule":
        """With the defaults of the schedule written out."""
        return dataclasses.replace(self, **{**SCHEDULES[self.name], **self.given()})
