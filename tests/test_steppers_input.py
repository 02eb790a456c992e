"""What steppers cannot honour: one line that names the key, the value, and what is allowed; and who else asks them."""

from typing import Any

import pytest
import torch
from by_hand import WIDTH, trunk
from reference import normal
from small_runs import Silent, network

import lpnet
from lpnet import MGRIT, InputError
from lpnet.cost import UNIT, Costs
from lpnet.measure import measure
from lpnet.steppers import AB3, REGISTRY, RK4, Euler, Leapfrog, Stepper, Verlet
from lpnet.training.evaluation import evaluate
from lpnet.training.loop import fit

KINDS = {("f",): "dense", ("kick",): "second_order"}


def said(call: Any) -> str:
    with pytest.raises(InputError) as caught:
        call()
    return str(caught.value)


@pytest.mark.parametrize("stepper", [Euler(), RK4(), AB3()])
def test_irreversible_steppers_cannot_be_reversed(stepper: Stepper) -> None:
    assert said(lambda: trunk("dense", stepper, 8, store="reverse")) == (
        f"store: 'reverse' given with {type(stepper).__name__}, which is not reversible; 'all' or 'cpoints' allowed "
        "(or the steppers Verlet and Leapfrog)"
    )


def test_unknown_stores() -> None:
    assert said(lambda: trunk("dense", Euler(), 8, store="none")) == (
        "store: 'none' given, one of all, cpoints, reverse allowed"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"samples": 2}, "samples: 2 given with AB3, 1 allowed"),
        ({"samples": 9}, "samples: 9 given with AB3, 1 allowed"),
        ({"coarse": "rediscretized"}, "coarse: 'rediscretized' given with AB3, 'matched' allowed"),
        ({"coarse_weights": "inject"}, "coarse_weights: 'inject' given with AB3, 'mean' allowed"),
        ({"passes": 2}, "passes: 2 given with AB3, none allowed"),
    ],
)
def test_the_coarse_step_of_ab3_is_one_of_its_kind(options: dict[str, Any], words: str) -> None:
    for way in ("forward", "adjoint"):
        solver = {way: MGRIT(coarsening=4, **options)}
        assert said(lambda solver=solver: trunk("dense", AB3(), 8, **solver)) == words
    assert AB3().refusal(MGRIT(coarsening=4, **options)) == words
    assert AB3().refusal(MGRIT(coarsening=2)) is None


@pytest.mark.parametrize("stepper", [RK4(), AB3(), Verlet(), Leapfrog()])
def test_passes_are_euler_s(stepper: Stepper) -> None:
    words = f"passes: 2 given with {type(stepper).__name__}, none allowed"
    assert said(lambda: stepper.check(MGRIT(passes=2))) == words
    Euler().check(MGRIT(passes=2))


# ---- what asks every stepper -----------------------------------------------------------------------------------------


each_stepper = pytest.mark.parametrize("name", [n for n in REGISTRY if n != "verlet"])


@each_stepper
@pytest.mark.parametrize("costs", [UNIT, Costs(latency=0.3, overhead=0.5)])
def test_plans_are_made_for_every_stepper(name: str, costs: Costs) -> None:
    """With solvers that it takes."""
    stepper = REGISTRY[name]()
    made = trunk(KINDS[stepper.terms], stepper, 40)
    found = lpnet.plan(made, normal(4, WIDTH), 0.1, 8, costs=costs)
    made.steer(found.forward, found.adjoint, None)
    assert found.gradient_error <= 0.05
    assert found.predicted <= min(c.predicted for c in found.runners_up)


@each_stepper
@pytest.mark.parametrize("layers", [1, 2, 20])
def test_costs_are_measured_of_every_stepper(name: str, layers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpnet.calibration.SECONDS", 0.0)
    stepper = REGISTRY[name]()
    found = measure(trunk(KINDS[stepper.terms], stepper, layers, T=0.1 * layers), normal(5, WIDTH))
    assert min(found.fine, found.pull, found.gradient) > 0


@pytest.mark.parametrize(
    "arguments",
    [
        ("--trunk.stepper=rk4",),
        ("--trunk.stepper=ab3", "--trunk.dynamics=antisymmetric", "--trunk.T=1"),
        ("--trunk.dynamics=second_order", "--trunk.T=1"),
    ],
)
def test_configurations_train_with_them(arguments: tuple[str, ...]) -> None:
    net, examples = network(*arguments)
    before, log = evaluate(net, examples), Silent()
    after = fit(net, examples, log)
    assert len(log.records) == 6
    assert after["train_loss"] < before["train_loss"]
    assert after["train_accuracy"] > 0
    plain = torch.nn.functional.cross_entropy(net.as_sequential()(examples.train_x), examples.train_y)
    assert after["train_loss"] == pytest.approx(plain.item(), rel=1e-12)
