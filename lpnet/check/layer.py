"""Tests of a layer by itself: that it is a map of states, a pure one, and that its derivatives are right."""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from lpnet.check.report import Finding
from lpnet.check.subject import Subject, Weights

Function = Callable[[Tensor, Weights], Tensor]

DOT, DIFFERENCES, EXAMPLES = 1e-10, 1e-6, 1e-11
"""Largest relative errors of dot products, finite differences, and of examples taken one by one."""


def shape(subject: Subject) -> Finding:
    """Each term maps (batch, *features) to the same, in float32 and in float64, to finite numbers."""
    for dtype in (torch.float64, torch.float32):
        theta = {name: value.to(dtype) for name, value in subject.theta.items()}
        module = copy.deepcopy(subject.module).to(dtype)
        for term in subject.terms:
            problem = _problem(module, term, subject.y.to(dtype), theta)
            if problem:
                return Finding("shape", "failed", f"{_said(term)} {problem}")
    if not subject.theta:
        return Finding("shape", "failed", "the layer has no parameters; LayerParallel needs at least one")
    return Finding("shape", "ok", f"{_all(subject)} maps {tuple(subject.y.shape)} to the same, float32 and float64")


def _problem(module: nn.Module, term: str, y: Tensor, theta: Weights) -> str:
    try:
        k = (module if term == "f" else getattr(module, term))(y.clone())
    except Exception as error:  # of the layer: that is what was found
        return f"raises {type(error).__name__} on a batch of shape {tuple(y.shape)} in {y.dtype}: {error}"
    if not isinstance(k, Tensor):
        return f"returns {type(k).__name__}; a tensor dy/dt is needed"
    if k.shape != y.shape:
        return f"maps {tuple(y.shape)} to {tuple(k.shape)}; dy/dt has the shape of y (features= sets it)"
    if k.dtype != y.dtype:
        return f"maps {y.dtype} to {k.dtype}; it must keep the type of y"
    if not bool(torch.isfinite(k).all()):
        return "gives numbers that are not finite for a state of normal numbers"
    return ""


def purity(subject: Subject) -> Iterator[Finding]:
    """The same result at each evaluation, and nothing changed by it."""
    y = subject.y  # which is examined with copies until it is known to be left alone
    repeated = all(torch.equal(subject.f(term, y.clone()), subject.f(term, y.clone())) for term in subject.terms)
    if not repeated:
        text = "two evaluations in evaluation mode differ; a relaxation would never converge. Draw nothing in forward()"
        yield Finding("deterministic", "failed", text)
    elif _draws(subject):
        text = "draws random numbers in training mode (dropout?); a trunk keeps those of each layer during a step"
        yield Finding("deterministic", "note", text)
    else:
        yield Finding("deterministic", "ok", "two evaluations give the same bits")
    yield _untouched(subject)
    yield _buffers(subject)


def _draws(subject: Subject) -> bool:
    module = copy.deepcopy(subject.module).train()
    before = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for term in subject.terms:
            (module if term == "f" else getattr(module, term))(subject.y.clone())
        return not torch.equal(before, torch.get_rng_state())


def _untouched(subject: Subject) -> Finding:
    for term in subject.terms:
        y = subject.y.clone()
        version = y._version
        subject.f(term, y)
        if y._version != version or not torch.equal(y, subject.y):
            text = f"{_said(term)} changes its input in place, which a trunk refuses; make a new tensor"
            return Finding("input", "failed", text)
    return Finding("input", "ok", "is left as it was")


def _buffers(subject: Subject) -> Finding:
    module = copy.deepcopy(subject.original).to(torch.float64).train()
    before = [b.clone() for b in module.buffers()]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        for term in subject.terms:
            (module if term == "f" else getattr(module, term))(subject.y.clone())
    if all(torch.equal(a, b) for a, b in zip(before, module.buffers(), strict=True)):
        return Finding("buffers", "ok", f"{len(before)} that stay as they are" if before else "none")
    text = "change when the layer is evaluated (batch statistics?), as often as a relaxation visits it; use LayerNorm"
    return Finding("buffers", "failed", text)


