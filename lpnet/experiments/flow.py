"""8. Whether a flow forgets or amplifies is decided by the eigenvalues of its Jacobian.

    y' = tanh(Ky),    J(y) = diag(tanh'(Ky)) K,    growth(t) = |y(t; y₀ + εv) − y(t; y₀)| / ε

for K = αI + R with R a rotation: all eigenvalues of J have the sign of α in their real part.
"""

from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lpnet import dynamics
from lpnet.experiments import style
from lpnet.experiments.base import Context, Result
from lpnet.experiments.models import F64, chain, constant, finest, states

T, OMEGA, EPS = 12.0, 1.5, 1e-7
KINDS = {"growing": 0.3, "neutral": 0.0, "decaying": -0.3}


def run(context: Context) -> Result:
    """Follow neighbouring trajectories of three flows, and the eigenvalues along them; collective."""
    layers, examples = context.pick(2000, 400), 12
    rng = context.rng("flow")
    y0 = torch.from_numpy(0.5 * rng.standard_normal((examples, 2)))
    v = torch.from_numpy(rng.standard_normal((examples, 2)))
    v = EPS * v / v.norm(dim=1, keepdim=True)
    found = {name: _follow(context, alpha, y0, v, layers) for name, alpha in KINDS.items()}
    t = np.linspace(0, T, layers + 1)
    keep = slice(None, None, layers // 100)
    numbers = {
        "growth_at_T": {name: float(one["growth"][-1]) for name, one in found.items()},
        "largest_real_part": {name: float(one["eigenvalues"].real.max()) for name, one in found.items()},
        "least_real_part": {name: float(one["eigenvalues"].real.min()) for name, one in found.items()},
        "t": t[keep],
        "growth": {name: one["growth"][keep] for name, one in found.items()},
    }
    settings = {"T": T, "layers": layers, "stepper": type(finest()).__name__, "alpha": KINDS, "omega": OMEGA}
    settings |= {"examples": examples, "epsilon": EPS, "growth": "geometric mean over examples"}
    return Result(numbers, _see(numbers), lambda: _draw(t, found), settings)


def _follow(context: Context, alpha: float, y0: Tensor, v: Tensor, layers: int) -> dict[str, np.ndarray]:
    K = torch.tensor([[alpha, OMEGA], [-OMEGA, alpha]], dtype=F64)
    trunk = constant(chain(context, dynamics.Dense(2), layers, T, finest()), {"K": K, "b": torch.zeros(2, dtype=F64)})
    y = states(trunk, y0)
    growth = (states(trunk, y0 + v) - y).norm(dim=2) / EPS
    slopes = 1 - torch.tanh(y[:: layers // 100] @ K.T).square()
    return {
        "path": y[:, 0].numpy(),
        "growth": growth.log().mean(dim=1).exp().numpy(),
        "eigenvalues": torch.linalg.eigvals(slopes[..., None] * K).flatten().numpy(),
    }


def _see(numbers: dict[str, Any]) -> str:
    growth, high, low = (numbers[key] for key in ("growth_at_T", "largest_real_part", "least_real_part"))
    return (
        "Three flows y' = tanh(Ky) that differ in the sign of Re λ(K) alone. Right: the eigenvalues of the Jacobian "
        f"along 12 trajectories: with growing K their real parts are positive (up to {high['growing']:.2f}), with "
        f"decaying K negative (down to {low['decaying']:.2f}), with neutral K at rounding level (|Re λ| at most "
        f"{max(abs(high['neutral']), abs(low['neutral'])):.1g}). Middle: a perturbation of the input accordingly "
        f"grows {growth['growing']:.1f}-fold until T = {T:g}, or shrinks to {growth['decaying']:.3f} of its size; in "
        f"the neutral flow it is {growth['neutral']:.1f}-fold, since neighbours on a closed orbit drift apart in "
        "proportion to time and not exponentially. A network should neither amplify noise nor forget its input: "
        "real parts near zero."
    )


def _draw(t: np.ndarray, found: dict[str, dict[str, np.ndarray]]) -> Figure:
    figure, axes = style.figure("Stability of the flow: eigenvalues decide on growth", (1, 3), (12.5, 4.3))
    left, middle, right = axes[0]
    for i, (name, one) in enumerate(found.items()):
        color, line = style.OKABE_ITO[(5, 2, 0)[i]], style.LINES[i]
        left.plot(*one["path"].T, color=color, linestyle=line, linewidth=1.6, label=f"{name} (α = {KINDS[name]:g})")
        left.plot(*one["path"][-1], color=color, marker=style.MARKERS[i])
        middle.plot(t, one["growth"], color=color, linestyle=line, linewidth=1.8, label=name)
        values = one["eigenvalues"]
        look: dict[str, Any] = {"color": color, "marker": style.MARKERS[i], "s": 9, "alpha": 0.6, "linewidths": 0}
        right.scatter(values.real, values.imag, label=name, **look)
    left.plot(*next(iter(found.values()))["path"][0], color="black", marker="*", markersize=10, linestyle="none")
    style.axis(left, "One trajectory (star: input)", "feature 1", "feature 2").set_aspect("equal", adjustable="datalim")
    style.axis(middle, "Growth of a perturbation of the input", "time t", "|δy(t)| / |δy(0)|")
    style.log(middle, "y")
    style.axis(right, "Eigenvalues of the Jacobian along the way", "Re λ (1/time)", "Im λ (1/time)")
    right.axvline(0, color="0.4", linewidth=0.8)
    style.legend(left, loc="best")
    style.legend(middle, loc="best")
    return figure
