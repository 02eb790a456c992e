"""`LayerParallel`: a trunk of N layers as an `nn.Module`, with the layers spread over the ranks.

    x_{j+1} = Φ_j(x_j),  j = 0, …, N − 1,        z_j = (∂Φ_j/∂x)ᵀ z_{j+1},    g_j = (∂Φ_j/∂θ)ᵀ z_{j+1}

Input and output are replicated: every rank passes the same batch and gets the same result, so losses and user code need
no rank branches. Weights are stacked on a leading layer axis, each rank holding those of its slab; those of a control
grid (`lpnet.Controls`) on an axis of control points, which every rank holds.
"""

import copy
from collections import OrderedDict
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from lpnet import ambient, devices, plain
from lpnet.control import Adaptive, Controller
from lpnet.controls import Controls, grid_of
from lpnet.cost import slab_unit
from lpnet.engine import Engine, Prepared
from lpnet.errors import InputError, shown
from lpnet.given import check, check_solvers, warn_idle
from lpnet.gradient import Propagate
from lpnet.how import Adjoint, Store, how_of
from lpnet.linearize import Linearization
from lpnet.memory import LastSolve, Memory
from lpnet.options import MGRIT, SolverOptions
from lpnet.phases import phased
from lpnet.slab import Slab, as_comm
from lpnet.stability import Norm, Outlook, Watch, outlook
from lpnet.stack import Stack, seed_of
from lpnet.step import Infos, Repeat, Trial
from lpnet.steppers import Euler, Stepper
from lpnet.weights import GRID, Place, Rows, check_dtype, check_rows, find, note

_GIVEN = ("layers", "T", "h", "seed", "stepper", "store", "gradient", "controls", "grid", "comm")
_FIXED = dict.fromkeys(_GIVEN, "only a new LayerParallel")
_FIXED |= dict.fromkeys(("forward_solver", "adjoint_solver", "control"), "trunk.steer(forward, adjoint, control)")