def examples(subject: Subject) -> Finding:
    """f(y)_i depends on y_i alone."""
    worst = 0.0
    for term in subject.terms:
        together = subject.f(term, subject.y)
        alone = torch.cat([subject.f(term, one[None]) for one in subject.y])
        worst = max(worst, _relative(together - alone, together))
    if worst <= EXAMPLES:
        return Finding("examples", "ok", "are treated apart", worst)
    text = (
        f"depend on each other: one by one they differ by {worst:.1e} (at most {EXAMPLES:.0e}); micro-batches and "
        "evaluations in parts would give other results. Normalise over features, not over the batch"
    )
    return Finding("examples", "failed", text, worst)


class _Products:
    """One random direction (v, δθ), one cotangent w of a term, and the products of its Jacobian with them."""

    def __init__(self, subject: Subject, f: Function) -> None:
        self.f, self.y, self.theta = f, subject.y, subject.theta
        self.v, self.w = subject.normal(*self.y.shape), subject.normal(*self.y.shape)
        self.dtheta = {name: subject.normal(*p.shape) for name, p in self.theta.items()}
        self.moved = self._moved()
        self.size = self.moved.norm().item() * self.w.norm().item() or 1.0
        self.used: set[str] = set()

    def _moved(self, eps: float = 1e-6) -> Tensor:
        """J (v, δθ) by central differences."""
        ends = [
            self.f(self.y + e * self.v, {n: p + e * self.dtheta[n] for n, p in self.theta.items()}).detach()
            for e in (eps, -eps)
        ]
        return (ends[0] - ends[1]) / (2 * eps)

    def pulled(self) -> float:
        """⟨(v, δθ), Jᵀ w⟩ by backward; notes which weights have a part in it."""
        y, theta = self.y.clone().requires_grad_(), {n: p.clone().requires_grad_() for n, p in self.theta.items()}
        out = self.f(y, theta)
        if not out.requires_grad:
            return 0.0
        bars = torch.autograd.grad(out, [y, *theta.values()], self.w, materialize_grads=True, allow_unused=True)
        self.used = {name for name, bar in zip(theta, bars[1:], strict=True) if bool(bar.any())}
        return sum((a * b).sum().item() for a, b in zip([self.v, *self.dtheta.values()], bars, strict=True))

    def pushed(self) -> float:
        """⟨J (v, δθ), w⟩ by forward mode."""
        dot: Tensor = torch.func.jvp(self.f, (self.y, self.theta), (self.v, self.dtheta))[1]
        return float((dot * self.w).sum())


def derivatives(subject: Subject) -> Iterator[Finding]:
    """⟨Jv, w⟩ = ⟨v, Jᵀw⟩ in y and θ, with Jv by differences and by forward mode."""
    differences, dots, missing, idle = 0.0, 0.0, "", set(subject.theta)
    for f in subject.functions().values():
        one = _Products(subject, f)
        pulled = one.pulled()
        idle -= one.used
        differences = max(differences, abs((one.moved * one.w).sum().item() - pulled) / one.size)
        try:
            dots = max(dots, abs(one.pushed() - pulled) / one.size)
        except (RuntimeError, NotImplementedError) as error:  # of operations without forward mode
            missing = f"{type(error).__name__}: {str(error).partition('. ')[0].splitlines()[0]}"
    yield _compared("gradient", differences, DIFFERENCES, "backward() is not the derivative of forward()")
    if missing:
        text = f"no derivative in forward mode, which linearised solves (Gauss-Newton) need: {missing}"
        yield Finding("adjoint", "note", text)
    else:
        yield _compared("adjoint", dots, DOT, "the derivatives in forward and in backward mode are not transposes")
    if idle:
        yield Finding("weights", "note", f"{', '.join(sorted(idle))} had no influence on the states that were tried")


def _compared(name: str, error: float, most: float, wrong: str) -> Finding:
    how = {"gradient": "by finite differences", "adjoint": "by a dot product"}[name]
    if error <= most:
        return Finding(name, "ok", f"right {how}: relative error {error:.1e} (at most {most:.0e})", error)
    return Finding(name, "failed", f"{wrong}: relative error {error:.1e} {how} (at most {most:.0e})", error)


def _relative(difference: Tensor, of: Tensor) -> float:
    return difference.norm().item() / (of.norm().item() or 1.0)


def _said(term: str) -> str:
    return "forward()" if term == "f" else f"{term}()"


def _all(subject: Subject) -> str:
    return " and ".join(_said(term) for term in subject.terms)
