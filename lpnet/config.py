"""The configuration of a training run: a frozen dataclass for each section, which validates itself.

The values come from four layers, each of which overrides the one before: the defaults here, a preset, ``--config``
files, the command line (see `lpnet.commandline`). An impossible value is an `InputError` that names the key, what was
given and what is allowed.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from lpnet import dynamics, steppers
from lpnet.activations import ACTIVATIONS
from lpnet.choices import (
    Optimizer,
    Schedule,
    Solvers,
    defaults_of,
    number,
    one_of,
    owned,
    positive,
    require,
    whole,
)
from lpnet.control import Adaptive
from lpnet.data import DataOptions
from lpnet.dynamics.hamiltonian import FORMS
from lpnet.errors import InputError
from lpnet.oneshot import TOLERANCE
from lpnet.options import MGRIT
from lpnet.recall import KINDS, WarmStates

DTYPES = {"float32": torch.float32, "float64": torch.float64}

MOST_LAYERS = 1_000_000
"""More than any machine trains; beyond it a slip of the finger would end in a lack of memory."""

LAYER_KEYS = ("gamma", "hidden", "form")
"""Keys of the trunk that belong to some dynamics only,"""

STEPPER_KEYS = ("start",)
"""and those that belong to some stepper only."""


@dataclass(frozen=True)
class Trunk:
    """The residual network between opening layer and classifier, y_{j+1} = y_j + h f(y_j, θ_j) with h = T/N.

    Args:
        layers: number N of layers.
        width: number of features of a state.
        T: final time.
        dynamics: f of one layer: dense, two_layer, antisymmetric, hamiltonian, double_symmetric.
        stepper: euler, or verlet (for hamiltonian); null: the one that fits the dynamics.
        activation: tanh, relu, smooth_relu, gelu.
        init: initial weights: constant in the layer index, or random in each layer.
        opening: how features become a state: linear (a trained layer), pad (with zeros), auto (pad if there are as
            many features as the trunk is wide, else linear).
        gamma: of dense and antisymmetric: damping γ of σ((K − γI)y + b), σ((K − Kᵀ − γI)y + b). Default 0.
        hidden: of two_layer and double_symmetric: width between the two matrices. Default: that of the trunk.
        form: of hamiltonian: slides (−σ(Ky + b), σ(Kᵀz + b)), or package (K and Kᵀ exchanged). Default slides.
        start: of verlet: half (second order), or zero (z_0 = 0 stands for z half a step earlier). Default half.
    """

    layers: int = 128
    width: int = 8
    T: float = 5.0
    dynamics: str = "dense"
    stepper: str | None = None
    activation: str = "tanh"
    init: Literal["constant", "random"] = "constant"
    opening: Literal["auto", "linear", "pad"] = "auto"
    gamma: float | None = None
    hidden: int | None = None
    form: Literal["slides", "package"] | None = None
    start: Literal["half", "zero"] | None = None

    def __post_init__(self) -> None:
        for key in ("layers", "width", "T"):
            require(getattr(self, key) is not None, f"trunk.{key}", None, "a number")
        whole("trunk.layers", self.layers, 1)
        require(self.layers <= MOST_LAYERS, "trunk.layers", self.layers, f"at most {MOST_LAYERS}")
        whole("trunk.width", self.width, 1)
        positive("trunk.T", self.T)
        one_of("trunk.dynamics", self.dynamics, dynamics.REGISTRY)
        one_of("trunk.activation", self.activation, ACTIVATIONS)
        one_of("trunk.init", self.init, ("constant", "random"))
        one_of("trunk.opening", self.opening, ("auto", "linear", "pad"))
        if self.stepper is not None:
            one_of("trunk.stepper", self.stepper, steppers.REGISTRY)
            fitting = fitting_steppers(self.dynamics)
            require(self.stepper in fitting, "trunk.stepper", self.stepper, f"{', '.join(fitting)} for {self.dynamics}")
        number("trunk.gamma", self.gamma)
        whole("trunk.hidden", self.hidden, 1)
        if self.form is not None:
            one_of("trunk.form", self.form, FORMS)
        if self.start is not None:
            one_of("trunk.start", self.start, ("half", "zero"))
        values = {key: getattr(self, key) for key in LAYER_KEYS + STEPPER_KEYS}
        owned("trunk", f"dynamics {self.dynamics}, stepper {self.stepper_name}", values, self.own_options)

    @property
    def stepper_name(self) -> str:
        """The stepper, also where none was given."""
        return self.stepper or fitting_steppers(self.dynamics)[0]

    @property
    def own_options(self) -> dict[str, Any]:
        """The keys that belong to this dynamics and this stepper, with their defaults."""
        return trunk_options(self.dynamics, self.stepper_name)

    def resolved(self) -> "Trunk":
        """With the stepper, and what was left to its and the dynamics' defaults, written out."""
        missing = {k: v for k, v in self.own_options.items() if getattr(self, k) is None}
        return dataclasses.replace(self, stepper=self.stepper_name, **missing)


