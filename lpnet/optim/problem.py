"""The objective of one batch on a chain net, its gradient, and its Gauss–Newton model:

    F(θ) = L(u) + Σ penalties,    u = after(trunk(before(x))),    L(u) = loss(u, label)
    gradient    Jᵀ ∇L + Σ ∇penalty
    model       B v = Jᵀ (∇²L) J v + Σ (∇²penalty) v              with J = ∂u/∂θ

B is the Hessian without the curvature of the net, and positive semidefinite for convex L. A product is one linearised
forward solve of the trunk and one adjoint solve.

Source: Schraudolph, Fast curvature matrix-vector products for second-order gradient descent (2002).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lpnet.errors import InputError
from lpnet.gradient import controlled
from lpnet.linearize import schedule_of
from lpnet.optim import vector
from lpnet.optim.agreement import penalties_of, refuse_random
from lpnet.optim.chain import Chain, split
from lpnet.optim.vector import Vector
from lpnet.regularizers import Penalty
from lpnet.step import Trial

Loss = Callable[[Tensor, Tensor], Tensor]


class Problem:
    """The objective of one batch; all methods are collective.

    Values and models are by the solvers of a training step of the trunk as it is now, from the same start each time, so
    that they are of one function; exact within ``lpnet.exact(net)``. Under error control, `gradient` is a step of the
    trunk, and from then on they are by the solvers, and from the start, of the gradient that was used. `net` must be a
    function: no random layers beside the trunk (those of the trunk keep their masks).

    Args:
        net: see `lpnet.optim.chain.split`.
        x: (batch, …), the same on every rank.
        label: what `loss` compares the output with.
        loss: (output, label) -> scalar, differentiable twice in the output (or see `curvature`).
        penalties: are added to the loss.
        parameters: those of the net that are free; None: all that require a gradient. The others are constants.

    Attributes:
        theta: the free parameters, in the order of all vectors.
        chain: the parts of the net.

    Raises:
        InputError: the net is no chain or no function, or a parameter or penalty is none of the net.
    """

    def __init__(
        self,
        net: nn.Module,
        x: Tensor,
        label: Tensor,
        loss: Loss = cross_entropy,
        penalties: Sequence[Penalty] = (),
        parameters: Sequence[Tensor] | None = None,
    ) -> None:
        self.net, self.x, self.label, self.loss = net, x, label, loss
        self.chain: Chain = split(net)
        refuse_random(self.chain)
        self.penalties = penalties_of(net, penalties)
        self.theta = free(net, parameters)
        self._trial = Trial(schedule_of(self.chain.trunk), {})

    def value(self) -> float:
        """F, as rank 0 has it."""
        with torch.no_grad(), self.fixed():
            return self.number(self._total(self.net(self.x)))

    @property
    def steered(self) -> bool:
        """Whether the trunk has its gradients under error control now (in training, not exact, not a step again)."""
        trunk = self.chain.trunk
        return trunk._controller is not None and trunk.training and not trunk.exact and trunk._again is None

    def gradient(self) -> tuple[float, Vector]:
        """F and its gradient, under the error control of the trunk, if it has one."""
        found: list[Tensor] = []
        steered, trunk = self.steered, self.chain.trunk

        def closure() -> Tensor:
            value = self._total(self.net(self.x))
            found[:] = self._derivative(value)
            return value.detach()

        with torch.enable_grad():
            value = self.number(controlled([trunk], closure))
        if steered and trunk._last is not None:
            self._trial = trunk._last
        return value, found

    @torch.no_grad()
    def linearize(self, gradient: Vector | None = None) -> "Model":
        """The model at the weights as they are; it ends with the next change of them.

        Args:
            gradient: of F where it is known already; None: it is computed, by one adjoint solve, when asked for.
        """
        with self.fixed():
            return Model(self, gradient)

    @contextmanager
    def fixed(self) -> Iterator[None]:
        """Inside, the trunk's solves are as this problem has them (unless it repeats a step already)."""
        trunk = self.chain.trunk
        before = trunk._again
        trunk._again = before or self._trial
        try:
            yield
        finally:
            trunk._again = before

    def number(self, value: Tensor) -> float:
        """A scalar as rank 0 has it."""
        return float(vector.of_rank_0(self.theta, value.detach().double().reshape(1).cpu()))

    def penalty(self) -> Tensor | float:
        """Σ penalties."""
        return sum((penalty() for penalty in self.penalties), 0.0)

    def penalty_gradient(self) -> Vector:
        """Σ ∇penalty."""
        with torch.enable_grad():
            value = self.penalty()
            return self._derivative(value) if isinstance(value, Tensor) else [torch.zeros_like(p) for p in self.theta]

    def penalty_product(self, v: Vector) -> Vector:
        """Σ (∇²penalty) v."""
        total = [torch.zeros_like(p) for p in self.theta]
        place = {id(p): i for i, p in enumerate(self.theta)}
        for penalty in self.penalties:
            own = penalty.parameters
            given = [v[place[id(p)]] if id(p) in place else torch.zeros_like(p) for p in own]
            for p, h in zip(own, penalty.hessian(given), strict=True):
                if id(p) in place:
                    total[place[id(p)]] += h
        return total

    def _total(self, output: Tensor) -> Tensor:
        loss = self.loss(output, self.label)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
            raise InputError(f"loss: {shape} returned, a tensor with one number allowed")
        return loss + self.penalty()

    def _derivative(self, value: Tensor) -> Vector:
        if not value.requires_grad:
            return [torch.zeros_like(p) for p in self.theta]
        grads = torch.autograd.grad(value, self.theta, allow_unused=True)
        return [torch.zeros_like(p) if g is None else g for g, p in zip(grads, self.theta, strict=True)]


