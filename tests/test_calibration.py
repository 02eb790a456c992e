"""Costs are found again from the times of whole solves, and what is timed is the trunk itself."""

from typing import Any

import pytest
import torch
from reference import F64, normal

import lpnet
from lpnet import calibration
from lpnet.calibration import Timed, Trial, fitted, processor_time
from lpnet.cost import Costs, critical_path
from lpnet.options import MGRIT, Serial
from lpnet.slab import Comm
from lpnet.steppers import RK4, Euler, Stepper, Verlet

TRUE = Costs(2e-5, 1.5e-5, 1.25e-5, fixed=0.25, overhead=3e-5, call=5e-4, level=1e-4, point=1e-5)
TERMS = {"Verlet": lpnet.dynamics.Hamiltonian}


def trunk(stepper: Stepper, layers: int = 40) -> lpnet.LayerParallel:
    dynamics = TERMS.get(type(stepper).__name__, lpnet.dynamics.Dense)(4)
    return lpnet.LayerParallel(dynamics, layers, 2.0, stepper, init="random", comm=Comm(), dtype=F64)


class Modelled:
    """A solve that takes what the model says."""

    def __init__(self, one: lpnet.LayerParallel, batch: Any, trial: Trial) -> None:
        work = critical_path(one.stepper, trial.layers, 1, trial.solver, trial.solver, TRUE)
        self.times = work.forward, work.adjoint + work.gradient

    def __call__(self) -> tuple[float, float]:
        return self.times


@pytest.mark.parametrize("stepper", [Euler(), RK4(), Verlet()])
@pytest.mark.parametrize("layers", [24, 40])
def test_costs_are_found_again(stepper: Stepper, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "Timed", Modelled)
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    found, error = fitted(trunk(stepper), normal(8, 4), layers)
    assert error < 1e-9
    for name in (*calibration.FITTED, "fixed"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-6, abs=1e-12), name


@pytest.mark.parametrize("layers", [1, 2, 3, 7])
def test_few_layers_give_costs_too(layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where not all costs can be told apart, their sum in an exact step is right."""
    monkeypatch.setattr(calibration, "Timed", Modelled)
    monkeypatch.setattr(calibration, "SECONDS", 0.0)
    found, _ = fitted(trunk(Euler(), 7), normal(1, 4), layers)
    both = [critical_path(Euler(), layers, 1, Serial(), Serial(), costs).total for costs in (found, TRUE)]
    assert both[0] == pytest.approx(both[1], rel=0.02)


@pytest.mark.parametrize("layers", [5, 12])
def test_what_is_timed_is_the_beginning_of_the_trunk(layers: int) -> None:
    """The last layer is repeated where there are too few; the trunk itself is left alone."""
    whole, y = trunk(Euler(), 8), normal(3, 4)
    before = {name: value.clone() for name, value in whole.state_dict().items()}
    one = Timed(whole, y, Trial(layers, MGRIT(2, cycles=9)))
    plain = list(whole.as_sequential())
    x = y
    for layer in (plain + [plain[-1]] * layers)[:layers]:
        x = layer(x)
    torch.testing.assert_close(one.trunk(y), x, rtol=1e-11, atol=1e-12)
    forward, adjoint = one()
    assert forward > 0
    assert adjoint > 0
    assert all(torch.equal(value, before[name]) for name, value in whole.state_dict().items())
    assert all(p.grad is None for p in whole.parameters())
    assert whole.info.forward is None


def test_processor_time_is_for_one_thread() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = processor_time(torch.device("cpu"))
        torch.set_num_threads(2)
        assert processor_time(torch.device("cpu")) is not alone
    finally:
        torch.set_num_threads(threads)
