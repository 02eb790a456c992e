"""The experiments find the same numbers on any number of ranks."""

from typing import Any

import numpy as np
import pytest

from lpnet.experiments import REGISTRY, Context, bidiagonal
from lpnet.experiments.folder import plain
from lpnet.slab import Comm

pytestmark = pytest.mark.mpi


def same(one: Any, other: Any) -> bool:
    """Equal up to rounding, at any depth."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == pytest.approx(other, rel=1e-5, abs=1e-9))


@pytest.mark.parametrize("name", ["orders", "adjoints"])
def test_numbers_do_not_depend_on_the_ranks(name: str, comm: Comm) -> None:
    found, alone = (plain(REGISTRY[name].run(Context(ranks, quick=True)).numbers) for ranks in (comm, Comm()))
    assert same(found, alone)


@pytest.mark.parametrize("layers", [64, 72])
def test_residuals_of_mgrit(layers: int, comm: Comm) -> None:
    options = bidiagonal.mgrit(8, 3)
    one, residuals = bidiagonal.solved(Context(Comm()), layers, 1.0, options)
    many, found = bidiagonal.solved(Context(comm), layers, 1.0, options)
    assert np.abs(many - one).max() < 1e-14
    assert found == pytest.approx(residuals, rel=1e-12, abs=1e-16)
