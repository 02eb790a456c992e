"""Options validate themselves, at once, in one line that names the key, what was given and what is allowed."""

import dataclasses
import math
from typing import Any

import pytest

from lpnet import MGRIT, InputError, Serial

BAD_MGRIT: list[tuple[str, dict[str, Any]]] = [
    *(("coarsening", {"coarsening": m}) for m in (1, 0, -2, 2.0, True, "4", None, (4, 1), [])),
    ("coarsening", {"coarsening": (4,), "levels": 3}),
    *(("levels", {"levels": v}) for v in (0, -1, 1.5, True, None)),
    *(("cycles", {"cycles": v}) for v in (-1, 1.0, True, None, "2")),
    ("cycles", {"cycles": 0, "initial": "constant"}),
    *(("relaxation", {"relaxation": v}) for v in ("CF", "f", "", None)),
    *(("coarse", {"coarse": v}) for v in ("match", None)),
    *(("samples", {"samples": v}) for v in (0, -1, 0.5, True)),
    *(("passes", {"passes": v}) for v in (0, -1, 2.0, True)),
    *(("coarse_weights", {"coarse_weights": v}) for v in ("median", None)),
    *(("initial", {"initial": v}) for v in ("zero", None)),
    *(("cycle_shape", {"cycle_shape": v}) for v in ("W", None)),
    *(("tol", {"tol": v}) for v in (0, 0.0, -1e-3, math.nan, math.inf, "1e-3")),
    ("samples", {"coarse": "rediscretized", "samples": 2}),
    ("passes", {"coarse": "rediscretized", "passes": 1}),
]


@pytest.mark.parametrize(("key", "given"), BAD_MGRIT, ids=str)
def test_bad_mgrit_is_one_line_that_names_the_key(key: str, given: dict[str, Any]) -> None:
    with pytest.raises(InputError) as caught:
        MGRIT(**given)
    text = str(caught.value)
    assert key in text
    assert "\n" not in text
    assert "given" in text


@pytest.mark.parametrize("given", [0, -1, 1.0, True, "2", None])
def test_bad_micro_batches(given: Any) -> None:
    with pytest.raises(InputError, match=r"^micro_batches: .* given, .* allowed$"):
        Serial(micro_batches=given)
    with pytest.raises(InputError, match=r"^micro_batches: .* given, .* allowed$"):
        MGRIT(micro_batches=given)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"cycles": 0},
        {"cycles": 0, "initial": "warm"},  # warm starts begin with a coarse one
        {"levels": 1},
        {"coarsening": 2, "levels": 9},
        {"coarsening": (8, 4), "levels": 3},
        {"coarsening": (8, 4, 2), "levels": 2},
        {"samples": 16, "passes": 16},
        {"tol": 1},
        {"coarse": "rediscretized", "coarse_weights": "inject", "relaxation": "FCF", "cycle_shape": "F"},
    ],
    ids=str,
)
def test_good_options_are_values(given: dict[str, Any]) -> None:
    one, other = MGRIT(**given), MGRIT(**given)
    assert one == other
    assert hash(one) == hash(other)
    for key, value in given.items():
        assert getattr(one, key) == value


@pytest.mark.parametrize("options", [MGRIT(), Serial()])
def test_options_are_frozen(options: Any) -> None:
    for field in dataclasses.fields(options):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(options, field.name, getattr(options, field.name))


def test_factors() -> None:
    assert [MGRIT(coarsening=4, levels=4).factor(level) for level in range(3)] == [4, 4, 4]
    assert [MGRIT(coarsening=(8, 4, 2), levels=4).factor(level) for level in range(3)] == [8, 4, 2]
    assert MGRIT(coarsening=[8, 4], levels=3) == MGRIT(coarsening=(8, 4), levels=3)  # type: ignore[arg-type]
