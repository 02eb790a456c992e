"""Tests of a layer together with a stepper: stability, reversal, coarse steps, and the trunk's gradient."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpnet import stability
from lpnet.check.report import Finding
from lpnet.check.subject import Subject
from lpnet.module import LayerParallel
from lpnet.options import MGRIT, Serial
from lpnet.plain import PlainLayer
from lpnet.slab import Comm
from lpnet.steppers import Mix, Stepper

MOST_FEATURES = 256
"""Beyond it the spectrum of the Jacobian is not computed."""

_STEPS, _ROUND_TRIP, _GRADIENT, _RESOLVED = 64, 1e-10, 1e-10, 0.3


def small(subject: Subject) -> float:
    """A step h with h|λ| about 0.1."""
    rates = []
    for term in subject.terms:
        v = subject.normal(*subject.y.shape)
        with torch.no_grad():
            moved = subject.f(term, subject.y + 1e-6 * v) - subject.f(term, subject.y)
        rates.append(moved.norm().item() / (1e-6 * v.norm().item()))
    rate = rates[0] if subject.terms == ("f",) else math.prod(rates) ** 0.5
    return 0.1 / rate if rate > 1e-3 else 0.1


class Spectrum:
    """Eigenvalues λ of the Jacobian of the whole state at some states, and the steps h that are stable on them."""

    def __init__(self, subject: Subject, stepper: Stepper) -> None:
        self.stepper = stepper
        slots = 1 if subject.terms == ("f",) else 2
        shape = (slots, *subject.features)
        found = []
        for _ in range(3):
            x = subject.normal(*shape)
            J = torch.autograd.functional.jacobian(subject.flow, x).reshape(x.numel(), x.numel())
            found.append(torch.linalg.eigvals(J).numpy())
        self.values = np.concatenate(found)

    @property
    def growth(self) -> float:
        """Largest Re λ."""
        return float(self.values.real.max())

    @property
    def frequency(self) -> float:
        """Largest |Im λ|."""
        return float(np.abs(self.values.imag).max())

    @property
    def size(self) -> float:
        """Largest |λ|."""
        return float(np.abs(self.values).max())

    def factor(self, h: float) -> float:
        """Largest ρ(R(hλ)) of the parts that do not grow by themselves, Re λ ≤ 0; 1 where there are none."""
        still = self.values[self.values.real <= 1e-7 * self.size]
        return float(stability.radius(self.stepper, h * still).max()) if len(still) else 1.0

    @property
    def turns(self) -> bool:
        """Whether there are parts that only turn."""
        still = np.abs(self.values.real) <= 1e-7 * self.size
        return bool((still & (np.abs(self.values.imag) > 1e-3 * self.size)).any())

    def largest_step(self) -> float:
        """The largest h at which no such part grows, to two percent; 0 where there is none."""
        if self.turns and not stability.limit(self.stepper):  # growth may begin with a high power of h
            return 0.0
        steps = np.geomspace(1e-2, 20.0, 400) / (self.size or 1.0)
        first = next((i for i, h in enumerate(steps) if self.factor(float(h)) > 1 + 1e-6), len(steps))
        return float(steps[first - 1]) if first else 0.0


def spectrum(subject: Subject, stepper: Stepper, h: float | None) -> Iterator[Finding]:
    """Where the eigenvalues of the Jacobian lie, and which steps are stable on them."""
    if subject.size > MOST_FEATURES:
        yield Finding("spectrum", "note", f"not computed for {subject.size} features (at most {MOST_FEATURES})")
        return
    found = Spectrum(subject, stepper)
    text = f"Re λ from {found.values.real.min():.3g} to {found.growth:.3g}, |Im λ| up to {found.frequency:.3g}"
    if found.growth > 1e-7 * found.size:
        text += f"; perturbations may grow like exp({found.growth:.2g} t)"
    yield Finding("spectrum", "ok", text, found.growth)
    yield _stable(found, h)


def _stable(found: Spectrum, h: float | None) -> Finding:
    name, most = type(found.stepper).__name__, found.largest_step()
    limit = f"parts that do not grow by themselves stay bounded for h up to {most:.3g}"
    if not most:
        at = 0.1 / found.size
        rate = math.log(found.factor(at)) / at
        limit = (
            f"parts that only turn grow for every h, like exp({rate:.1e} t) at h = {at:.3g}; "
            "more layers, a shift γ, RK4 or AB3 help"
        )
    if h is None:
        return Finding("stability", "ok" if most else "note", f"{name}: {limit}", most)
    factor = found.factor(h)
    if most and factor <= 1 + 1e-6:
        return Finding("stability", "ok", f"{name} is stable at h = {h:g}: {limit}", most)
    text = f"{name} at h = {h:g} makes them grow by a factor {factor:.4g} in each layer: {limit}"
    return Finding("stability", "note", text, most)


# ---- reversal --------------------------------------------------------------------------------------------------------


def reversal(subject: Subject, stepper: Stepper, h: float) -> Finding:
    """Many layers done and undone."""
    if not stepper.reversible:
        return Finding("reversal", "note", f"{type(stepper).__name__} is not reversible: store='reverse' is refused")
    program = stepper.stages(h)
    layer = PlainLayer(subject.module, program, stepper.memory)
    start = x = subject.normal(stepper.memory, *subject.y.shape)
    with torch.no_grad():
        for _ in range(_STEPS):
            x = layer(x)
        for _ in range(_STEPS):
            x = _undone(subject, stepper, h, x)
    error = (x - start).norm().item() / start.norm().item()
    done = f"{_STEPS} layers of h = {h:.3g}, done and undone, come back to {error:.1e}"
    if error <= _ROUND_TRIP:
        return Finding("reversal", "ok", f"{done}: store='reverse' may be used", error)
    text = f"{done} (at most {_ROUND_TRIP:.0e}): unstable, 0 < αβ < 4 fails; take a smaller h, or store='cpoints'"
    return Finding("reversal", "failed", text, error)


def _undone(subject: Subject, stepper: Stepper, h: float, x: Tensor) -> Tensor:
    """x_j from x_{j+1}: the instructions of an in-place program, last first."""
    slots = list(x.unbind(0))
    for step in reversed(stepper.stages(h)):
        if isinstance(step, Mix):
            rest = sum((c * slots[s] for s, c in step.others), torch.zeros_like(slots[0]))
            slots[step.target] = (slots[step.target] - rest) / step.own
        else:
            slots[step.target] = slots[step.target] - step.w * subject.f(step.term, slots[step.source])
    return torch.stack(slots)


# ---- trunks ----------------------------------------------------------------------------------------------------------


def _trunk(subject: Subject, stepper: Stepper, layers: int, h: float, forward: MGRIT | Serial) -> LayerParallel:
    """Layers that all are this one, on this rank alone."""
    made = LayerParallel(
        subject.module, layers, layers * h, stepper, forward, Serial(), comm=Comm(), dtype=torch.float64
    ).eval()
    with torch.no_grad():
        for name, stack in made.theta.items():
            stack.copy_(subject.theta[name].expand_as(stack))
    return made


def trunk(subject: Subject, stepper: Stepper, h: float) -> Finding:
    """The gradient of a short trunk against autograd on its plain copy."""
    made = _trunk(subject, stepper, 5, h, Serial())
    plain, c = made.as_sequential().eval(), subject.normal(*subject.y.shape)
    found, expected = (_input_gradient(net, subject.y, c) for net in (made, plain))
    layers: list[Any] = [part.dynamics for part in plain if hasattr(part, "dynamics")][-made.layers :]
    for name, stack in made.theta.items():
        grads = [layer.get_parameter(name).grad for layer in layers]
        found.append(torch.zeros_like(stack) if stack.grad is None else stack.grad)
        expected.append(torch.stack([torch.zeros_like(stack[0]) if g is None else g for g in grads]))
    off = sum((a - b).square().sum().item() for a, b in zip(found, expected, strict=True))
    size = sum(b.square().sum().item() for b in expected)
    error = (off / (size or 1.0)) ** 0.5
    if error <= _GRADIENT:
        return Finding("trunk", "ok", f"the gradient of 5 layers equals that of autograd to {error:.1e}", error)
    text = f"the gradient of 5 layers differs from that of autograd by {error:.1e} (at most {_GRADIENT:.0e})"
    return Finding("trunk", "failed", text, error)


def _input_gradient(net: torch.nn.Module, y: Tensor, c: Tensor) -> list[Tensor]:
    """Of Σ c net(y); those of the weights are left where they belong."""
    y = y.clone().requires_grad_()
    (c * net(y)).sum().backward()
    return [torch.zeros_like(y) if y.grad is None else y.grad]


def coarse(subject: Subject, stepper: Stepper, h: float) -> Finding:
    """Local error of the coarse propagator over 4 layers, and its order in H = 4h from smaller steps."""
    error = _coarse_error(subject, stepper, h)
    sizes = [h / 2**i for i in (3, 4, 5)]
    errors = [_coarse_error(subject, stepper, size) for size in sizes]
    order = float(np.polyfit(np.log(sizes), np.log(errors), 1)[0]) if min(errors) > 1e-13 else math.inf
    text = f"a coarse step over 4 layers of h = {h:.3g} is off by {error:.1e}, by order {order:.1f} in h for small h"
    if order < 2.7:
        return Finding("coarse", "note", f"{text}; 3 is expected of a smooth layer: MGRIT will converge slowly", order)
    if error > _RESOLVED:
        return Finding("coarse", "note", f"{text}: too long a step for MGRIT to start from; take a smaller h", order)
    return Finding("coarse", "ok", f"{text} (3 or more is expected)", order)


def _coarse_error(subject: Subject, stepper: Stepper, h: float) -> float:
    """Of a coarse step and 4 layers behind it, which is what a coarse start alone gives for 8 layers."""
    with torch.no_grad():
        solvers = (MGRIT(coarsening=4, cycles=0), Serial())
        found, exact = (_trunk(subject, stepper, 8, h, one)(subject.y) for one in solvers)
    return (found - exact).norm().item() / (exact.norm().item() or 1.0)
