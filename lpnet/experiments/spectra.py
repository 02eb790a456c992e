"""9. Antisymmetric and Hamiltonian layers have the eigenvalues of their Jacobian on the imaginary axis.

    dense            J = D K                        anywhere
    antisymmetric    J = D (K − Kᵀ)                 similar to D^½ (K − Kᵀ) D^½, antisymmetric
    Hamiltonian      J = (0, D₂Kᵀ; −D₁K, 0)         λ² is an eigenvalue of −D₂KᵀD₁K, similar to a negative matrix
    second order     J = (0, I; −KᵀDK, 0)           λ² is an eigenvalue of −KᵀDK
    double symmetric J = −KᵀDK                      symmetric, negative

with D = diag(σ'). Source: Haber, Ruthotto, Stable architectures for deep neural networks (2017).
"""

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.func import jacrev, vmap

from lpnet import dynamics
from lpnet.experiments import style
from lpnet.experiments.base import Context, Result
from lpnet.experiments.models import F64

KINDS: dict[str, type[dynamics.Dynamics]] = {
    "dense": dynamics.Dense,
    "antisymmetric": dynamics.Antisymmetric,
    "Hamiltonian": dynamics.Hamiltonian,
    "second order": dynamics.SecondOrder,
    "double symmetric": dynamics.DoubleSymmetric,
}
ON_AXIS = ("antisymmetric", "Hamiltonian", "second order")


def run(context: Context) -> Result:
    """Eigenvalues of the Jacobians of random layers at random states."""
    width, layers, examples = 16, context.pick(20, 5), 10
    found = {name: _eigenvalues(context, name, width, layers, examples) for name in KINDS}
    numbers = {
        "largest_real_part": {name: float(np.abs(values.real).max()) for name, values in found.items()},
        "rightmost": {name: float(values.real.max()) for name, values in found.items()},
        "largest_imaginary_part": {name: float(np.abs(values.imag).max()) for name, values in found.items()},
        "largest": {name: float(np.abs(values).max()) for name, values in found.items()},
    }
    settings = {"width": width, "layers": layers, "examples": examples, "weights": "normal, variance 1/width"}
    return Result(numbers, _see(numbers), lambda: _draw(found), settings)


def _eigenvalues(context: Context, name: str, width: int, layers: int, examples: int) -> np.ndarray:
    rng, found = context.rng(f"spectra/{name}"), []
    for _ in range(layers):
        module = KINDS[name](width=width).to(F64)
        with torch.no_grad():
            for p in module.parameters():
                p.copy_(torch.from_numpy(rng.standard_normal(p.shape)) / np.sqrt(width))
        y, z = (torch.from_numpy(rng.standard_normal((examples, width))) for _ in range(2))
        found.append(torch.linalg.eigvals(_jacobian(module, y, z)).flatten())
    values: np.ndarray = torch.cat(found).numpy()
    return values


def _jacobian(module: nn.Module, y: Tensor, z: Tensor) -> Tensor:
    """The Jacobian of all that moves, (examples, n, n): of y, of (y, z), or of (y, dy/dt)."""
    terms: Any = getattr(module, "terms", ("f",))
    if "kick" not in terms:
        return _of(module, y)
    kick = _of(module.kick, y)
    drift = _of(module.drift, z) if "drift" in terms else torch.eye(y.shape[1], dtype=F64).expand_as(kick)
    zero = torch.zeros_like(kick)
    return torch.cat([torch.cat([zero, drift], 2), torch.cat([kick, zero], 2)], 1)


def _of(f: Any, y: Tensor) -> Tensor:
    found: Tensor = vmap(jacrev(lambda one: f(one[None])[0]))(y).detach()
    return found


def _see(numbers: dict[str, Any]) -> str:
    real, right, size = (numbers[key] for key in ("largest_real_part", "rightmost", "largest"))
    axis = ", ".join(f"{name} {real[name]:.0e}" for name in ON_AXIS)
    double, imaginary = right["double symmetric"], numbers["largest_imaginary_part"]["double symmetric"]
    return (
        "Eigenvalues of the Jacobian of random layers at random states. Those of the plain dense layer surround the "
        f"origin and reach {right['dense']:.2f} to the right: the features of some inputs grow. Those of the others "
        f"stay on the imaginary axis whatever the weights are; max |Re λ| is at rounding level: {axis} (with |λ| up "
        f"to {max(size[name] for name in ON_AXIS):.1f}). The double symmetric layer is parabolic: its eigenvalues "
        f"are real (|Im λ| at most {imaginary:.2g}) and negative (the rightmost is {double:.0e}), so no distance "
        "between features grows."
    )


def _draw(found: dict[str, np.ndarray]) -> Figure:
    columns = len(found)
    figure, axes = style.figure(
        "Eigenvalues of the Jacobian, by dynamics", (1, columns), (2.7 * columns, 4.0), sharex=True, sharey=True
    )
    for i, (ax, (name, values)) in enumerate(zip(axes[0], found.items(), strict=True)):
        _cloud(ax, values, i)
        real, imaginary = np.abs(values.real).max(), np.abs(values.imag).max()
        said = f"max |Im λ| = {imaginary:.2g}" if name == "double symmetric" else f"max |Re λ| = {real:.2g}"
        style.axis(ax, f"{name}\n{said}", "Re λ (1/time)", "")
    axes[0][0].set_ylabel("Im λ (1/time)")
    return figure


def _cloud(ax: Axes, values: np.ndarray, i: int) -> None:
    ax.scatter(values.real, values.imag, s=6, color=style.OKABE_ITO[i], alpha=0.5, linewidths=0)
    ax.axvline(0, color="0.4", linewidth=0.8, zorder=0)