def fitting_steppers(name: str) -> tuple[str, ...]:
    """Names of the steppers that use just the terms which the dynamics of this name has, the usual one first."""
    terms = dynamics.REGISTRY[name].terms
    return tuple(key for key, stepper in steppers.REGISTRY.items() if set(stepper.terms) == set(terms))


def trunk_options(dynamics_name: str, stepper_name: str) -> dict[str, Any]:
    """The keys of the trunk that belong to this dynamics and this stepper, with their defaults."""
    kinds: tuple[type, type] = (dynamics.REGISTRY[dynamics_name], steppers.REGISTRY[stepper_name])
    return defaults_of(kinds[0], LAYER_KEYS) | defaults_of(kinds[1], STEPPER_KEYS)


@dataclass(frozen=True)
class Regularizer:
    """Weights of the terms that are added to the loss.

    Args:
        tikhonov: of the weights of all layers.
        ddt: of the derivative of the weights along the layers, which keeps them smooth in the layer index.
        classifier: of the weights of the classifier.
    """

    tikhonov: float = 0.0
    ddt: float = 0.0
    classifier: float = 0.0

    def __post_init__(self) -> None:
        for key, value in dataclasses.asdict(self).items():
            require(value is not None, f"regularizer.{key}", value, "a number")
            number(f"regularizer.{key}", value)


