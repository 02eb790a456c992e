"""Clocks of a gradient: what they read of work that is known, and which of them may be read where."""

import time
from typing import Any

import pytest
import torch
from reference import F64, normal

import lpnet
from lpnet import InputError, stopwatch
from lpnet.cost import Costs, critical_path
from lpnet.options import MGRIT, Serial
from lpnet.slab import Comm
from lpnet.stopwatch import Clocks
from lpnet.virtual import VirtualComm

Y = normal(6, 4)
BUSY = 2e-3
"""Processor seconds that a slow layer computes; what the trunk does beside takes about a tenth of it."""


def make(comm: Comm, solver: Any = None) -> lpnet.LayerParallel:
    solver = solver or MGRIT(3, cycles=1)
    return lpnet.LayerParallel(lpnet.dynamics.Dense(4), 17, 2.0, forward=solver, adjoint=solver, comm=comm, dtype=F64)


class Slow(torch.nn.Linear):
    """A layer that computes for some time whenever it is evaluated."""

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        begin = time.thread_time()
        while time.thread_time() - begin < BUSY:
            pass
        return super().forward(y)


def slow(comm: Comm, layers: int, solver: Any) -> lpnet.LayerParallel:
    one = Slow(4, 4, dtype=F64)
    return lpnet.LayerParallel(one, layers, 1.0, forward=solver, adjoint=solver, comm=comm, dtype=F64)


def test_the_exact_chain_of_a_crew_takes_as_long_as_that_of_one_rank() -> None:
    """Layers one behind the other, wherever they are; a sleeping neighbour does not count."""

    def chain(comm: Comm) -> lpnet.LayerParallel:
        return slow(comm, 8, Serial())

    for ranks in (1, 4):  # the fastest of some: a thread may lose time now and then, but not every time
        seconds = min(stopwatch.crew(chain, Y, ranks, "none", 4))
        assert 1 <= seconds / (2 * 8 * BUSY) < 1.5  # evaluated forward and pulled back


def test_mgrit_on_a_crew_is_faster_than_its_work() -> None:
    """17 slow layers in 6 intervals: each rank sweeps its own."""

    def trunk(comm: Comm) -> lpnet.LayerParallel:
        return slow(comm, 18, MGRIT(3, cycles=0, initial="warm"))

    one, six = (min(stopwatch.crew(trunk, Y, ranks, "none", 2)) for ranks in (1, 6))
    assert six < 0.7 * one


def test_simulated_is_the_critical_path() -> None:
    trunk, costs = make(Comm()), Costs(latency=0.5)
    options = trunk.forward_solver
    expected = critical_path(trunk.stepper, 17, 5, options, options, costs).total
    assert stopwatch.simulated(trunk, 5, costs) == expected


def test_all_clocks_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lpnet.calibration.SECONDS", 0.0)
    monkeypatch.setattr("lpnet.measure.SECONDS", 0.0)
    monkeypatch.setattr("lpnet.calibration.ROUNDS", (3, 3))

    def chain(comm: Comm) -> lpnet.LayerParallel:
        return slow(comm, 4, Serial())

    known = 2 * 4 * BUSY  # evaluated forward and pulled back, wherever they are
    found = stopwatch.compare(chain, Y, Comm(), 2)
    assert found.ranks == 1
    assert found.wall >= known  # no bound above, which others on the machine could break
    both = stopwatch.modelled(chain, Y, 3, "none", 2)
    assert both.ranks == 3
    for seconds in (found.virtual, found.simulated, both.virtual, both.simulated):
        assert 0.9 * known < seconds < 2 * known


def test_agreement_is_of_both_modelled_times() -> None:
    assert Clocks(2, 1.0, 1.1, 0.9).agree()
    assert not Clocks(2, 1.0, 1.2, 1.0).agree()
    assert not Clocks(2, 1.0, 1.0, 0.8).agree()
    assert Clocks(2, 1.0, 1.2, 0.8).agree(0.25)


def test_virtual_time_is_of_virtual_clocks() -> None:
    with pytest.raises(InputError, match="comm: Comm given, a VirtualComm allowed"):
        stopwatch.virtual(make(Comm()), Y)
    assert len(stopwatch.virtual(make(VirtualComm(Comm())), Y, 2)) == 2
    assert len(stopwatch.wall(make(Comm()), Y, 2)) == 2
