"""The coarsest level in parts of the batch: the same solution, sent on part after part."""

from typing import Any

import pytest
import torch
from reference import error, normal
from torch import Tensor
from virtual_ranks import BATCH, MODULES, WIDTH

from lpnet import MGRIT, InputError
from lpnet.cost import critical_path
from lpnet.costs import Costs
from lpnet.crew import Crew, ThreadComm
from lpnet.engine import Engine
from lpnet.slab import Comm, Slab
from lpnet.stack import Stack
from lpnet.steppers import AB3, RK4, Euler, Leapfrog, Stepper, Verlet

N = 22


class Telling(ThreadComm):
    """Notes how large its messages are."""

    def __init__(self, crew: Crew, rank: int) -> None:
        super().__init__(crew, rank)
        self.sent: list[int] = []

    def send(self, x: Tensor, to: int) -> None:
        self.sent.append(x.shape[-1])
        super().send(x, to)


def gradient(stepper: Stepper, ranks: int, options: MGRIT, unit: int = 1) -> list[tuple[list[Tensor], list[int]]]:
    """Of each rank: output, gradients and residuals, and the sizes of the states it sent."""
    stack, crew = Stack(MODULES[stepper.terms](WIDTH), stepper), Crew(ranks)
    theta = {"K": normal(N, WIDTH, WIDTH), "b": normal(N, WIDTH, seed=1)}
    x, z = (normal(stepper.memory, WIDTH, BATCH, seed=seed) for seed in (2, 3))

    def rank(comm: Comm) -> tuple[list[Tensor], list[int]]:
        telling = Telling(crew, comm.rank)
        engine = Engine(stepper, 2.0 / N, Slab(N, telling, unit))
        local = {name: value[engine.slab.lo : engine.slab.hi] for name, value in theta.items()}
        prepared = engine.prepare(local, lambda weights, _: stack.fields(weights))
        y, solution, _ = engine.forward(prepared, x, options, True)
        bar, info, _ = engine.adjoint(prepared, solution, z, options)
        grads = stack.gradients(local, dict(prepared.layers.fields))
        residuals = torch.tensor(solution.info.residuals + info.residuals, dtype=torch.float64)
        parts = [engine.slab.gather(g) for g in grads]
        return [y, bar, residuals, *parts], telling.sent

    return crew.run(rank)


@pytest.mark.parametrize("stepper", [Euler(), Verlet(), Leapfrog(), RK4(), AB3()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("more", [{}, {"levels": 3, "relaxation": "FCF"}, {"initial": "constant", "tol": 1e-9}])
def test_the_solution_is_that_of_the_whole_batch(stepper: Stepper, more: Any) -> None:
    one, parted = (MGRIT(coarsening=3, cycles=2, **more, micro_batches=Q) for Q in (1, 3))
    expected = gradient(stepper, 1, one)[0][0]
    for ranks in (1, 3):
        for values, _ in gradient(stepper, ranks, parted):
            assert all(error(a, b) < 1e-11 for a, b in zip(values, expected, strict=True))


def test_samples_go_in_parts_too() -> None:
    one, parted = (MGRIT(coarsening=4, cycles=1, samples=2, micro_batches=Q) for Q in (1, 4))
    for a, b in zip(gradient(Euler(), 1, one)[0][0], gradient(Euler(), 3, parted)[2][0], strict=True):
        assert error(b, a) < 1e-11


@pytest.mark.parametrize("Q", [1, 2, 3, 20])
def test_parts_are_sent_on_one_by_one(Q: int) -> None:
    """The coarse chain in parts, a sweep in whole states; rank 0 forward, rank 1 back; no more parts than examples."""
    sizes = [len(part) for part in torch.arange(BATCH).chunk(Q)]
    for _, sent in gradient(Euler(), 2, MGRIT(coarsening=2, cycles=0, micro_batches=Q), unit=2):
        assert sent == [*sizes, BATCH]


@pytest.mark.parametrize("Q", [2, 4])
def test_the_coarse_chain_is_a_pipeline(Q: int) -> None:
    """Two levels, no cycle: the chain takes (Q + P − 1)/Q of a rank's work, and not P times that."""
    n, own, P = 32, 4, 8  # layers, and evaluations of coarse steps on a rank
    for q in (1, Q):
        options = MGRIT(coarsening=16, cycles=0, micro_batches=q)
        work = critical_path(Euler(), n * P, P, options, options, Costs())
        assert work.forward == pytest.approx((P - 1 + q) / q * own + n, abs=2)  # the last coarse step is not needed
        assert work.gradient == n


def test_bad_numbers_are_refused() -> None:
    with pytest.raises(InputError, match="micro_batches: 0 given, a whole number of at least 1 allowed"):
        MGRIT(micro_batches=0)
