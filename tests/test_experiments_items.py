"""What the experiments find: the laws behind the pictures, on their quick versions, against independent numbers."""

from typing import Any

import numpy as np
import pytest

from lpnet.experiments import REGISTRY, Context
from lpnet.slab import Comm


def numbers(name: str) -> dict[str, Any]:
    return REGISTRY[name].run(Context(Comm(), quick=True)).numbers


def test_orders_are_as_stated() -> None:
    found = numbers("orders")
    assert found["resnet_difference"] < 1e-14
    assert found["largest_deviation"] < 0.15


def test_surface_is_rough_with_few_layers_and_smooth_with_many() -> None:
    found = numbers("surface")
    assert found["trunk_difference"] < 1e-13
    assert min(found["local_minima_of_stable_flows"][5]) >= 12
    assert max(found["local_minima_of_stable_flows"][100]) == 1
    assert np.abs(np.array(found["lowest_at"][100]) - 1).max() <= 2 * found["grid_step"]


def test_growth_follows_the_sign_of_the_eigenvalues() -> None:
    found = numbers("flow")
    growth = found["growth_at_T"]
    assert growth["decaying"] < 0.2 < 1 < growth["neutral"] < growth["growing"]
    assert found["least_real_part"]["growing"] > 0 > found["largest_real_part"]["decaying"]
    assert abs(found["largest_real_part"]["neutral"]) < 1e-12


def test_eigenvalues_are_on_the_axis_they_belong_to() -> None:
    found = numbers("spectra")
    for name in ("antisymmetric", "Hamiltonian", "second order"):
        assert found["largest_real_part"][name] < 1e-13 * found["largest"][name]
    assert found["largest_imaginary_part"]["double symmetric"] < 1e-13
    assert found["rightmost"]["double symmetric"] <= 0 < found["rightmost"]["dense"]


# Relative errors of round trips of 10, 50, 100, 200 layers as published codes have them, to a factor of three.
@pytest.mark.parametrize(
    ("product", "published"),
    [(3.9, (5e-15, 4e-14, 6e-14, 1e-13)), (4.1, (6e-13, 5.8e-2, 2.8e12, 6.9e39))],
)
def test_round_trips_outside_the_limits_lose_everything(product: float, published: tuple[float, ...]) -> None:
    found = list(numbers("limits")["table"][product].values())
    assert np.abs(np.log(np.array(found) / published)).max() < np.log(3)
    assert max(numbers("limits")["table"][1.0].values()) < 9e-16


def test_the_discrete_adjoint_is_exact_and_the_continuous_one_of_first_order() -> None:
    found = numbers("adjoints")
    assert max(found["error"]["discrete"]) < 1e-13
    assert found["slope"]["continuous"] == pytest.approx(1, abs=0.15)
    assert found["taylor_slope"] == pytest.approx({"discrete": 2, "continuous": 1}, abs=0.1)


def test_gradients_agree_with_differences_autograd_and_mgrit() -> None:
    found = numbers("gradients")
    assert found["slopes"] == pytest.approx({"value": 1, "gradient": 2}, abs=0.1)
    assert found["best_central_difference"] < 1e-9
    assert found["largest_against_autograd"] < 1e-12
    assert found["mgrit"]["error"][8][-1] < 1e-10 < 1e-4 < found["mgrit"]["error"][8][0]


def test_limits_of_the_steppers_on_the_imaginary_axis() -> None:
    found = numbers("steppers")
    assert found["limit"] == pytest.approx(found["known_limit"], abs=2e-5)
    assert max(found["largest_size"][0.2][name] for name in ("ab3", "rk4", "verlet", "leapfrog")) < 1.2


def test_reversible_steppers_need_no_memory_of_depth() -> None:
    found = numbers("reversible")
    assert max(max(row) for row in found["round_trip_error"].values()) < 1e-12
    assert max(max(row) for row in found["gradient_difference"].values()) < 1e-12
    reverse, stored = found["mebibytes_held"]["reverse"], found["mebibytes_held"]["all"]
    assert reverse[-1] == pytest.approx(reverse[0], rel=0.01)
    assert stored[-1] > 4 * stored[0]


def test_a_third_dimension_unlinks_the_ellipses() -> None:
    best = numbers("width")["best"]
    assert best[2] < 0.96 < 0.97 < best[3]


def test_the_control_fits_training_and_validation_examples() -> None:
    found = numbers("control")
    assert found["train_loss"] < found["val_loss"] < 0.3 * found["curves"]["val_loss"][0]
    assert min(found["train_accuracy"], found["val_accuracy"]) > 0.88
    assert found["regularisation"] > found["curves"]["regularisation"][0]


def test_mgrit_needs_few_cycles_and_everything_else_one_for_each_block() -> None:
    found = numbers("parallel")
    residuals, need = found["residuals"], found["iterations"]
    assert residuals["against_substitution"] < 1e-13
    assert residuals["MGRIT"][0] == pytest.approx(residuals["F-relaxation alone"][0], rel=1e-12)
    assert residuals["F-relaxation alone"][-1] < 1e-14
    assert [need["F-relaxation alone"][N] for N in (64, 256)] == [64 // 8 - 1, 256 // 8 - 1]
    assert [need["GMRES"][N] for N in (64, 256)] == [63, 255]
    assert max(need["MGRIT"].values()) <= 5
    strong = found["modelled"]["evaluations"]["strong"]
    assert set(strong["time"]["serial"]) == {3 * 1024}
    assert all(b < a for a, b in zip(strong["time"]["sgd"], strong["time"]["oneshot"], strict=True))
    assert strong["faster_than_serial_from"] == {"sgd": 4, "oneshot": 2}


def test_training_in_parallel_follows_the_serial_curve_with_less_work() -> None:
    found = numbers("training")
    serial, sgd, oneshot = (found["methods"][name] for name in ("serial", "sgd", "oneshot"))
    assert max(found["largest_loss_difference"].values()) < 0.01
    assert abs(sgd["validation_accuracy"] - serial["validation_accuracy"]) < 0.01
    assert abs(oneshot["validation_accuracy"] - serial["validation_accuracy"]) < 0.01
    assert serial["evaluations_a_step"] == 3 * found["layers"]
    assert max(sgd["evaluations_a_step"], oneshot["evaluations_a_step"]) < 0.5 * serial["evaluations_a_step"]
    assert serial["largest_gradient_error"] == 0
