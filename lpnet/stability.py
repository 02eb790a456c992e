"""Whether a stepper is stable on a flow: what one step does to y' = λy, and how large hλ is for given weights.

A step maps the state x of the test equation to R(hλ) x, with a matrix R made by doing the stepper's own program. It is
stable where the spectral radius ρ(R) is at most 1. On the imaginary axis, where Hamiltonian, antisymmetric and
second-order layers live, that is hω ≤ 0.72363 for AB3, 2.828 for RK4, 2 for Verlet and Leapfrog, and nowhere for Euler,
whose |1 + ihω| > 1 makes a flow that only turns grow by about exp(½ T h ω²). For Verlet and Leapfrog a kick by α and a
drift by β with αβ = (hω)² have roots ξ² − 2aξ + 1 = 0, a = 1 − ½αβ: bounded for 0 < αβ < 4; beyond, states that are
recomputed backwards are wrong by about eps |ξ|^(2N).

Bounds for the built-in dynamics: |λ| ≤ |C| |A| max σ', the spectral norms of their weights.

Sources: Hairer, Wanner, Solving ordinary differential equations II (1996), stability domains; Haber, Ruthotto, Stable
architectures for deep neural networks (2017); Chang, Meng, Haber, Ruthotto, Begert, Holtham, Reversible architectures
for arbitrarily deep residual neural networks (2018).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lpnet.activations import ACTIVATIONS
from lpnet.dynamics import Dynamics, described
from lpnet.errors import warn
from lpnet.slab import Slab
from lpnet.steppers import Mix, Stepper

Norm = Callable[[Tensor], Tensor]
Complex = npt.NDArray[np.complex128]
Floats = npt.NDArray[np.float64]

HARMLESS = 10.0
"""Growth over all layers that a stepper without any stable interval may have before it is worth a warning."""

ROUND_TRIP = {torch.float32: 1e-3, torch.float64: 1e-6}
"""Relative error of undone states that is worth a warning: far above what rounding makes of thousands of stable layers,
and no more than about half of the digits, which a gradient of them has lost then, too."""

_SEARCHED, _TOLERANCE = 20.0, 1e-7  # limits are looked for up to here; a double root moves by the root of rounding
_ROUNDING = 1e-11  # what a single root may move


def amplification(stepper: Stepper, z: npt.ArrayLike) -> Complex:
    """R(hλ): one layer as a matrix on the state of the linear test equation.

        f(y) = λy;      kick(y) = −ωy, drift(z) = ωz;      kick(y) = −ω²y alone, dy/dt = v

    Args:
        stepper: the stepper, whose program is done with step 1.
        z: (n,) hλ; for partitioned and second-order dynamics hω = |z|.

    Returns:
        (n, memory, memory).
    """
    z = np.atleast_1d(np.asarray(z, dtype=np.complex128))
    omega = np.abs(z)
    kick = -omega if "drift" in stepper.terms else -(omega**2)
    factor = {"f": z, "kick": kick, "drift": omega}
    zero = np.zeros((len(z), stepper.memory), dtype=np.complex128)
    slots = {i: zero + np.eye(stepper.memory)[i] for i in range(stepper.memory)}
    for step in stepper.stages(1.0):
        if isinstance(step, Mix):
            slots[step.target] = sum((c * slots.get(s, zero) for s, c in step.terms), zero)
        else:
            start = step.target if step.start is None else step.start
            f = factor[step.term][:, None] * slots.get(step.source, zero)
            slots[step.target] = slots.get(start, zero) + step.w * f
    return np.stack([slots[i] for i in range(stepper.memory)], axis=1)


def radius(stepper: Stepper, z: npt.ArrayLike) -> Floats:
    """ρ(R(hλ)), (n,): the factor by which a step multiplies a component in the long run; at most 1 where stable."""
    found: Floats = np.abs(np.linalg.eigvals(amplification(stepper, z))).max(axis=1)
    return found


@lru_cache
def limit(stepper: Stepper, spectrum: str = "imaginary") -> float:
    """The largest s such that hλ = is (or −s for spectrum "real") and all before it are stable; 0: none at all."""
    direction = 1j if spectrum == "imaginary" else -1.0

    def stable(s: float, tolerance: float = _TOLERANCE) -> bool:
        return bool(radius(stepper, s * direction)[0] <= 1 + tolerance)

    grid = np.arange(1, 100 * _SEARCHED + 1) / 100
    first = next((float(s) for s in grid if not stable(s)), math.inf)
    if first in (grid[0], math.inf):
        return 0.0 if first == grid[0] else math.inf
    found = _bisect(stable, first - 0.01, first)
    return found if stable(found / 2, _ROUNDING) else 0.0  # such as Heun's, which grows by a power of s from 0 on


def _bisect(stable: Callable[[float], bool], low: float, high: float) -> float:
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if stable(middle) else (low, middle)
    return low


def frobenius(stack: Tensor) -> Tensor:
    """Norms of stacked matrices (n, rows, columns) that are quick and never smaller than |M_j|₂, (n,)."""
    return torch.linalg.vector_norm(stack, dim=(1, 2)).double()


def norms(stack: Tensor, iterations: int = 16) -> Tensor:
    """|M_j|₂ of stacked matrices (n, rows, columns), (n,), by the power method on MᵀM: from below, to some percent.

    Equal matrices are looked at once.
    """
    if len(stack) > 1 and bool((stack == stack[:1]).all()):
        return norms(stack[:1], iterations).expand(len(stack))
    v = torch.randn(stack.shape[2], 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(stack)
    v = v.expand(len(stack), -1, -1)
    for _ in range(iterations):
        v = stack.transpose(1, 2) @ (stack @ v)
        v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(torch.finfo(stack.dtype).tiny)
    return torch.linalg.vector_norm(stack @ v, dim=(1, 2)).double()


def eigenvalues(dynamics: Dynamics, theta: dict[str, Tensor], norm: Norm = norms) -> Complex:
    """The λ_j of largest modulus that the Jacobians of stacked layers may have, (n,).

    On the imaginary axis (iω, less γ) or the negative real one; the bound |C| |M| max σ' is that of σ' = max σ' for all
    neurons.
    """
    slope = ACTIVATIONS[dynamics.activation].slope
    sizes = {
        term: slope * norm(w.M) * (1.0 if w.C is None else norm(w.C))
        for term, w in dynamics.dense({k: v.detach() for k, v in theta.items()}).items()
    }
    if "f" not in sizes:
        return 1j * (sizes["kick"] * sizes.get("drift", 1.0)).sqrt().cpu().numpy()
    size = sizes["f"].cpu().numpy()
    if dynamics.spectrum == "real":
        return -size.astype(np.complex128)
    gamma = np.minimum(slope * getattr(dynamics, "gamma", 0.0), size)
    return -gamma + 1j * np.sqrt(size**2 - gamma**2)


@dataclass(frozen=True)
class Outlook:
    """What linear stability says of a stepper on a flow.

    Attributes:
        stepper: name of the stepper.
        spectrum: where the eigenvalues λ of the flow lie, "imaginary" or "real", or "any", where γ alone is known.
        limit: largest stable h|λ|; 0: there is none.
        value: largest h|λ| of all layers.
        layer: where it is.
        damping: hγ there, with the largest σ'.
        most: the largest that is stable on the negative real axis.
        growth: Π ρ(R(hλ_j)) over all layers: what the discretisation may make of a perturbation, by itself.
        round_trip: about the relative error of states that a reversible stepper recomputes, eps Π ρ².
    """

    stepper: str
    spectrum: str
    limit: float
    value: float
    layer: int
    damping: float
    most: float
    growth: float
    round_trip: float

    @property
    def stable(self) -> bool:
        """Within the limits; where there is none, whether the growth is harmless."""
        return not self.overdamped and self.growth <= (HARMLESS if self.limit == 0 else 1.0)

    @property
    def overdamped(self) -> bool:
        """Whether the damping alone is beyond its limit."""
        return self.damping > self.most

    def text(self, reverse: bool = False) -> str:
        """In words: what was found, the limit, the value, what to do; `reverse`: states are recomputed backwards."""
        what, where = "hω" if self.spectrum == "imaginary" and not self.damping else "h|λ|", f"layer {self.layer}"
        if self.damping:
            where += f", hγ = {self.damping:.3g}"
        said = f"{what} up to {self.value:.3g} ({where}), the limit is {self.limit:.5g}"
        if self.stable:
            return f"{self.stepper} is stable here: {said}"
        grow = f"; perturbations may grow {self.growth:.2g}-fold over the layers"
        if self.overdamped:
            more = math.ceil(10 * self.damping / self.most) / 10 if self.most else math.inf
            said = f"the damping hγ = {self.damping:.3g} is beyond {self.most:.5g}, the limit on the negative real axis"
            return f"{self.stepper} is unstable: {said}{grow}. Use {more:g} times as many layers, a smaller T or gamma"
        if self.limit == 0:
            what = f"{self.stepper} makes a flow grow that {'turns' if self.damping else 'only turns'}"
            ways = ", a smaller T or a larger gamma" if self.damping < 1 else " or a smaller T"
            return f"{what}: {said}{grow}. More layers{ways} help, or the steppers RK4 and AB3"
        said += grow
        if self.stepper in ("Verlet", "Leapfrog"):
            said += f" (αβ = {self.value**2:.3g}, 0 < αβ < 4 is stable)"
        if reverse:
            said += f", recomputed states be wrong by about {self.round_trip:.1g} (eps |ξ|^2N)"
        more = math.ceil(10 * self.value / self.limit) / 10
        return f"{self.stepper} is unstable: {said}. Use {more:g} times as many layers, a smaller T or smaller weights"


def outlook(
    dynamics: nn.Module, theta: dict[str, Tensor], stepper: Stepper, h: float, slab: Slab, norm: Norm = norms
) -> Outlook | None:
    """What to expect of these weights of all layers, the same on every rank; collective.

    None for dynamics whose eigenvalues may lie anywhere, unless a shift γ is too large by itself, and for a user's
    module (see `lpnet.check`).

    Args:
        dynamics: one layer.
        theta: this rank's weights, name -> (n, ...).
        stepper: how it is stepped,
        h: with which step.
        slab: the layers of all ranks.
        norm: `norms`, or `frobenius`, which is quicker and sees things too black.
    """
    if not described(dynamics):
        return None
    damping, most = h * ACTIVATIONS[dynamics.activation].slope * getattr(dynamics, "gamma", 0.0), math.inf
    if damping > 0:
        most = limit(stepper, "real")
    if dynamics.spectrum == "any":
        if damping <= most:
            return None
        z = np.full(slab.layers, -damping + 0j)
    else:
        z = h * eigenvalues(dynamics, theta, norm)
        every = slab.gather(torch.from_numpy(np.stack([z.real, z.imag], 1))).numpy()
        z = every[:, 0] + 1j * every[:, 1]
    layer = int(np.abs(z).argmax())
    rho = radius(stepper, z)
    exponent = float(np.log(np.where(rho > 1 + _TOLERANCE, rho, 1.0)).sum())
    eps = torch.finfo(next(iter(theta.values())).dtype).eps
    return Outlook(
        type(stepper).__name__,
        dynamics.spectrum,
        limit(stepper, "real" if dynamics.spectrum == "real" else "imaginary"),
        float(np.abs(z[layer])),
        layer,
        max(damping, 0.0),
        most,
        float(np.exp(min(exponent, 700.0))),
        eps * float(np.exp(min(2 * exponent, 700.0))),
    )


class Watch:
    """Says once where the weights of a trunk are unstable, and once where undone states are wrong.

    Looks at the weights of a trunk at its calls 1, 10, 100, …, and warns on rank 0.

    A stepper with a stable interval is warned of as soon as h|λ| of a layer is beyond it; one without (Euler on a flow
    that turns) where the growth over all layers is beyond `HARMLESS`. That is linear theory for built-in dynamics; what
    nonlinear growth or a user's module makes of states that are undone is measured by every adjoint (`undone`).
    """

    def __init__(self, told: bool = False, undone: bool = False) -> None:
        self._calls, self._next = 0, 1
        self._found: Outlook | None = None
        self._told, self._undone = told, undone  # were spoken of

    def onward(self) -> "Watch":
        """That of a trunk which goes on where this one ends: nothing is said twice."""
        return Watch(self._told, self._undone)

    def state(self) -> dict[str, Any]:
        """What this rank has seen and said, as values of JSON."""
        found = None if self._found is None else asdict(self._found)
        return {"calls": self._calls, "next": self._next, "told": self._told, "undone": self._undone, "found": found}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self._calls, self._next = state["calls"], state["next"]
        self._told, self._undone = state["told"], state["undone"]
        self._found = None if state["found"] is None else Outlook(**state["found"])

    def look(self, find: Callable[[Norm], Outlook | None], rank: int, reverse: bool) -> None:
        """To be called at every call of the trunk; `find` is its outlook by these norms, collective."""
        self._calls += 1
        if self._calls != self._next:
            return
        self._next *= 10
        found = find(frobenius)
        if found is not None and not found.stable:
            found = find(norms)
        self._found = found
        if found is None or found.stable:
            return
        self._next = 0
        if rank == 0 and not self._told:
            warn(found.text(reverse))
        self._told = True

    def undone(self, off: float | None, dtype: torch.dtype) -> None:
        """To be called after every adjoint, with the relative error of the states that it undid on this rank.

        Warns once, on the rank where that is too large: with no word to the others, who may not have found it. Silent
        where `look` has foretold it.
        """
        most = ROUND_TRIP[dtype]
        if self._undone or off is None or off <= most:  # not a number is too large, too
            return
        self._undone = True
        if self._found is not None and not self._found.stable and self._found.round_trip > most:
            return
        foretold = "linear stability foretells nothing for these dynamics"
        if self._found is not None:
            what = "hω" if self._found.spectrum == "imaginary" else "h|λ|"
            at = f"{what} up to {self._found.value:.3g}, the limit is {self._found.limit:.5g}"
            foretold = f"linear stability foretold {self._found.round_trip:.1g} ({at})"
        warn(
            f"store='reverse' undid the layers to states with a relative error of {off:.2g}, at most "
            f"{most:g} is harmless, and the gradient is as wrong or worse; {foretold}. Use store='cpoints', more "
            "layers, a smaller T or smaller weights"
        )
