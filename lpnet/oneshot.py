"""Simultaneous ("one-shot") training: the weights are updated while states and adjoints still converge.

One step, in the order state, adjoint, design, with k + 1 F-sweeps in either direction (k = 0 is the cheapest):

    u_{k+1} = G_k(u_k) + τ_{k+1}       coarse problem with the new weights and the τ that the last sweep left
    F-sweep                            states x_j, next τ
    the same for z                     adjoints z_j, gradients g_j, next τ
    θ ← θ + d(g)                       any update

For weights that stand still a step is one full multigrid cycle each way, since the coarse problem of a cycle takes its
τ from the sweep before it. So states and adjoints converge while the updates become small, and near a minimum the
gradient is as exact as its size demands. Error control (`lpnet.control`) watches over that.

Sources: Günther, Ruthotto, Schroder, Cyr, Gauger, Layer-parallel training of deep residual neural networks (2020),
section 3.3 (simultaneous optimisation); Brandt, Livne, Multigrid Techniques (1984) (frozen τ).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lpnet.control import Adaptive
from lpnet.errors import InputError, NonFiniteError
from lpnet.gradient import controlled, random_state, repeating, set_random_state
from lpnet.optim import GaussNewton, vector
from lpnet.optim.searching import Searching
from lpnet.options import MGRIT, SolverOptions
from lpnet.recall import ExampleMemory, WarmStates
from lpnet.residuals import Info
from lpnet.sharded import clip_grad_norm_, grad_norm, refuse, require_own, trunks

Loss = Callable[[Tensor, Tensor], Tensor]

TOLERANCE = 0.2
"""Gradient error of one-shot training unless another is given: weights that move far make any gradient old."""

_MOST_CLASSES = 10_000
_DIVERGED = 1.0  # estimated gradient error beyond which an iteration is said to diverge


@dataclass(frozen=True)
class Progress:
    """What one step found.

    Attributes:
        loss: before the update, at the states of the last sweep.
        gradient_norm: of the whole gradient.
        state_residual: relative residual of the forward solves (the largest, of several trunks).
        adjoint_residual: the same of the adjoint solves.
        gradient_error: estimated relative error of the gradient by the schedule of the step (the largest, of several
            trunks); None if any trunk is neither exact nor under control.
        exact: the gradient that was used is that of the exact chain, in all trunks.
        checked: the gradient was compared with a better one, which was used in its place.
        diverged: the estimated error was above 1 (the step was repeated with more cycles, or exactly), or the cycles of
            a solve led nowhere (the exact chain was done in their place).
        converged: residuals and gradient are within the tolerance (never without one).
    """

    loss: float
    gradient_norm: float
    state_residual: float
    adjoint_residual: float
    gradient_error: float | None
    exact: bool
    checked: bool
    diverged: bool
    converged: bool = False


class Descent:
    """Loss, gradient and update of a network, under the error control of its trunks, step by step; collective.

    Args:
        net: any module with `lpnet.LayerParallel` in it, each called once per evaluation.
        optimizer: elementwise (see `lpnet.sharded`), or one of `lpnet.optim`; made for this net if it takes a net.
        loss: (output, label) -> scalar, the mean over the examples; None: cross entropy, or the objective that
            `GaussNewton` has already, with its penalties; any other has to agree with that.

    Raises:
        InputError: an optimizer that would be wrong on slabs, or of other parameters, or a network without a trunk.
    """

    def __init__(self, net: nn.Module, optimizer: torch.optim.Optimizer, loss: Loss | None = None) -> None:
        for key, given, kind in (("net", net, nn.Module), ("optimizer", optimizer, torch.optim.Optimizer)):
            if not isinstance(given, kind):
                raise InputError(f"{key}: {given!r} given, a torch {kind.__name__} allowed")
        if loss is not None and not callable(loss):
            raise InputError(f"loss: {loss!r} given, a function (output, label) -> scalar allowed")
        if isinstance(optimizer, GaussNewton):
            net, loss = optimizer.joined(net, loss)  # without a classifier that the optimizer solves for by itself
        self.net, self.optimizer, self.loss = net, optimizer, loss if loss is not None else cross_entropy
        self.trunks = trunks(net)
        if not self.trunks:
            raise InputError(f"net: a {type(net).__name__} given without any lpnet.LayerParallel, at least one needed")
        refuse(optimizer)
        require_own(optimizer, net)
        self._batch: tuple[Tensor, Tensor] | None = None
        self._value = torch.zeros(())
        self._random = random_state()
        self._buffers: list[Tensor] = []

    def evaluate(self, x: Tensor, label: Tensor, index: Tensor | None = None) -> Tensor:
        """Loss of a batch, with all gradients.

        Args:
            x: (batch, …), the same on every rank.
            label: what `loss` compares the output with.
            index: (batch,) which examples these are; for methods that remember them.
        """
        self._batch, self._random = (x, label), random_state()
        self._buffers = [b.clone() for b in self.net.buffers()]
        self._value = controlled(self.trunks, self._gradient)
        return self._value

    def _gradient(self) -> Tensor:
        for buffer, kept in zip(self.net.buffers(), self._buffers, strict=True):
            buffer.copy_(kept)  # such as running means beside the trunks: a step that is repeated counts once
        self.optimizer.zero_grad()
        loss = self._loss()
        if not loss.requires_grad:
            raise InputError("loss: a tensor without a graph returned, one that depends on the weights needed")
        loss.backward()
        return loss.detach()

    def _examples(self) -> tuple[Tensor, Tensor]:
        if self._batch is None:
            raise RuntimeError("update called before evaluate")
        return self._batch

    def _loss(self) -> Tensor:
        x, label = self._examples()
        loss = self.loss(self.net(x), label)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise InputError(f"loss: {shape} returned, a tensor with one number allowed")
        return loss

    def _objective(self) -> Tensor:
        with torch.no_grad():
            return self._repeated(self._loss)

    def _closure(self) -> Callable[[], Tensor]:
        """The loss with its gradients: at first those that `evaluate` has found."""
        known = iter([self._value])

        def closure() -> Tensor:
            value = next(known, None)
            return self._repeated(self._gradient) if value is None else value

        return closure

    def _repeated(self, evaluated: Callable[[], Tensor]) -> Tensor:
        """The same function of the weights as in the last evaluation."""
        now, buffers = random_state(), [b.clone() for b in self.net.buffers()]
        set_random_state(self._random)
        try:
            with repeating(self.trunks):
                return evaluated()
        finally:
            set_random_state(now)
            for buffer, kept in zip(self.net.buffers(), buffers, strict=True):
                buffer.copy_(kept)

    def update(self) -> None:
        """Update all weights by the gradients of `evaluate`; searches along a line are on the same batch."""
        if isinstance(self.optimizer, GaussNewton):
            with repeating(self.trunks):
                problem = self.optimizer.problem(*self._examples())
                self.optimizer.step(problem, vector.gradients(problem.theta))
        elif isinstance(self.optimizer, Searching):
            self.optimizer.step(self._closure(), self._objective)
        else:
            self.optimizer.step()

    def step(self, x: Tensor, label: Tensor, index: Tensor | None = None, clip: float | None = None) -> Progress:
        """`evaluate`, scale the gradient down to norm `clip` if one is given (not with a line search), and `update`.

        Raises:
            NonFiniteError: loss or gradient are not finite; the weights stay as they are.
        """
        if clip is not None and isinstance(self.optimizer, Searching | GaussNewton):
            kind = type(self.optimizer).__name__
            raise InputError(f"clip: {clip!r} given with {kind}, None allowed (its line search bounds the step)")
        loss = self.evaluate(x, label, index).item()
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(grad_norm(parameters) if clip is None else clip_grad_norm_(parameters, clip))
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise NonFiniteError(f"loss {loss} and norm of the gradient {norm}: not finite, the weights are kept")
        progress = self.progress(loss, norm)
        self.update()
        return progress

    def progress(self, loss: float, norm: float) -> Progress:
        """What the last evaluation found."""
        infos = [trunk.info for trunk in self.trunks]
        errors = [info.gradient_error for info in infos]
        error = None if None in errors else max(e for e in errors if e is not None)
        return Progress(
            loss,
            norm,
            max(_last(info.forward) for info in infos),
            max(_last(info.adjoint) for info in infos),
            error,
            all(info.is_exact for info in infos),
            any(info.control is not None and info.control.checked for info in infos),
            (error is not None and not error <= _DIVERGED) or any(info.diverged for info in infos),
        )


def _are_classes(label: Tensor) -> bool:
    """Whether labels are numbers of classes, few enough for means over each."""
    if label.ndim != 1 or label.is_floating_point() or label.dtype == torch.bool:
        return False
    return int(label.min()) >= 0 and int(label.max()) < _MOST_CLASSES


def _last(info: Info | None) -> float:
    return float(info.residuals[-1]) if info is not None else math.inf


class OneShot(Descent):
    """Simultaneous training: states, adjoints and weights converge together.

    From now on the trunks of `net` start each solve from what earlier steps left, under error control.

    Args:
        net: a network with at least one `lpnet.LayerParallel`, solved by MGRIT.
        optimizer: of torch (elementwise), or one of `lpnet.optim`.
        loss: see `Descent`.
        cycles: multigrid cycles of a step beyond the one that a step is anyway; 0 is one F-sweep each way; None: as
            many as the solvers of the trunks have.
        control: of the gradient error; None: within 0.2.
        warm: what is kept of the examples; mini-batches need its `examples`, and the `index` of each step.
        tol: for the stopping test: residuals of state and adjoint, and the norm of the gradient relative to that of the
            first step, are all at or below it.

    Attributes:
        first_norm: norm of the gradient of the first step; None before it.
        previous: the x of the last step, without mini-batches; None before the first.

    Raises:
        InputError: a trunk that is not solved by MGRIT, an optimizer that is wrong on slabs, a value out of range; from
            `step`, states that need more memory than allowed.
    """

    def __init__(
        self,
        net: nn.Module,
        optimizer: torch.optim.Optimizer,
        loss: Loss | None = None,
        cycles: int | None = 0,
        control: Adaptive | None = None,
        warm: WarmStates | None = None,
        tol: float | None = None,
    ) -> None:
        super().__init__(net, optimizer, loss)
        for key, given, kind in (("control", control, Adaptive), ("warm", warm, WarmStates)):
            if given is not None and not isinstance(given, kind):
                raise InputError(f"{key}: {given!r} given, an lpnet.{kind.__name__} or None allowed")
        if tol is not None and not (isinstance(tol, int | float) and 0 < tol < 1):
            raise InputError(f"tol: {tol!r} given, a number above 0 and below 1, or None, allowed")
        self.tol, self.warm = tol, warm if warm is not None else WarmStates()
        self.first_norm: float | None = None
        self.previous: Tensor | None = None
        for trunk in self.trunks:
            solvers = [remembering(s, cycles) for s in (trunk.forward_solver, trunk.adjoint_solver)]
            trunk.steer(solvers[0], solvers[1], control if control is not None else Adaptive(TOLERANCE))
            if self.warm.examples is not None:
                trunk.memory = ExampleMemory(trunk.comm, self.warm.examples, self.warm)

    def evaluate(self, x: Tensor, label: Tensor, index: Tensor | None = None) -> Tensor:
        """Loss of a batch, with all gradients.

        Args:
            x: (batch, …), the same on every rank.
            label: what `loss` compares the output with; whole numbers (batch,) are classes.
            index: (batch,) which of the `warm.examples` examples these are; None: no mini-batches, so that nothing is
                taken from earlier steps unless x is that of the last one.
        """
        if self.warm.examples is None:
            same = self.previous is not None and torch.equal(self.previous, x)
            self.previous = x.detach().clone() if not same else self.previous
            if not same or self.warm.kind == "none":
                self._forget()
            return super().evaluate(x, label)
        index = self._check_index(index, len(x), self.warm.examples)
        classes = label if _are_classes(label) else None
        memories = [trunk.memory for trunk in self.trunks if isinstance(trunk.memory, ExampleMemory)]
        try:
            for memory in memories:
                memory.batch(index, classes)
            return super().evaluate(x, label)
        finally:
            for memory in memories:  # whoever calls the net in between has other examples
                memory.batch(index[:0], None)

    def _forget(self) -> None:
        for trunk in self.trunks:
            trunk.memory.clear()

    @staticmethod
    def _check_index(index: Tensor | None, batch: int, n: int) -> Tensor:
        index = None if index is None else torch.as_tensor(index)
        whole = index is not None and not index.is_floating_point() and index.dtype != torch.bool
        if index is None or index.shape != (batch,) or not whole or not batch:
            shape = None if index is None else tuple(index.shape)
            raise InputError(f"index: {shape} given, the numbers of the {batch} examples of this batch needed")
        low, high = int(index.min()), int(index.max())
        if low < 0 or high >= n:
            raise InputError(f"index: numbers from {low} to {high} given, 0 to {n - 1} allowed")
        return index

    def progress(self, loss: float, norm: float) -> Progress:
        found = super().progress(loss, norm)
        self.first_norm = norm if self.first_norm is None else self.first_norm
        if self.tol is None:
            return found
        # Rank 0 decides: what is replicated may differ in the last bits on mixed hardware.
        (norm,) = self.trunks[0].comm.bcast_(torch.tensor([norm], dtype=torch.float64), 0).tolist()
        worst = max(found.state_residual, found.adjoint_residual)
        return replace(found, converged=worst <= self.tol and norm <= self.tol * self.first_norm)


def remembering(options: SolverOptions, cycles: int | None = None) -> MGRIT:
    """The same solver starting from the τ of earlier solves (with so many cycles).

    Raises:
        InputError: the exact chain, which has no states that could converge.
    """
    if not isinstance(options, MGRIT):
        raise InputError(f"method: simultaneous given with the solver {options!r}, MGRIT needed")
    return replace(options, initial="tau", cycles=options.cycles if cycles is None else cycles)