@dataclass(frozen=True)
class Training:
    """What is done, and for how long.

    Args:
        method: gradient (forward and adjoint solves in each step of an optimizer), or simultaneous (one-shot: the
            weights are updated while states and adjoints converge).
        steps: number of updates; null: epochs are given.
        epochs: number of passes over the training examples, instead of steps.
        batch: examples of a mini-batch; null: all of them in each step.
        validate_every: steps between two exact evaluations (there is always one at the end); null: only that one.
    """

    method: Literal["gradient", "simultaneous"] = "gradient"
    steps: int | None = 200
    epochs: int | None = None
    batch: int | None = None
    validate_every: int | None = 50

    def __post_init__(self) -> None:
        one_of("training.method", self.method, ("gradient", "simultaneous"))
        for key in ("steps", "epochs", "batch", "validate_every"):
            whole(f"training.{key}", getattr(self, key), 1)
        if self.steps is not None and self.epochs is not None:
            given = f"{self.steps} steps and {self.epochs} epochs"
            raise InputError(f"training.steps, training.epochs: {given} given, only one of the two allowed")
        if self.steps is None and self.epochs is None:
            raise InputError("training.steps, training.epochs: null given for both, a number for one of the two needed")

    def total_steps(self, examples: int) -> int:
        """Number of updates for so many training examples."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * -(-examples // (self.batch or examples))


@dataclass(frozen=True)
class Control:
    """Error control of the gradient.

    Args:
        gradient_tol: largest relative error of the gradient, above 0 and below 1; null: no control with method
            gradient, 0.2 with method simultaneous.
        every: steps between two checks.
        plan_ranks: number of ranks for which cycles and the exact chain are weighed against each other, whatever the
            number of ranks of the run.
    """

    gradient_tol: float | None = None
    every: int = 50
    plan_ranks: int = 32

    def __post_init__(self) -> None:
        tol = self.gradient_tol
        ok = isinstance(tol, int | float) and not isinstance(tol, bool) and 0 < tol < 1
        require(ok or tol is None, "control.gradient_tol", tol, "a number above 0 and below 1")
        for key in ("every", "plan_ranks"):
            require(getattr(self, key) is not None, f"control.{key}", None, "a whole number of at least 1")
            whole(f"control.{key}", getattr(self, key), 1)

    def options(self) -> Adaptive | None:
        """The options of `lpnet.Adaptive`; None: no control."""
        return None if self.gradient_tol is None else Adaptive(self.gradient_tol, self.every, self.plan_ranks)


@dataclass(frozen=True)
class OneShot:
    """What method simultaneous keeps, and when it stops.

    Args:
        warm: what mini-batches start from: examples (the defects of each example), class (their means over a class),
            none (coarse starts), auto (what measures best).
        limit_mib: most memory for the defects of all examples of mini-batches on one rank, in MiB.
        scratch: folder for an HDF5 file that holds them instead; null: in memory.
        tol: stop as soon as the residuals of state and adjoint, and the gradient relative to the first, are at most
            this, above 0 and below 1; null: do all steps.
    """

    warm: Literal["auto", "examples", "class", "none"] = "auto"
    limit_mib: float = 1024.0
    scratch: str | None = None
    tol: float | None = None

    def __post_init__(self) -> None:
        one_of("oneshot.warm", self.warm, KINDS)
        require(self.limit_mib is not None, "oneshot.limit_mib", None, "a finite number above 0")
        positive("oneshot.limit_mib", self.limit_mib)
        ok = isinstance(self.tol, int | float) and not isinstance(self.tol, bool) and 0 < self.tol < 1
        require(ok or self.tol is None, "oneshot.tol", self.tol, "a number above 0 and below 1")

    def options(self, examples: int | None) -> WarmStates:
        """The options of `lpnet.OneShot` for so many examples; None: no mini-batches."""
        return WarmStates(self.warm, examples, self.limit_mib, self.scratch)


@dataclass(frozen=True)
class Run:
    """Where and how the run is done.

    Args:
        dir: folder for the results, new or empty; null: a new one, runs/PRESET-TIME.
        seed: seed of weights, data and the order of examples.
        device: cpu or cuda (cuda:1, …).
        dtype: float32 or float64.
        deterministic: use deterministic algorithms of torch only.
        threads: threads per rank; null: OMP_NUM_THREADS if set, else the cores divided by the ranks of the machine.
        progress: show a progress bar; null: if standard error is a terminal.
    """

    dir: str | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["float32", "float64"] = "float32"
    deterministic: bool = False
    threads: int | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        require(self.dir is None or bool(self.dir.strip()), "run.dir", self.dir, "the name of a folder")
        ok = isinstance(self.seed, int) and not isinstance(self.seed, bool) and 0 <= self.seed < 2**63
        require(ok, "run.seed", self.seed, "a whole number of at least 0 and below 2^63")
        one_of("run.dtype", self.dtype, DTYPES)
        whole("run.threads", self.threads, 1)
        _check_device(self.device)


def _check_device(name: str) -> None:
    devices = ("cpu", "cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count())))
    available = devices if torch.cuda.is_available() else ("cpu",)
    one_of("run.device", name, available, " on this machine")


@dataclass(frozen=True)
class Config:
    """Everything that a run depends on.

    Raises:
        InputError: a value is impossible, alone or together with others; the message names the key.
    """

    preset: str = "peaks"
    data: DataOptions = field(default_factory=DataOptions)
    trunk: Trunk = field(default_factory=Trunk)
    solver: Solvers = field(default_factory=Solvers)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    regularizer: Regularizer = field(default_factory=Regularizer)
    training: Training = field(default_factory=Training)
    control: Control = field(default_factory=Control)
    oneshot: OneShot = field(default_factory=OneShot)
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        stepper = steppers.REGISTRY[self.trunk.stepper_name]()
        for key in ("forward", "adjoint"):
            options = getattr(self.solver, key).options(f"solver.{key}")
            if isinstance(options, MGRIT):
                try:
                    stepper.check(options)
                except InputError as error:
                    raise InputError(f"solver.{key}.{error}") from None

        if self.training.method == "simultaneous":
            self.solver.check_simultaneous()
            require(not self.solver.auto, "solver.auto", True, "false with training.method simultaneous")

    def resolved(self) -> "Config":
        """With the numbers that the choices imply written out."""
        if self.training.method == "simultaneous":
            tol = self.control.gradient_tol
            control = dataclasses.replace(self.control, gradient_tol=TOLERANCE if tol is None else tol)
            return dataclasses.replace(self, solver=self.solver.simultaneous(), control=control)._resolved()
        return self._resolved()

    def _resolved(self) -> "Config":
        names = ("trunk", "solver", "optimizer", "schedule")
        return dataclasses.replace(self, **{name: getattr(self, name).resolved() for name in names})


def as_dict(config: Config) -> dict[str, Any]:
    """The configuration as nested dicts of plain values, which YAML and JSON can hold."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple) else value

    return {k: plain(v) for k, v in dataclasses.asdict(config).items()}
