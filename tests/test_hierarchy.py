"""Laws of the levels: every step of every level belongs to exactly one rank, for any N, P, m, in both directions."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from lpnet import MGRIT
from lpnet.hierarchy import Level, bounds, build, counts, mirrored
from lpnet.slab import partition

FACTORS = st.lists(st.integers(2, 6), min_size=3, max_size=3).map(tuple)
CASE = {
    "layers": st.integers(1, 40),
    "ranks": st.integers(1, 8),
    "unit": st.integers(1, 6),
    "factors": FACTORS,
    "depth": st.integers(1, 4),
    "adjoint": st.booleans(),
}


def views(
    layers: int, ranks: int, unit: int, factors: tuple[int, ...], depth: int, adjoint: bool
) -> tuple[list[tuple[int, ...]], list[list[Level]]]:
    """Bounds in the direction of the solve, and each rank's levels in the order of that direction."""
    found = bounds(layers, MGRIT(coarsening=factors, levels=depth))
    starts = partition(layers, ranks, unit)
    order = list(range(ranks))
    if adjoint:
        found, order = mirrored(found), order[::-1]
        starts = tuple(layers - s for s in reversed(starts))
    return found, [build(found, starts, order, rank) for rank in order]


@given(layers=st.integers(1, 200), factors=FACTORS, depth=st.integers(1, 4))
def test_bounds_keep_every_mth_point(layers: int, factors: tuple[int, ...], depth: int) -> None:
    found = bounds(layers, MGRIT(coarsening=factors, levels=depth))
    assert found[0] == tuple(range(layers + 1))
    assert 1 <= len(found) <= depth
    m = 1
    for level, bound in enumerate(found[1:]):
        m *= factors[level]
        assert bound == (*range(0, layers, m), layers)
        assert len(bound) - 1 >= 2
    if len(found) < depth:  # one more level would have a single interval
        assert len(found[-1]) - 1 <= factors[len(found) - 1]


@given(layers=st.integers(1, 200), factors=FACTORS, depth=st.integers(1, 4))
def test_mirrored_is_an_involution(layers: int, factors: tuple[int, ...], depth: int) -> None:
    found = bounds(layers, MGRIT(coarsening=factors, levels=depth))
    back = mirrored(found)
    assert mirrored(back) == found
    for bound, other in zip(found, back, strict=True):
        assert sorted(layers - b for b in bound) == list(other)


@given(**CASE)
def test_ranks_cover_every_level_once(**case: object) -> None:
    found, ranks = views(**case)  # type: ignore[arg-type]
    for depth, bound in enumerate(found):
        steps = [i for levels in ranks for i in range(levels[depth].lo, levels[depth].hi)]
        assert steps == list(range(len(bound) - 1))
        assert all(levels[depth].bounds == bound and levels[depth].steps == len(bound) - 1 for levels in ranks)


@given(**CASE)
def test_steps_belong_to_the_slab_in_which_they_begin(**case: object) -> None:
    found, ranks = views(**case)  # type: ignore[arg-type]
    begins = [{levels[0].bounds[i] for i in range(levels[0].lo, levels[0].hi)} for levels in ranks]
    starts = [0]
    for own in begins:
        starts.append(starts[-1] + len(own))
    for depth, bound in enumerate(found):
        for own, levels in zip(begins, ranks, strict=True):
            assert all(bound[i] in own for i in range(levels[depth].lo, levels[depth].hi))
        assert counts(bound, starts) == [levels[depth].hi - levels[depth].lo for levels in ranks]


@given(**CASE)
def test_segments_tile_and_end_at_points_of_the_next_level(**case: object) -> None:
    found, ranks = views(**case)  # type: ignore[arg-type]
    for depth, (fine, coarse) in enumerate(pairwise(found)):
        swept: list[int] = []
        for level in (levels[depth] for levels in ranks):
            assert [s.i0 for s in level.segments] == [level.lo, *(s.i1 for s in level.segments)][: len(level.segments)]
            for n, s in enumerate(level.segments):
                begins_at_point = fine[s.i0] == coarse[s.interval]
                assert begins_at_point != (n == 0 and level.continues)
                assert coarse[s.interval] <= fine[s.i0] < fine[s.i1] <= coarse[s.interval + 1]
                assert fine[s.i1] == coarse[s.interval + 1] or s.i1 == level.hi
                swept += range(s.i0, s.i1)
            own = level.segments[level.continues :]
            assert [s.interval for s in own] == list(range(level.coarse_lo, level.coarse_hi))
        assert swept == list(range(len(fine) - 1))
    for levels in ranks:
        assert levels[-1].segments == ()
        for fine_level, coarse_level in pairwise(levels):
            assert (fine_level.coarse_lo, fine_level.coarse_hi) == (coarse_level.lo, coarse_level.hi)


@given(**CASE)
def test_neighbours_are_the_ranks_before_and_after_that_have_steps(**case: object) -> None:
    found, ranks = views(**case)  # type: ignore[arg-type]
    names = range(len(ranks))[::-1] if case["adjoint"] else range(len(ranks))
    for depth in range(len(found)):
        at = [(name, levels[depth]) for name, levels in zip(names, ranks, strict=True)]
        busy = [(name, level) for name, level in at if level.lo < level.hi]
        assert busy[0][1].previous is None
        assert busy[-1][1].next is None
        for (name, level), (following, other) in pairwise(busy):
            assert (level.next, other.previous) == (following, name)
