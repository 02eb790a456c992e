"""What messages take on a fabric."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lpnet.errors import InputError
from lpnet.fabrics import FABRICS, Fabric, fabric_of, rounds


@given(st.integers(0, 10**9), st.sampled_from(list(FABRICS.values())))
def test_nothing_is_faster_than_its_parts(size: int, fabric: Fabric) -> None:
    assert fabric.hop(0) == fabric.latency
    assert fabric.hop(size) - fabric.latency == pytest.approx(size / fabric.bandwidth, rel=1e-9, abs=1e-15)
    assert fabric.broadcast(size, 2) == fabric.hop(size)
    assert fabric.broadcast(size, 1) == fabric.gather(size, 1) == 0
    assert fabric.gather(size, 2) == fabric.hop(size / 2)  # each sends its half


@given(st.integers(1, 1000))
def test_rounds_double_the_ranks(ranks: int) -> None:
    assert rounds(ranks) == math.ceil(math.log2(ranks))


def test_fabrics_have_names() -> None:
    assert all(fabric_of(name) is fabric and fabric.name == name for name, fabric in FABRICS.items())
    own = Fabric("own", 1e-6, 1e9)
    assert fabric_of(own) is own
    assert FABRICS["default"] == Fabric("default", 2e-6, 10e9)


def test_bad_numbers_and_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"fabric: 'string' given, one of default, .* allowed"):
        fabric_of("string")
    with pytest.raises(InputError, match=r"fabric: \[1\] given"):
        fabric_of([1])  # type: ignore[arg-type]
    strange: tuple[Any, ...] = ("1", None, True)
    for latency in (-1.0, math.inf, math.nan, *strange):
        with pytest.raises(InputError, match=f"latency: {latency!r} given"):
            Fabric("x", latency, 1.0)
    for bandwidth in (0.0, -1.0, math.nan, *strange):
        with pytest.raises(InputError, match=f"bandwidth: {bandwidth!r} given"):
            Fabric("x", 0.0, bandwidth)
