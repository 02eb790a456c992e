"""What ranks say to each other in a solve, and when: run one after the other, as all messages go forward."""

from collections import Counter, deque
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lpnet import MGRIT
from lpnet.coarse_grid import one_by_one
from lpnet.hierarchy import Level, bounds, build
from lpnet.messages import Posted
from lpnet.mgrit import FinePropagator, Solver
from lpnet.slab import partition


class Rank(FinePropagator):
    """A rank that notes what it does, in the place of the propagators and of the communicator."""

    def __init__(self, rank: int, mail: dict[tuple[int, int], deque[Tensor]]) -> None:
        self.rank, self.mail = rank, mail
        self.events: list[Any] = []

    def sweep(self, last: bool) -> None:
        self.events.append("sweep")

    def run(self, i0: int, i1: int, u: Tensor) -> Tensor:
        self.events.append((i0, i1))
        return u + 1

    def step(self, k: int, u: Tensor) -> Tensor:
        self.events.append(k)
        return u + 1

    def send(self, x: Tensor, to: int) -> None:
        self.events.append("send")
        self.mail.setdefault((self.rank, to), deque()).append(x)

    def recv(self, like: Tensor, source: int) -> Tensor:
        self.events.append("wait")
        return self.mail[source, self.rank].popleft()

    def post(self, like: Tensor, source: int) -> Posted:
        self.events.append("post")
        return Posted(self, like, source)


def solve(N: int, P: int, options: MGRIT, unit: int = 1) -> tuple[list[Rank], list[list[Level]]]:
    """All ranks, each run to its end; every message is received."""
    found, starts = bounds(N, options), partition(N, P, unit)
    mail: dict[tuple[int, int], deque[Tensor]] = {}
    ranks, levels = [Rank(r, mail) for r in range(P)], [build(found, starts, list(range(P)), r) for r in range(P)]
    for rank, own in zip(ranks, levels, strict=True):
        solver = Solver(options, own, rank, [one_by_one(rank.step)] * (len(found) - 1), rank)
        solver.solve(torch.zeros(1), None, lambda rows: rows.sum(axis=0))
    assert not any(mail.values())
    return ranks, levels


@pytest.mark.parametrize("cycles", [0, 2])
def test_receives_are_posted_first_and_ends_are_sent_first(cycles: int) -> None:
    """Of a slab of three intervals in the middle: coarse chain, then the right-most interval, whose end travels."""
    one = solve(24, 3, MGRIT(coarsening=2, cycles=cycles), unit=2)[0][1]
    chain = ["wait", 4, 5, 6, 7, "send"]
    sweep = ["sweep", "post", (14, 16), "send", (12, 14), (10, 12), (8, 10), "wait"]
    assert one.events == (chain + sweep) * (cycles + 1)


def visits(depth: int, cycles: int) -> Counter[int]:
    """How often each level is swept by V-cycles after a coarse start, or, the coarsest one, gone through."""
    found: Counter[int] = Counter()

    def solved(level: int) -> None:  # the coarse problem of a cycle
        found[level] += 1
        if level < depth:
            cycle(level)

    def cycle(level: int) -> None:
        solved(level + 1)
        found[level] += 1

    for level in range(depth, 0, -1):  # nested iteration
        solved(level)
    found[0] += 1
    for _ in range(cycles):
        cycle(0)
    return found


@given(st.integers(5, 60), st.integers(1, 12), st.integers(2, 5), st.integers(2, 4), st.integers(0, 2))
def test_ranks_without_steps_on_a_level_hear_nothing_of_it(N: int, P: int, m: int, most: int, cycles: int) -> None:
    """Each sweep, and each chain, is one message to every rank that has steps there, but the first of them."""
    options = MGRIT(coarsening=m, levels=most, cycles=cycles)
    depth = len(bounds(N, options)) - 1
    if depth == 0:
        return
    ranks, levels = solve(N, P, options)
    for r, (rank, own) in enumerate(zip(ranks, levels, strict=True)):
        heard = 0
        for level, times in visits(depth, cycles).items():
            first = all(others[level].lo == others[level].hi for others in levels[:r])
            heard += times * (own[level].lo < own[level].hi and not first)
        assert rank.events.count("wait") == heard
        assert rank.events.count("send") <= sum(visits(depth, cycles).values())