def free(net: nn.Module, parameters: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    """The parameters that are free: some of the net, or all that require a gradient.

    Raises:
        InputError: a parameter is none of the net, or there is none.
    """
    own = list(net.parameters())
    given = [p for p in own if p.requires_grad] if parameters is None else list(parameters)
    known = {id(p) for p in own}
    if not given or any(id(p) not in known or not p.requires_grad for p in given):
        raise InputError(f"parameters: {len(given)} given, one or more of the net that require a gradient allowed")
    return tuple(given)


def curvature(loss: Loss, output: Tensor, label: Tensor) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """∇L and δu -> (∇²L) δu; a loss with a method ``linearize(output, label)`` says them itself."""
    own = getattr(loss, "linearize", None)
    if own is not None:
        return own(output, label)
    # ∇²L is symmetric: its products as pulled-back ones, which torch has for more losses than pushed ones.
    bar, back = torch.func.vjp(torch.func.grad(lambda u: loss(u, label)), output)  # type: ignore[misc]
    return bar, lambda du: back(du)[0]


class Model:
    """g·v + ½ v·B v at one point, on the solves of one linearisation; see the module.

    Attributes:
        value: F, as rank 0 has it.
        products: number of products so far.
    """

    def __init__(self, problem: Problem, gradient: Vector | None) -> None:
        self.problem, self.products, self._given = problem, 0, gradient
        chain, trunk = problem.chain, problem.chain.trunk
        place = {id(p): i for i, p in enumerate(problem.theta)}
        self._inside = [place.get(id(p)) for p in trunk.theta.values()]
        self._before = _Part(chain.before, place, problem.x, moves=False)
        # Where nothing before the classifier is free, nothing has to go through the trunk.
        self._through = bool(self._before.names) or any(i is not None for i in self._inside)
        self._trunk = trunk.linearize(self._before.output)
        self._after = _Part(chain.after, place, self._trunk.output, moves=True)
        self._bar, self._curve = curvature(problem.loss, self._after.output, problem.label)
        self.value = problem.number(problem._total(self._after.output))

    @cached_property
    def gradient(self) -> Vector:
        """∇F; collective when first asked for."""
        if self._given is not None:
            return self._given
        with torch.no_grad():
            back = self._pull(self._bar)
        if self._through:
            self.problem.chain.trunk.info.found(self._trunk.info, self._trunk.product, self._trunk.schedule)
        return vector.axpy(1.0, back, self.problem.penalty_gradient())

    @torch.no_grad()
    def product(self, v: Vector) -> Vector:
        """B v; collective."""
        self.products += 1
        du = self._push(v)
        if du is None:
            return self.problem.penalty_product(v)
        return vector.axpy(1.0, self._pull(self._curve(du)), self.problem.penalty_product(v))

    def _push(self, v: Vector) -> Tensor | None:
        """J v, None if it is zero."""
        dy = None
        if self._through:
            dtheta = None
            if any(i is not None for i in self._inside):
                trunk = self.problem.chain.trunk.theta.values()
                pairs = zip(self._inside, trunk, strict=True)
                dtheta = [torch.zeros_like(p) if i is None else v[i] for i, p in pairs]
            dy = self._trunk.tangent(self._before.push(v), dtheta)
        return self._after.push(v, dy)

    def _pull(self, bar: Tensor) -> Vector:
        """Jᵀ bar."""
        out = [torch.zeros_like(p) for p in self.problem.theta]
        bar = self._after.pull(bar, out)
        if self._through:
            bar, grads = self._trunk.pull(bar)
            for i, g in zip(self._inside, grads, strict=True):
                if i is not None:
                    out[i] += g
            self._before.pull(bar, out)
        return out


class _Part:
    """A replicated part of the net, as a function of its free parameters and, if that can vary, of its input.

    Args:
        module: the part.
        place: of the free parameters of the problem in its vectors.
        y: the input at which it is evaluated.
        moves: whether the input can vary.
    """

    def __init__(self, module: nn.Module, place: dict[int, int], y: Tensor, moves: bool) -> None:
        own = {name: p for name, p in module.named_parameters() if id(p) in place}
        self.module, self.names, self.input, self.moves = module, list(own), y, moves
        self.places = [place[id(p)] for p in own.values()]
        self.at = tuple(p.detach() for p in own.values()) + ((y.detach(),) if moves else ())
        self.output: Tensor
        self._back: Callable[[Tensor], tuple[Tensor, ...]] = lambda bar: ()
        if self.at:
            self.output, self._back = torch.func.vjp(self._call, *self.at)  # type: ignore[misc]
        else:
            self.output = self._call()

    def _call(self, *at: Tensor) -> Tensor:
        weights = dict(zip(self.names, at, strict=False))
        y = at[-1] if self.moves else self.input
        return torch.func.functional_call(self.module, weights, (y,))

    def push(self, v: Vector, dy: Tensor | None = None) -> Tensor | None:
        """The derivative in direction v of the weights and dy of the input; None if that is nothing."""
        if not self.names and dy is None:
            return None
        d = [v[i] for i in self.places]
        if self.moves:
            d.append(torch.zeros_like(self.input) if dy is None else dy)
        return torch.func.jvp(self._call, self.at, tuple(d))[1]

    def pull(self, bar: Tensor, out: Vector) -> Tensor:
        """Add the part's gradients to `out`; the cotangent of its input, or of its output if that cannot vary."""
        found = self._back(bar)
        for i, g in zip(self.places, found, strict=False):
            out[i] += g
        return found[-1] if self.moves else bar