class LayerParallel(Rows):
    """N layers y_{j+1} = Φ_j(y_j) of one dynamics, in parallel over the layers.

    Args:
        dynamics: one layer, `nn.Module` with ``forward(y) -> dy/dt`` (a `lpnet.dynamics` class or your own). A copy of
            it as it is now is what all layers evaluate, each with weights of its own and all with its buffers.
        layers: N.
        T: final time; the layer step is h = T/N.
        stepper: `steppers.Euler()` by default.
        forward: solver of the forward propagation, `MGRIT` or `Serial`.
        adjoint: solver of the adjoint.
        seed: of the initial weights; with torch's generator, whose numbers tell calls apart, of dropout masks.
        comm: an mpi4py communicator, a `slab.Comm`, or None: the world under an MPI launcher, else serial.
        init: initial weights "constant" in the layer index, or "random".
        dtype, device: of the weights; float32 or float64; "cuda" is a GPU for each rank of a node, in turn.
        gradient: "discrete" (the adjoint of the discretisation: the gradient of what is computed) or "continuous"
            (the adjoint equation discretised on its own, whose gradient differs from it by O(h); Euler only).
        store: what the adjoint finds of the states: "all", "cpoints" (a segment is run again when it is pulled back)
            or "reverse" (reversible steppers undo their steps; with `Serial` memory does not depend on N).
        controls: `lpnet.Controls`, a control grid coarser than the layers; None: each layer has weights of its own.
        control: `lpnet.Adaptive` chooses the cycles of training steps; None: the solvers as they are.

    Attributes:
        layers, T, h, seed, stepper, store, gradient, controls: as given, and h = T/N; fixed.
        forward_solver, adjoint_solver, control: as given, or by the last `steer`, which alone changes them.
        comm: the ranks, a `slab.Comm`; fixed.
        grid: how the weights of layers follow from the parameters, and which of its rows this rank holds; fixed.
        local_layers, theta: this rank's layers, and its parameters by name.
        info: what the last solves did: residuals, cycles, error control; see `lpnet.step.Infos`.
        exact: True for the exact chain whatever the solvers are; `lpnet.exact` sets it for a while.
        memory: what solves that start "warm" or from "tau" find of earlier ones; ``memory.clear()`` forgets it.

    Shapes: (batch, *features) to the same; the same on every rank.

    Raises:
        InputError: for values or combinations that are not allowed, also where one of the fixed attributes is
            assigned, or a parameter of another shape or type in the place of one of `theta`.
    """

    forward_solver: SolverOptions
    adjoint_solver: SolverOptions
    control: Adaptive | None

    def __init__(
        self,
        dynamics: nn.Module,
        layers: int,
        T: float,
        stepper: Stepper | None = None,
        forward: SolverOptions | None = None,
        adjoint: SolverOptions | None = None,
        seed: int = 0,
        comm: Any = None,
        init: Literal["constant", "random"] = "constant",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        gradient: Adjoint = "discrete",
        store: Store = "all",
        control: Adaptive | None = None,
        controls: Controls | None = None,
    ) -> None:
        super().__init__()
        self.stepper = stepper if stepper is not None else Euler()
        if not isinstance(self.stepper, Stepper):
            raise InputError(f"stepper: {stepper!r} given, an object such as lpnet.steppers.Euler() or None allowed")
        how = how_of(self.stepper, store, gradient)
        self.store, self.gradient = store, gradient
        forward, adjoint = forward if forward is not None else MGRIT(), adjoint if adjoint is not None else MGRIT()
        check(layers, T, seed, init)
        check_solvers(forward, adjoint, control)
        self.layers, self.T, self.seed, self.h = int(layers), float(T), seed, float(T) / int(layers)
        self.comm = as_comm(comm)
        self.exact = False
        self.info = Infos()
        dtype = dtype if dtype is not None else torch.get_default_dtype()
        if controls is not None and not isinstance(controls, Controls):
            raise InputError(f"controls: {controls!r} given, an lpnet.Controls or None allowed")
        check_dtype(dtype)
        device = devices.own(device, self.comm)
        self._stack = Stack(dynamics, self.stepper)
        self._stack.module.to(device=device, dtype=dtype)
        self._slab = Slab(layers, self.comm, slab_unit(layers, self.comm.size, forward, adjoint))
        self.controls, self.grid = controls, grid_of(controls, self._slab, self.T)
        self._engine = Engine(self.stepper, self.h, self._slab, how)
        warn_idle(layers, self.comm, forward, adjoint)
        self.memory: Memory
        self.steer(forward, adjoint, control)
        self._drawn, self._watch = 0, Watch()
        self._names: list[str] = []
        self._add_weights(init)
        self._stack.share_buffers(self)
        self.register_load_state_dict_post_hook(_retag)

    def _add_weights(self, init: str) -> None:
        self._stack.agree(self.comm)
        one = dict(self._stack.module.named_parameters())
        for name, value in self._stack.initial(init, self.seed, self.grid.rows).items():
            parameter = nn.Parameter(value, requires_grad=one[name].requires_grad)
            self._take(name, parameter, Place(self.grid, self.comm))
            self._names.append(name)

    def _tag(self) -> None:
        self._stack.pool.forget()  # of parameters that may be others now
        for parameter in self.theta.values():
            Place(self.grid, self.comm).mark(parameter)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _FIXED and name in self.__dict__:
            raise InputError(f"{name}: {shown(value)} given to a trunk that is made, {_FIXED[name]} allowed")
        super().__setattr__(name, value)

    def steer(self, forward: SolverOptions, adjoint: SolverOptions, control: Adaptive | None) -> None:
        """From now on solve by these options, under this control; what was learnt before is forgotten.

        To be called with the same on every rank.

        Raises:
            InputError: options that the stepper cannot honour, or a `tol` under control, which decides on the cycles;
                the trunk then stays as it was.
        """
        check_solvers(forward, adjoint, control)
        for options in (forward, adjoint):
            if isinstance(options, MGRIT):
                self._engine.check(options)
                if control is not None and options.tol is not None:
                    raise InputError(f"tol: {options.tol!r} given with control, which decides on cycles, none allowed")
        self.memory = LastSolve()
        self._last: Trial | None = None
        vars(self).update(forward_solver=forward, adjoint_solver=adjoint, control=control)
        self._controller: Controller | None = None
        self._again: Repeat | None = None  # a step is being repeated
        self._calls_left: int | None = None  # a number while `controlled` does the checks
        if control is not None:
            self._controller = Controller(control, self.stepper, self.layers, forward, adjoint)

    @property
    def local_layers(self) -> range:
        """This rank's layers."""
        return range(self._slab.lo, self._slab.hi)

    @property
    def theta(self) -> dict[str, nn.Parameter]:
        """This rank's parameters, name -> (n, ...); with a control grid its points, name -> (C, ...), on every rank."""
        return {name: find(self, name) for name in self._names}

    def layer_weights(self) -> dict[str, Tensor]:
        """Weights of this rank's layers, name -> (n, ...), detached."""
        return self.grid.expand(self.theta)

    def forward(self, y: Tensor) -> Tensor:
        """y_N from y_0, (batch, *features), the same on all ranks; collective.

        Raises:
            InputError: an input of another form or type than the layers take; a module of one layer that changes its
                shape, its input or its buffers; random layers with different `micro_batches` forward and adjoint.
        """
        y = self._taken(y)
        theta = self.theta
        tracked = torch.is_grad_enabled() and (y.requires_grad or any(p.requires_grad for p in theta.values()))
        return Propagate.apply(self, tracked, y, *theta.values())

    def linearize(self, y: Tensor) -> Linearization:
        """y_N at y_0 = y, and products with its Jacobian (in y and the weights) and the transpose; collective.

        Raises:
            InputError: as `forward`; ``gradient="continuous"``.
        """
        return Linearization(self, self._taken(y))

    def _taken(self, y: Tensor) -> Tensor:
        """The input of a call, checked, of the weights' type where autocast has made it another."""
        ambient.refuse_transforms()
        y = ambient.uncast(y, next(self._stack.module.parameters()).dtype)
        self._stack.check_input(y)
        return y

    @phased("weights")
    def _prepare(self, y: Tensor, copied: bool = False) -> Prepared:
        """The weights ready to run; `copied`: whatever becomes of the parameters later.

        Made anew at every call: a change of the weights cannot be told reliably (``p.data``), and this is small work.
        """
        theta = self.layer_weights()
        if copied:
            theta = {name: t.clone() for name, t in theta.items()}
        self._watch.look(partial(self._outlook, theta), self.comm.rank, self.store == "reverse")
        self._stack.module.train(self.training)
        self._stack.check_module(y)
        if not self._stack.is_random:
            return self._engine.prepare(theta, lambda t, layers: self._stack.fields(t, batch=len(y)))
        if self.forward_solver.micro_batches != self.adjoint_solver.micro_batches:
            raise InputError("dynamics: random layers (dropout) need the same micro_batches forward and adjoint")
        key = (self.seed, self._number())
        return self._engine.prepare(theta, lambda t, layers: self._stack.fields(t, [seed_of(*key, j) for j in layers]))

    def _number(self) -> int:
        """The number of a call, which its masks come from: drawn by all ranks, so that their generators stay in step.

        Torch brings its generator back for what it evaluates again, and so brings back the masks. A step that is
        repeated has those that it had; it draws all the same, for what is random behind the trunk. Collective.
        """
        drawn = torch.randint(1, 2**62, (1,), device="cpu")
        if self._again is None:
            self._drawn = int(self.comm.bcast_(drawn, 0))
        return self._drawn

    def _outlook(self, theta: dict[str, Tensor], norm: Norm) -> Outlook | None:
        return outlook(self._stack.module, theta, self.stepper, self.h, self._slab, norm)

    def gather_state_dict(self) -> dict[str, Tensor]:
        """The weights of all layers, name -> (N, ...), or the control points, on every rank; collective.

        Buffers of a user's layer, which all layers share, are with them as they are. Like `state_dict` it notes in its
        ``_metadata`` which of the two, so that no other grid takes it for its own; a plain dict of the same tensors
        does not say.
        """
        whole: OrderedDict[str, Tensor] = OrderedDict((n, self.grid.gather(p)) for n, p in self.theta.items())
        whole.update((name, b.clone()) for name, b in self.state_dict().items() if name not in whole)
        noted = note(self.grid, range(self.grid.count))
        whole._metadata = {"": {"version": self._version, **noted}}  # type: ignore[attr-defined]
        return whole

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if hasattr(destination, "_metadata"):
            destination._metadata.setdefault(prefix[:-1], {}).update(note(self.grid, self.grid.rows))

    @phased("reduce gradients")
    def _gradients(self, prepared: Prepared) -> list[Tensor]:
        """Gradients of the parameters from those that the last adjoint left in the fields; collective."""
        return self.grid.reduce(self._stack.gradients(prepared.theta, dict(prepared.layers.fields)))

    def as_sequential(self) -> nn.Sequential:
        """A plain torch copy of the whole trunk on every rank, detached from this one; collective."""
        return plain.sequential(self._stack.module, self.stepper, self.h, self.grid.every_layer(self.theta))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        """Takes the global form (N layers on the leading axis, any rank count) or this rank's own layers."""
        kind = local_metadata.get(GRID, self.grid.kind)
        if kind != self.grid.kind:
            errors.append(f"controls: weights of {kind} given, {self.grid.kind} allowed")
            return
        check_rows(local_metadata, self.grid)
        for name in self._names:
            value = state_dict.get(prefix + name)
            if isinstance(value, Tensor):
                state_dict[prefix + name] = self.grid.own(value)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing, unexpected, errors)

    def _apply(self, fn: Any, recurse: bool = True) -> "LayerParallel":
        check_dtype(fn(next(self._stack.module.parameters()).detach().new_empty(0)).dtype)
        super()._apply(fn, recurse)
        self._stack.module._apply(fn)
        self._tag()
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> "LayerParallel":
        """A copy with weights of its own on the same ranks (a communicator cannot be copied)."""
        other = self.__class__.__new__(self.__class__)
        memo[id(self)] = other
        shared = ("comm", "_slab", "grid", "_engine", "memory", "_stack")
        for key, value in self.__dict__.items():
            other.__dict__[key] = value if key in shared else copy.deepcopy(value, memo)
        other.memory, other._stack = LastSolve(), copy.deepcopy(self._stack, memo)
        other._tag()
        return other

    def extra_repr(self) -> str:
        controls = "" if self.controls is None else f", controls={self.controls}"
        return (
            f"{self._stack.module}, layers={self.layers}, T={self.T}, stepper={self.stepper}{controls}\n"
            f"forward={self.forward_solver}\nadjoint={self.adjoint_solver}\n"
            f"rank {self.comm.rank} of {self.comm.size}: layers {self._slab.lo} to {self._slab.hi - 1}"
        )


def _retag(trunk: LayerParallel, _: Any) -> None:
    """After any load, also one through an enclosing module, which may have put in new parameters."""
    trunk._tag()
    trunk.memory.clear()
