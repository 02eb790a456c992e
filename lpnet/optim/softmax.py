"""Softmax regression, the last layer of a network as a function of its weights M = (W, b) alone, which is convex:

    E(M) = 1/n Σ_i ℓ(M y_i, c_i) + ½ Σ_k α_k |M_k|²,    y_i = (features_i, 1),    ℓ(u, c) = log Σ_k exp u_k − c·u
    ∇E = 1/n (p − c)ᵀ y + M α,    p = softmax(M y),    α_k the weight decay of column k of M
    ∇²E V = 1/n rᵀ y + V α,       r = p ∘ u − p (p·u),    u = V y

The Hessian is a graph Laplacian over the classes, with the blocks −1/n Σ_i p_k p_l y_i y_iᵀ off the diagonal; those on
it are found as sums of the others, so that nothing cancels where p is nearly 0 or 1.

Everything is local and in float64: all ranks hold the same features, and find the same.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, cg
from torch import Tensor

from lpnet.errors import InputError

DENSE = 500
"""Number of weights up to which Newton systems are solved by the eigenvalues of the Hessian, above by CG."""

_RANK = 1e-14  # eigenvalues below this part of the largest are zero: a vector added to all classes changes nothing
_MOST_CG = 1000

Solve = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Point:
    """Value, gradient (classes, columns) and probabilities (n, classes) at M."""

    M: Tensor
    value: float
    gradient: Tensor
    p: Tensor


class Softmax:
    """The function E of one set of examples.

    Args:
        features: (n, width).
        label: (n,) numbers of classes, or (n, classes) probabilities.
        classes: their number.
        bias: whether M has a column for it, the last one.
        decay: α of the weights and of the bias.

    Raises:
        InputError: features or labels of another shape, labels that are no classes.
    """

    def __init__(
        self, features: Tensor, label: Tensor, classes: int, bias: bool = True, decay: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        if features.ndim != 2 or not len(features):
            raise InputError(f"features: {tuple(features.shape)} given, (batch, width) allowed")
        y = features.detach().double()
        self.y = torch.cat([y, torch.ones_like(y[:, :1])], dim=1) if bias else y
        self.c = _targets(label.detach(), len(y), classes).to(y.device)
        self.alpha = y.new_full((self.y.shape[1],), decay[0])
        if bias:
            self.alpha[-1] = decay[1]

    @property
    def scale(self) -> float:
        """Root of the mean of |y_i|²: no gradient of the misfit is longer than √2 times this."""
        return math.sqrt(float(self.y.square().sum()) / len(self.y))

    @property
    def bound(self) -> float:
        """At least the largest eigenvalue of ∇²E: that of the Hessian of ℓ is at most ½."""
        return 0.5 * self.scale**2 + float(self.alpha.max())

    def value(self, M: Tensor) -> float:
        """E(M)."""
        return float(self._value(M, self.y @ M.T))

    def of(self, features: Tensor, M: Tensor) -> Tensor:
        """E(M), differentiable in the features, which are those of the constructor."""
        u = features.double() @ M[:, : features.shape[1]].T
        return self._value(M, u if M.shape[1] == features.shape[1] else u + M[:, -1])

    def _value(self, M: Tensor, u: Tensor) -> Tensor:
        misfit = (torch.logsumexp(u, dim=1) - (self.c * u).sum(1)).mean()
        return misfit + self.decay(M)

    def decay(self, M: Tensor) -> float:
        """½ Σ_k α_k |M_k|²."""
        return 0.5 * float((M.square() @ self.alpha).sum())

    def at(self, M: Tensor) -> Point:
        """Value and gradient."""
        u = self.y @ M.T
        p = torch.softmax(u, dim=1)
        return Point(M, float(self._value(M, u)), (p - self.c).T @ self.y / len(self.y) + M * self.alpha, p)

    def product(self, p: Tensor, V: Tensor) -> Tensor:
        """∇²E V, (classes, columns), where the probabilities are p."""
        return curvature(p, self.y @ V.T).T @ self.y / len(self.y) + V * self.alpha

    def hessian(self, p: Tensor) -> Tensor:
        """∇²E as a matrix (classes · columns)², where the probabilities are p."""
        (n, classes), columns = p.shape, self.y.shape[1]
        Q = (p[:, :, None] * self.y[:, None, :]).reshape(n, classes * columns)
        blocks = (Q.T @ Q / n).reshape(classes, columns, classes, columns)
        for k in range(classes):
            blocks[k, :, k, :] -= blocks[k, :, k, :].clone()
            blocks[k, :, k, :] = -blocks[k].sum(dim=1)
        H = -blocks.reshape(classes * columns, classes * columns)
        return H + torch.diag(self.alpha.repeat(classes))

    def inverse(self, p: Tensor, tol: float) -> Solve:
        """B -> V of least length with ∇²E V = B, to the relative tolerance where it is found by CG."""
        if p.shape[1] * self.y.shape[1] > DENSE:
            return lambda B: self._by_cg(p, B, tol)
        values, vectors = torch.linalg.eigh(self.hessian(p))
        kept = values > _RANK * values[-1]
        values, vectors = values[kept], vectors[:, kept]
        return lambda B: (vectors @ ((vectors.T @ B.flatten()) / values)).reshape(B.shape)

    def _by_cg(self, p: Tensor, B: Tensor, tol: float) -> Tensor:
        """CG with the diagonal of the Hessian as preconditioner."""
        diagonal = (p * (1 - p)).T @ self.y.square() / len(self.y) + self.alpha
        inverse = 1 / (diagonal + _RANK * diagonal.max()).cpu().numpy().ravel()

        def product(v: np.ndarray) -> np.ndarray:
            V = torch.from_numpy(v.reshape(B.shape)).to(B)
            return self.product(p, V).cpu().numpy().ravel()

        like = (B.numel(), B.numel())
        H, D = LinearOperator(like, product, dtype=float), LinearOperator(like, lambda v: inverse * v, dtype=float)
        found, _ = cg(H, B.cpu().numpy().ravel(), rtol=tol, maxiter=_MOST_CG, M=D)
        return torch.from_numpy(found.reshape(B.shape)).to(B)


def curvature(p: Tensor, u: Tensor) -> Tensor:
    """(diag p − p pᵀ) u of every example, the Hessian of ℓ in the direction u; (n, classes)."""
    return p * (u - (p * u).sum(1, keepdim=True))


def _targets(label: Tensor, n: int, classes: int) -> Tensor:
    """Probabilities (n, classes) of the labels."""
    if label.is_floating_point() and label.shape == (n, classes):
        return label.double()
    if label.shape != (n,) or label.is_floating_point() or label.dtype == torch.bool:
        given = f"{tuple(label.shape)} of {label.dtype}"
        raise InputError(f"label: {given} given, ({n},) numbers of classes or ({n}, {classes}) probabilities allowed")
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= classes:
        raise InputError(f"label: numbers from {low} to {high} given, 0 to {classes - 1} allowed")
    return torch.nn.functional.one_hot(label.long(), classes).double()
