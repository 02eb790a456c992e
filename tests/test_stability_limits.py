"""Whole trunks on linear flows that only turn: the norm stays below a stepper's limit and grows above it."""

import pytest
import torch
from reference import F64, normal
from torch import Tensor, nn

import lpnet
from lpnet import Serial
from lpnet.slab import Comm
from lpnet.stability import limit
from lpnet.steppers import AB3, RK4, Euler, Leapfrog, Stepper, Verlet

LAYERS = 400


class Turning(nn.Module):
    """y' = Ky, K antisymmetric with frequencies ω and 0.3 ω."""

    def __init__(self, omega: float) -> None:
        super().__init__()
        turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)
        self.K = nn.Parameter(omega * torch.block_diag(turn, 0.3 * turn))

    def forward(self, y: Tensor) -> Tensor:
        return y @ self.K.T


class Oscillator(nn.Module):
    """y' = Kᵀz, z' = −Ky: Hamiltonian, with the singular values of K as frequencies."""

    def __init__(self, omega: float) -> None:
        super().__init__()
        self.K = nn.Parameter(omega * torch.diag(torch.tensor([1.0, 0.3, -0.5, 0.8], dtype=F64)))

    def kick(self, y: Tensor) -> Tensor:
        return -y @ self.K.T

    def drift(self, z: Tensor) -> Tensor:
        return z @ self.K


class Spring(nn.Module):
    """y'' = −KᵀKy."""

    def __init__(self, omega: float) -> None:
        super().__init__()
        self.K = nn.Parameter(omega * torch.diag(torch.tensor([1.0, 0.3, -0.5, 0.8], dtype=F64)))

    def kick(self, y: Tensor) -> Tensor:
        return -y @ self.K.T @ self.K


FLOWS = {("f",): Turning, ("kick", "drift"): Oscillator, ("kick",): Spring}


def norms(stepper: Stepper, hw: float) -> tuple[float, float]:
    """|y_N| and |∂(c·y_N)/∂y_0| for |y_0| = |c| = 1, with frequency hω = hw; h = 1."""
    one, exact = FLOWS[stepper.terms](hw), (Serial(), Serial())
    made = lpnet.LayerParallel(one, LAYERS, float(LAYERS), stepper, *exact, comm=Comm(), dtype=F64)
    y, c = normal(1, 4), normal(1, 4, seed=1)
    leaf = (y / y.norm()).requires_grad_()
    out = made(leaf)
    out.backward(c / c.norm())
    assert leaf.grad is not None
    return out.detach().norm().item(), leaf.grad.norm().item()


@pytest.mark.parametrize(
    ("stepper", "below", "above"),
    [(AB3(), 0.72, 0.74), (RK4(), 2.82, 2.85), (Verlet(), 1.99, 2.01), (Leapfrog(), 1.99, 2.01)],
)
def test_bounded_below_the_limit_and_growing_above(stepper: Stepper, below: float, above: float) -> None:
    """Of states and of adjoints."""
    assert below < limit(stepper) < above
    assert max(norms(stepper, below)) < 15
    assert min(norms(stepper, above)) > 40


def test_the_flow_grows_with_forward_euler() -> None:
    """|1 + ihω| > 1: by (1 + (hω)²)^(N/2) in each plane."""
    assert limit(Euler()) == 0
    out, bar = norms(Euler(), 0.1)
    assert min(out, bar) > (1 + 0.03**2) ** (LAYERS / 2)
    assert max(out, bar) < (1 + 0.1**2) ** (LAYERS / 2)
    assert min(out, bar) > 2
