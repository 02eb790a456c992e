"""The configuration of a training run: a frozen dataclass for each section, which validates itself.

The values come from four layers, each of which overrides the one before: the defaults here, a preset, ``--config``
files, the command line (see `lpnet.commandline`). An impossible value is an `InputError` that names the key, what was
given and what is allowed.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lpnet import dynamics, steppers
from lpnet.activations import ACTIVATIONS
from lpnet.choices import (
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
from lpnet.controls import Controls
from lpnet.data import DataOptions
from lpnet.dynamics.hamiltonian import FORMS
from lpnet.errors import InputError, counted
from lpnet.how import Adjoint, Store, how_of
from lpnet.multilevel import Multilevel, coarser
from lpnet.oneshot import TOLERANCE
from lpnet.optimizers import WHOLE_BATCH, Optimizer
from lpnet.options import MGRIT
from lpnet.sections import Control, OneShot, Regularizer, Run, Training

MOST_LAYERS = 1_000_000
"""More than any machine trains; beyond it a slip of the finger would end in a lack of memory."""

MOST_WIDTH = 100_000
"""The same of the features of a state, and of those between two matrices of a layer."""

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
        dynamics: f of one layer: dense, two_layer, antisymmetric, hamiltonian, double_symmetric,
            second_order.
        stepper: euler, rk4, ab3; verlet (for hamiltonian); leapfrog (for second_order); null: the first that fits.
        activation: tanh, relu, smooth_relu, gelu.
        init: initial weights: constant in the layer index, or random in each layer.
        opening: how features become a state: linear (a trained layer), pad (with zeros), auto (pad if there are as
            many features as the trunk is wide, else linear).
        controls: number of control points that all layers share, at most as many as layers; null: each layer has
            weights of its own.
        basis: of controls: constant, linear, or (cubic) spline in time. Default linear.
        store: what the adjoint finds of the states: all, cpoints (a part of the layers is run again when it is pulled
            back), or reverse (verlet and leapfrog: undone from the last state).
        gradient: discrete (the gradient of what is computed), or continuous (the adjoint equation, discretised on its
            own; euler only).
        gamma: of dense and antisymmetric: damping γ of σ((K − γI)y + b), σ((K − Kᵀ − γI)y + b), below 0 growth.
            Default 0.
        hidden: of two_layer, double_symmetric, second_order: width between the matrices. Default: that of the trunk.
        form: of hamiltonian: slides (−σ(Ky + b), σ(Kᵀz + b)), or package (K and Kᵀ exchanged). Default slides.
        start: of verlet and leapfrog: half (second order), or zero (z_0 = 0 stands for z half a step earlier). Default
            half.
    """

    layers: int = 128
    width: int = 8
    T: float = 5.0
    dynamics: str = "dense"
    stepper: str | None = None
    activation: str = "tanh"
    init: Literal["constant", "random"] = "constant"
    opening: Literal["auto", "linear", "pad"] = "auto"
    controls: int | None = None
    basis: Literal["constant", "linear", "spline"] | None = None
    store: Store = "all"
    gradient: Adjoint = "discrete"
    gamma: float | None = None
    hidden: int | None = None
    form: Literal["slides", "package"] | None = None
    start: Literal["half", "zero"] | None = None

    def __post_init__(self) -> None:
        for key in ("layers", "width", "T"):
            require(getattr(self, key) is not None, f"trunk.{key}", None, "a number")
        whole("trunk.layers", self.layers, 1)
        require(self.layers <= MOST_LAYERS, "trunk.layers", self.layers, f"at most {MOST_LAYERS}")
        for key in ("width", "hidden"):
            given = getattr(self, key)
            whole(f"trunk.{key}", given, 1)
            require(given is None or given <= MOST_WIDTH, f"trunk.{key}", given, f"at most {MOST_WIDTH}")
        positive("trunk.T", self.T)
        one_of("trunk.dynamics", self.dynamics, dynamics.REGISTRY)
        one_of("trunk.activation", self.activation, ACTIVATIONS)
        one_of("trunk.init", self.init, ("constant", "random"))
        one_of("trunk.opening", self.opening, ("auto", "linear", "pad"))
        if self.stepper is not None:
            one_of("trunk.stepper", self.stepper, steppers.REGISTRY)
            fitting = fitting_steppers(self.dynamics)
            require(self.stepper in fitting, "trunk.stepper", self.stepper, f"{', '.join(fitting)} for {self.dynamics}")
        whole("trunk.controls", self.controls, 1)
        allowed = f"at most {self.layers} for {counted(self.layers, 'layer')}"
        require(self.controls is None or self.controls <= self.layers, "trunk.controls", self.controls, allowed)
        if self.basis is not None:
            one_of("trunk.basis", self.basis, ("constant", "linear", "spline"))
            require(self.controls is not None, "trunk.basis", self.basis, "null without trunk.controls")
        try:
            how_of(steppers.REGISTRY[self.stepper_name](), self.store, self.gradient)
        except InputError as error:
            raise InputError(f"trunk.{error}") from None
        number("trunk.gamma", self.gamma, -math.inf)
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

    @property
    def control_grid(self) -> Controls | None:
        """The options of `lpnet.Controls`; None: each layer has weights of its own."""
        return None if self.controls is None else Controls(self.controls, self.basis or Controls.basis)

    def resolved(self) -> "Trunk":
        """With the stepper, and what was left to its and the dynamics' defaults, written out."""
        if self.controls is not None and self.basis is None:
            return dataclasses.replace(self, basis=Controls.basis).resolved()
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
    multilevel: Multilevel = field(default_factory=Multilevel)
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

        name, batch = self.optimizer.name, self.training.batch
        allowed = f"null with optimizer.name {name}, which takes all examples in each step,"
        require(batch is None or name not in WHOLE_BATCH, "training.batch", batch, allowed)
        if self.training.method == "simultaneous":
            self.solver.check_simultaneous()
            require(not self.solver.auto, "solver.auto", True, "false with training.method simultaneous")
        coarsest, points = self.multilevel.layers(self.trunk.layers)[0], self.trunk.controls
        allowed = f"at most {coarsest}, the layers of the coarsest of {self.multilevel.levels} levels,"
        require(points is None or points <= coarsest, "trunk.controls", points, allowed)
        self.at_layers(coarsest)

    def at_layers(self, layers: int) -> "Config":
        """The same of a network with so many layers, such as that of a coarser level, whose solvers are `coarser`.

        Raises:
            InputError: the trunk cannot have so few.
        """
        if layers == self.trunk.layers:
            return self
        trunk = dataclasses.replace(self.trunk, layers=layers)
        solver = self.solver.with_levels(lambda options: coarser(options, max(1, self.trunk.layers // layers)))
        return dataclasses.replace(self, trunk=trunk, solver=solver, multilevel=Multilevel())

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
