"""Relative errors, wherever they are found: what is not finite is infinitely wrong."""

import math

import pytest
import torch
from reference import normal, twin

from lpnet import Serial
from lpnet.plan import _Gradients
from lpnet.residuals import relative
from lpnet.scaling.problem import error

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize(
    ("part", "whole", "expected"),
    [
        (1.0, 4.0, 0.25), (0.0, 4.0, 0.0), (0.0, 0.0, 0.0), (1e-300, 0.0, INF), (NAN, 1.0, INF), (INF, 1.0, INF),
        (1.0, INF, INF), (1.0, NAN, INF), (0.0, INF, INF), (INF, INF, INF), (NAN, 0.0, INF),
    ],
)  # fmt: skip
def test_relative(part: float, whole: float, expected: float) -> None:
    assert relative(part, whole) == expected


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("which", [0, 1])
def test_errors_of_studies(bad: float, which: int) -> None:
    """In the input's gradient or in one of the weights, in the one that is found or in the true one."""
    true = normal(3, 2), [normal(2, 2), normal(2)]
    wrong = true[0].clone(), [t.clone() for t in true[1]]
    (wrong[0] if which == 0 else wrong[1][1]).view(-1)[0] = bad
    assert error(true, true) == 0
    assert error(wrong, true) == error(true, wrong) == error(wrong, wrong) == INF


def test_errors_of_plans() -> None:
    """Against an exact gradient that is not finite no gradient is good."""
    measured = _Gradients(twin("dense", 4, Serial(), Serial()), normal(3, 4), None)
    assert measured.error(Serial(), Serial()) == 0
    measured.size = (INF, measured.size[1])
    assert measured.error(Serial(), Serial()) == INF
    measured.weights[0] = torch.full_like(measured.weights[0], NAN)
    assert measured.error(Serial(), Serial()) == INF
