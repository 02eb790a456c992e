"""Linear layers as one block-bidiagonal system, and solvers of it.

    u_{j+1} − Φ_j u_j = g_j,   j = 0, …, N − 1,   u_0 given;      Φ_j = I + h K_j,   g_j = h b_j

Between two C-points all unknowns are eliminated by m exact steps, which leaves a system of the same form on the
C-points, c_{k+1} − F_k c_k = ĝ_k. Its residual is that of the whole system after an F-sweep, and is what
`lpnet.mgrit.Info` reports:

    r = ( Σ_k |F_k c_k + ĝ_k − c_{k+1}|² / Σ_k |c_k|² )^½
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.linalg import gmres
from torch import Tensor, nn

from lpnet import MGRIT, LayerParallel, Serial
from lpnet.experiments.base import Context
from lpnet.experiments.models import F64
from lpnet.options import SolverOptions

WIDTH = 4


class Affine(nn.Module):
    """f(y) = Ky + b, as a user would write it."""

    def __init__(self) -> None:
        super().__init__()
        self.K = nn.Parameter(torch.zeros(WIDTH, WIDTH))
        self.b = nn.Parameter(torch.zeros(WIDTH))

    def forward(self, y: Tensor) -> Tensor:
        return y @ self.K.T + self.b


@dataclass(frozen=True)
class System:
    """The system of N layers, u_0 included.

    Args:
        Phi: (N, w, w).
        g: (N, w).
        u0: (w,).
    """

    Phi: np.ndarray
    g: np.ndarray
    u0: np.ndarray

    def __len__(self) -> int:
        return len(self.g)

    def reduced(self, m: int) -> "System":
        """The system of the C-points, each m layers apart (m divides N)."""
        Phi, g = self.Phi[::m], self.g[::m]
        for i in range(1, m):
            Phi, g = self.Phi[i::m] @ Phi, (self.Phi[i::m] @ g[..., None])[..., 0] + self.g[i::m]
        return System(Phi, g, self.u0)

    def substituted(self) -> np.ndarray:
        """u_0, …, u_N by forward substitution, (N + 1, w)."""
        u = [self.u0]
        for Phi, g in zip(self.Phi, self.g, strict=True):
            u.append(Phi @ u[-1] + g)
        return np.stack(u)

    def matrix(self) -> csr_array:
        """A of A (u_1, …, u_N) = (g_0 + Φ_0 u_0, g_1, …)."""
        n, w = self.g.shape
        A = np.eye(n * w)
        for j in range(1, n):
            A[j * w : (j + 1) * w, (j - 1) * w : j * w] = -self.Phi[j]
        return csr_array(A)

    def relative(self, u: np.ndarray) -> float:
        """Residual of states u_0, …, u_n (n + 1, w), as `Info` has it."""
        n = len(u) - 1
        r = (self.Phi[:n] @ u[:-1, :, None])[..., 0] + self.g[:n] - u[1:]
        return float(np.linalg.norm(r) / np.linalg.norm(u[1:]))


def weights(context: Context, layers: int, T: float) -> dict[str, Tensor]:
    """K (N, w, w), antisymmetric, and b (N, w) of a flow that neither grows nor decays, slowly varying in time."""
    rng = context.rng("parallel")
    A = torch.from_numpy(rng.standard_normal((3, WIDTH, WIDTH)))
    b = torch.from_numpy(rng.standard_normal((3, WIDTH)))
    t = (torch.arange(layers, dtype=F64) + 0.5) * (T / layers)
    waves = torch.stack([torch.ones_like(t), torch.sin(t), torch.cos(t)], dim=1)
    return {"K": torch.tensordot(waves, (A - A.mT) / 4, dims=1), "b": torch.tensordot(waves, b, dims=1)}


def system(context: Context, layers: int, T: float) -> System:
    """The system of these weights."""
    theta, h = weights(context, layers, T), T / layers
    Phi = torch.eye(WIDTH, dtype=F64) + h * theta["K"]
    return System(Phi.numpy(), (h * theta["b"]).numpy(), np.ones(WIDTH))


@torch.no_grad()
def solved(context: Context, layers: int, T: float, options: SolverOptions) -> tuple[np.ndarray, list[float]]:
    """u_N and the residuals by lpnet; collective."""
    trunk = LayerParallel(Affine(), layers, T, None, options, Serial(), comm=context.comm, dtype=F64)
    trunk.load_state_dict(weights(context, layers, T))
    out = trunk(torch.ones(1, WIDTH, dtype=F64))[0].numpy()
    found = trunk.info.forward
    return out, [] if found is None else list(found.residuals)


def mgrit(m: int, cycles: int) -> MGRIT:
    """Two levels, F-relaxation, from C-points that are all u_0."""
    return MGRIT(m, 2, cycles, initial="constant")


def relaxation(system: System, sweeps: int) -> list[float]:
    """Residuals of block Jacobi, u_{k+1} ← Φ_k u_k + g_k for all k at once, from u_k = u_0; without the last point."""
    n = len(system) - 1
    u = np.tile(system.u0, (n + 1, 1))
    found = [system.relative(u)]
    for _ in range(sweeps):
        u[1:] = (system.Phi[:n] @ u[:-1, :, None])[..., 0] + system.g[:n]
        found.append(system.relative(u))
    return found


def krylov(system: System, iterations: int) -> list[float]:
    """Residuals of GMRES without restarts, from u_k = u_0; without the last point."""
    n = len(system) - 1
    part = System(system.Phi[:n], system.g[:n], system.u0)
    right = part.g.copy()
    right[0] += part.Phi[0] @ part.u0
    start = np.tile(part.u0, (n, 1))
    norms = [part.relative(np.concatenate([part.u0[None], start]))]
    first, size = float(np.linalg.norm(right)), float(np.linalg.norm(part.substituted()[1:]))
    gmres(
        part.matrix(),
        right.ravel(),
        start.ravel(),
        rtol=1e-13,
        restart=iterations,
        maxiter=1,
        callback=lambda r: norms.append(float(r) * first / size),  # r is relative to the right-hand side
        callback_type="pr_norm",
    )
    return norms


def count(residuals: list[float], wanted: float) -> int | None:
    """The first iteration with a residual of at most so much."""
    return next((i for i, r in enumerate(residuals) if r <= wanted), None)
