"""Conjugate gradients against dense matrices, scipy, and the exact solution of the trust-region problem."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import scipy.optimize
import scipy.sparse.linalg
import torch
from descent import flat
from hypothesis import given
from hypothesis import strategies as st
from reference import F64, normal
from torch import Tensor, nn

from lpnet import InputError
from lpnet.optim import PCG

SHAPES = ((2, 3), (4,), ())  # parameters of several shapes: vectors of 11 numbers
THETA = [nn.Parameter(torch.zeros(shape, dtype=F64)) for shape in SHAPES]
SIZE = sum(p.numel() for p in THETA)


def vector_of(a: np.ndarray) -> list[Tensor]:
    parts = torch.from_numpy(a).split([p.numel() for p in THETA])
    return [part.reshape(p.shape) for part, p in zip(parts, THETA, strict=True)]


def operator(matrix: np.ndarray) -> Callable[[list[Tensor]], list[Tensor]]:
    return lambda v: vector_of(matrix @ flat(v))


def positive(seed: int, condition: float = 10.0) -> np.ndarray:
    basis = np.linalg.qr(normal(SIZE, SIZE, seed=seed).numpy())[0]
    return basis @ np.diag(np.geomspace(1, condition, SIZE)) @ basis.T


def steihaug(B: np.ndarray, g: np.ndarray, radius: float) -> np.ndarray:
    """The algorithm of the paper, in numpy, without a preconditioner."""
    p, r = np.zeros_like(g), -g
    d = r
    for _ in range(len(g)):
        curvature = d @ B @ d
        a = r @ r / curvature if curvature > 0 else math.inf
        if np.linalg.norm(p + min(a, 1e30) * d) >= radius:
            roots = np.roots([d @ d, 2 * p @ d, p @ p - radius**2])
            return p + max(roots.real) * d
        p, new = p + a * d, r - a * B @ d
        d, r = new + (new @ new) / (r @ r) * d, new
    return p


@pytest.mark.parametrize("preconditioned", [False, True])
def test_a_system_is_solved_in_n_steps(preconditioned: bool) -> None:
    B, g, M = positive(1), normal(SIZE, seed=2).numpy(), positive(3, 3.0)
    M_inverse = operator(np.linalg.inv(M)) if preconditioned else None
    p, report = PCG(iterations=SIZE, tol=0.0).solve(operator(B), vector_of(g), THETA, M_inverse)
    np.testing.assert_allclose(flat(p), np.linalg.solve(B, -g), atol=1e-6)
    assert (report.iterations, report.stop) == (SIZE, "iterations")
    assert len(report.residuals) == SIZE + 1
    assert report.residuals[0] == 1.0
    assert report.residuals[-1] < 1e-5


def test_rounding_is_not_amplified() -> None:
    """By far more in plain conjugate gradients, once the largest eigenvalues have converged."""
    B, g = positive(1, 1e8), normal(SIZE, seed=2).numpy()
    found = []
    for change in (0.0, 1e-15):
        p, _ = PCG(iterations=SIZE - 3, tol=0.0).solve(operator(B), vector_of(g * (1 + change * g)), THETA)
        found.append(flat(p))
    assert np.linalg.norm(found[0] - found[1]) < 1e-9 * np.linalg.norm(found[0])
    p, _ = PCG(iterations=SIZE, tol=0.0).solve(operator(B), vector_of(g), THETA)
    np.testing.assert_allclose(flat(p), np.linalg.solve(B, -g), rtol=1e-5)


def test_every_iterate_is_that_of_scipy() -> None:
    B, g, M = positive(1), normal(SIZE, seed=2).numpy(), np.linalg.inv(positive(3, 3.0))
    iterates: list[np.ndarray] = []
    scipy.sparse.linalg.cg(B, -g, rtol=1e-3, M=M, callback=lambda p: iterates.append(p.copy()))
    for k, expected in enumerate(iterates, 1):
        p, report = PCG(iterations=k, tol=0.0).solve(operator(B), vector_of(g), THETA, operator(M))
        np.testing.assert_allclose(flat(p), expected, atol=1e-5)
        residual = np.linalg.norm(B @ expected + g) / np.linalg.norm(g)
        assert report.residuals[-1] == pytest.approx(residual, rel=1e-3)
    _, report = PCG(iterations=SIZE, tol=1e-3).solve(operator(B), vector_of(g), THETA, operator(M))
    assert (report.iterations, report.stop) == (len(iterates), "tol")


def test_the_matched_preconditioner_needs_one_step() -> None:
    B, g = positive(1), normal(SIZE).numpy()
    p, report = PCG(tol=1e-10).solve(operator(B), vector_of(g), THETA, operator(np.linalg.inv(B)))
    assert (report.iterations, report.stop) == (1, "tol")
    np.testing.assert_allclose(flat(p), np.linalg.solve(B, -g), rtol=1e-9)


def trust_region(B: np.ndarray, g: np.ndarray, radius: float) -> np.ndarray:
    """The minimiser of g·p + ½ p·B p in |p| ≤ radius, from the eigenvalues (B positive definite)."""
    values, basis = np.linalg.eigh(B)
    size = lambda shift: np.linalg.norm((basis.T @ g) / (values + shift))  # noqa: E731
    shift = 0.0
    if size(0.0) > radius:
        shift = scipy.optimize.brentq(lambda s: size(s) - radius, 0.0, np.linalg.norm(g) / radius, xtol=1e-14)
    return -basis @ ((basis.T @ g) / (values + shift))


@given(st.floats(1e-3, 1e3), st.integers(0, 20), st.sampled_from([1.0, 10.0, 1e4]))
def test_within_a_radius_at_least_half_of_the_best_decrease(radius: float, seed: int, condition: float) -> None:
    """Yuan, On the truncated conjugate gradient method (2000)."""
    B, g = positive(seed, condition), normal(SIZE, seed=seed + 100).numpy()
    model = lambda p: g @ p + 0.5 * p @ B @ p  # noqa: E731
    found, report = PCG(iterations=2 * SIZE, tol=1e-10, radius=radius).solve(operator(B), vector_of(g), THETA)
    p, best = flat(found), trust_region(B, g, radius)
    assert np.linalg.norm(p) <= radius * (1 + 1e-12)
    assert model(p) <= 0.5 * model(best) * (1 - 1e-12)
    if report.stop == "tol":
        np.testing.assert_allclose(p, best, rtol=1e-5, atol=1e-8 * np.linalg.norm(best))
    else:
        assert report.stop == "radius"
        assert np.linalg.norm(p) == pytest.approx(radius)


@pytest.mark.parametrize("radius", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("lowest", [-3.0, 1.0])
def test_the_steps_are_those_of_steihaug(radius: float, lowest: float) -> None:
    basis = np.linalg.qr(normal(SIZE, SIZE).numpy())[0]
    B, g = basis @ np.diag(np.linspace(lowest, 5.0, SIZE)) @ basis.T, normal(SIZE, seed=1).numpy()
    p, _ = PCG(iterations=SIZE, tol=0.0, radius=radius).solve(operator(B), vector_of(g), THETA)
    np.testing.assert_allclose(flat(p), steihaug(B, g, radius), rtol=1e-7)


def test_the_radius_is_in_the_norm_of_the_preconditioner() -> None:
    """Preconditioning by M = LLᵀ is the plain method for L⁻¹BL⁻ᵀ and L⁻¹g, in which |Lᵀp| is the norm."""
    B, g, M = positive(1), normal(SIZE, seed=2).numpy(), positive(3, 3.0)
    L = np.linalg.cholesky(M)
    inverse = np.linalg.inv(L)
    for radius in (1e-2, 0.3, 100.0):
        p, _ = PCG(30, 1e-9, radius).solve(operator(B), vector_of(g), THETA, operator(np.linalg.inv(M)))
        q, _ = PCG(30, 1e-9, radius).solve(operator(inverse @ B @ inverse.T), vector_of(inverse @ g), THETA)
        np.testing.assert_allclose(L.T @ flat(p), flat(q), rtol=1e-6)


@pytest.mark.parametrize("radius", [None, 2.0])
def test_without_curvature(radius: float | None) -> None:
    g = normal(SIZE).numpy()
    for B in (np.zeros((SIZE, SIZE)), -np.eye(SIZE)):
        p, report = PCG(radius=radius).solve(operator(B), vector_of(g), THETA)
        assert (report.iterations, report.stop) == (1, "curvature")
        length = 1.0 if radius is None else radius / np.linalg.norm(g)
        np.testing.assert_allclose(flat(p), -length * g, rtol=1e-12)
    # Curvature along g alone: the second direction has none, so the first step stands, or goes on to the boundary.
    g, B = np.ones(SIZE), np.diag(1.0 - 0.9 * np.arange(SIZE))
    B += (SIZE - np.trace(B)) / SIZE * np.ones_like(B)  # so that the first direction has curvature
    p, report = PCG(radius=radius).solve(operator(B), vector_of(g), THETA)
    assert (report.iterations, report.stop) == (2, "curvature")
    assert flat(p) @ g < 0
    if radius is not None:
        assert np.linalg.norm(flat(p)) == pytest.approx(radius)


def test_nothing_to_solve() -> None:
    p, report = PCG().solve(operator(positive(1)), vector_of(np.zeros(SIZE)), THETA)
    assert not flat(p).any()
    assert (report.iterations, report.stop, report.residuals) == (0, "tol", (0.0,))


@pytest.mark.parametrize(
    ("key", "call"),
    [
        ("iterations", lambda: PCG(iterations=0)),
        ("iterations", lambda: PCG(iterations=True)),
        ("tol", lambda: PCG(tol=-0.1)),
        ("tol", lambda: PCG(tol=1.0)),
        ("radius", lambda: PCG(radius=0.0)),
        ("radius", lambda: PCG(radius=math.inf)),
    ],
)
def test_bad_input(key: str, call: Callable[[], object]) -> None:
    with pytest.raises(InputError, match=rf"^{key}: .* given, .* allowed$"):
        call()
