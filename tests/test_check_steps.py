"""`lpnet.check` of layers with steppers: stability and order."""

from typing import Any

import numpy as np
import pytest
import torch
from reference import F64
from torch import Tensor, nn
from user_layers import Linear

import lpnet
from lpnet.steppers import AB3, REGISTRY, RK4, Euler, Leapfrog, Mix, Stage, Stepper, Steps, Verlet


class Oscillator(nn.Module):
    """Frequencies up to 3."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([1.0, 3.0], dtype=F64))

    def forward(self, y: Tensor) -> Tensor:
        u, v = y.chunk(2, 1)
        return torch.cat([self.w * v, -self.w * u], 1)


class Partitioned(Oscillator):
    def kick(self, y: Tensor) -> Tensor:
        return -self.w * y

    def drift(self, z: Tensor) -> Tensor:
        return self.w * z


class Kicked(Oscillator):
    def kick(self, y: Tensor) -> Tensor:
        return -(self.w**2) * y


@pytest.mark.parametrize(
    ("module", "stepper", "limit"),
    [(Oscillator, RK4(), 2.828), (Oscillator, AB3(), 0.72363), (Partitioned, Verlet(), 2), (Kicked, Leapfrog(), 2)],
)
def test_largest_step_is_the_limit_over_the_frequency(module: Any, stepper: Stepper, limit: float) -> None:
    features = 4 if module is Oscillator else 2
    report = lpnet.check(module(), stepper, features=features)
    assert report["stability"].value == pytest.approx(limit / 3, rel=0.03)
    assert "|Im λ| up to 3" in report["spectrum"].text
    assert report.ok
    beyond = lpnet.check(module(), stepper, features=features, h=1.1 * limit / 3)
    assert beyond["stability"].status == "note"
    assert "grow by a factor" in beyond["stability"].text
    if stepper.reversible:
        assert beyond["reversal"].status == "failed"
        assert "0 < αβ < 4 fails" in beyond["reversal"].text


def test_steps_too_long_for_a_coarse_grid_are_told() -> None:
    report = lpnet.check(Partitioned(), Verlet(), features=2, h=0.6)
    assert report.ok
    assert (report["coarse"].status, report["coarse"].value > 2.85) == ("note", True)
    assert "take a smaller h" in report["coarse"].text
    assert lpnet.check(Partitioned(), Verlet(), features=2, h=0.02)["coarse"].status == "ok"


def test_euler_on_an_oscillator_is_never_stable() -> None:
    report = lpnet.check(Oscillator(), features=4)
    assert (report["stability"].status, report["stability"].value) == ("note", 0.0)
    assert report.ok


class Heun(Stepper):
    """Order 2; |R(iω)|² = 1 + ω⁴/4."""

    order = 2  # type: ignore[assignment]

    def stages(self, h: float) -> Steps:
        return (Stage("f", 0, 1, h, start=0), Mix(0, ((0, 0.5), (1, 0.5))), Stage("f", 1, 0, h / 2))

    def coarse(self, lengths: tuple[int, ...], h: float, options: lpnet.MGRIT) -> Steps:
        return self.stages(sum(lengths) * h)


def test_growth_by_a_high_power_is_growth() -> None:
    """ω = 3, h = 1/30: ½ log(1 + 0.1⁴/4) / h."""
    for h in (None, 0.001):
        report = lpnet.check(Oscillator(), Heun(), features=4, h=h)
        assert (report["stability"].status, report["stability"].value) == ("note", 0.0)
        rate = f"{np.log1p(0.1**4 / 4) / 2 * 30:.1e}"
        assert f"grow for every h, like exp({rate} t) at h = 0.0333" in report["stability"].text
    assert report.ok


class Slow(Heun):
    """Half of Euler's step, which is no method at all."""

    order = 4  # type: ignore[assignment]

    def stages(self, h: float) -> Steps:
        return (Stage("f", 0, 0, h / 2),)


def test_order_is_measured() -> None:
    report = lpnet.check(Linear(), Slow())
    assert not report.ok
    assert "Slow has order 0" in report["order"].text
    assert "4 declared" in report["order"].text
    fitting = {("f",): Linear, ("kick", "drift"): Partitioned, ("kick",): Kicked}
    for one in (*(kind() for kind in REGISTRY.values()), Heun(), Verlet("zero")):
        found = lpnet.check(fitting[one.terms](), one, features=4 if one.terms == ("f",) else 2)["order"]
        assert found.status == "ok"
        assert found.value == pytest.approx(one.order, abs=0.3)


def test_growth_of_the_flow_itself_is_told() -> None:
    report = lpnet.check(nn.Linear(1, 1, bias=False).requires_grad_(True), features=1)
    growing = nn.Linear(1, 1, bias=False)
    nn.init.constant_(growing.weight, 0.7)
    report = lpnet.check(growing)
    assert report["spectrum"].value == pytest.approx(0.7)
    assert "grow like exp(0.7 t)" in report["spectrum"].text
    assert report["stability"].status == "ok"


def test_steppers_that_do_not_fit() -> None:
    report = lpnet.check(Partitioned(), Leapfrog(), features=2)
    assert "needs kick() alone and would leave out the rest" in report["stepper"].text
    assert "lpnet.steppers.Verlet()" in report["stepper"].text
    assert "which needs forward()" in lpnet.check(Kicked(), Euler(), features=2)["stepper"].text

    class Drifting(Oscillator):
        terms = ("drift",)

        def drift(self, z: Tensor) -> Tensor:
            return self.w * z

    assert lpnet.check(Drifting(), features=2).stepper == "none"
