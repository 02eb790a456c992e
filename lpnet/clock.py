"""Virtual clocks: when a solve would be done on any number of ranks, without running on so many.

Every rank r has a clock t_r. Its own work adds to it, and a message makes the receiver wait for the sender:

    n layers, a coarse step     t_r ← t_r + n cost,   t_r ← t_r + cost of G
    send, receive               stamp = t_r,          t_r ← max(t_r, stamp + latency + message)
    sum, broadcast of a state   t_r ← max_r t_r + latency ⌈log₂ P⌉,  … + (latency + message) ⌈log₂ P⌉

The work is no formula but `mgrit.Solver` itself, run on numbers that mean nothing: since all messages of a solve go
forward, the ranks can be run one after the other in the order of the direction, each to its end. So the clocks cannot
drift from the algorithm.
"""

import math
from collections import defaultdict, deque
from collections.abc import Sequence
from functools import lru_cache, partial, reduce
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lpnet import hierarchy
from lpnet.coarse_grid import CoarseStep, one_by_one
from lpnet.coarsen import parts
from lpnet.costs import Costs
from lpnet.direction import Direction
from lpnet.fabrics import rounds
from lpnet.hierarchy import Level
from lpnet.mgrit import FinePropagator, Solver
from lpnet.options import MGRIT, SolverOptions
from lpnet.residuals import Info
from lpnet.slab import Comm, Posted, Slab
from lpnet.steppers import Picard, Program, Stepper, evaluations, stages_of


class Time(NamedTuple):
    """The same moment without and with the weight gradients' work before it."""

    plain: float
    graded: float

    def after(self, plain: float, graded: float | None = None) -> "Time":
        """So much later."""
        return Time(self.plain + plain, self.graded + (plain if graded is None else graded))

    def latest(self, other: "Time") -> "Time":
        """The later of two moments."""
        return Time(max(self.plain, other.plain), max(self.graded, other.graded))


_ZERO = Time(0.0, 0.0)


class Run(NamedTuple):
    """One direction of one training step, as `critical_path` is asked for it."""

    stepper: Stepper
    layers: int
    ranks: int
    unit: int
    adjoint: bool
    options: SolverOptions
    costs: Costs

    @property
    def layer(self) -> float:
        """One layer in this direction, without weight gradient."""
        return self.costs.pull if self.adjoint else self.costs.fine

    @property
    def gradient(self) -> float:
        return self.costs.gradient if self.adjoint else 0.0

    @property
    def hop(self) -> float:
        """What a state takes from one rank to another."""
        return self.costs.latency + self.costs.message

    @property
    def rounds(self) -> int:
        """Of a collective."""
        return rounds(self.ranks)

    @property
    def broadcast(self) -> float:
        """What the result takes to all ranks, without the memory of a multistep method."""
        return (self.costs.latency + self.costs.message / self.stepper.memory) * self.rounds

    @property
    def lift(self) -> Time:
        """The lift of the input, or its adjoint, for which it is evaluated again."""
        share = len(stages_of(self.stepper.lift(1.0))) / len(stages_of(self.stepper.stages(1.0)))
        once = self.costs.fine + (self.costs.pull if self.adjoint else 0.0)
        return Time(share * once, share * (once + self.gradient))

    def coarse(self, spans: Sequence[tuple[int, int]], layer: float) -> list[float]:
        """What coarse steps over spans of layers cost where a layer costs so much."""
        assert isinstance(self.options, MGRIT)
        cut = [tuple(q - p for p, q in parts(span, self.options.samples)) for span in spans]
        programs = {lengths: self.stepper.coarse(lengths, 1.0, self.options) for lengths in set(cut)}
        stages = len(stages_of(self.stepper.stages(1.0)))
        count = {lengths: self._evaluations(program) / stages for lengths, program in programs.items()}
        return [count[lengths] * layer + self.costs.overhead for lengths in cut]

    def parts(self, view: "View") -> int:
        """In how many parts of the batch the chain of the coarsest level goes, as `Engine` has it."""
        direction = view.direction
        busy = set(direction.owners(direction.spans(view.bounds[-1])))
        return self.options.micro_batches if len(busy) > 1 else 1

    def _evaluations(self, program: Program) -> float:
        if isinstance(program, Picard):
            return program.passes * (1 + (len(program.lengths) - 1) * self.costs.batched)
        return evaluations(program)


class _Ranks(Comm):
    """Stands for any number of ranks where only their number is asked for."""

    def __init__(self, size: int) -> None:
        self.size = size


class View(NamedTuple):
    """A direction with the levels as every rank sees them, ranks in the order of the direction."""

    direction: Direction
    bounds: list[tuple[int, ...]]
    levels: list[list[Level]]


@lru_cache(maxsize=64)
def view_of(layers: int, ranks: int, unit: int, adjoint: bool, shape: MGRIT) -> View:
    direction = Direction(Slab(layers, _Ranks(ranks), unit), adjoint)
    bounds = direction.levels(shape)
    if len(bounds) < 2:
        return View(direction, bounds, [])
    order, starts = direction.order, direction.starts
    return View(direction, bounds, [hierarchy.build(bounds, starts, order, rank) for rank in order])


@lru_cache(maxsize=65536)
def end_of(run: Run) -> Time:
    """When the result of a solve is known on all ranks."""
    options = run.options
    shape = MGRIT(options.coarsening, options.levels) if isinstance(options, MGRIT) else MGRIT(levels=1)
    view = view_of(run.layers, run.ranks, run.unit, run.adjoint, shape)
    if not view.levels:
        end = _chain(run, view.direction, options.micro_batches)
    else:
        end, _ = simulate(run, view)
        lifted = end.after(*run.lift) if run.adjoint else end
        carried = sum(levels[1].lo < levels[1].hi for levels in view.levels) > 1
        tau = isinstance(options, MGRIT) and options.initial == "tau"
        end = lifted.latest(end.after(run.hop)) if tau and carried else lifted
    return end.after(run.broadcast + run.costs.call)


def _chain(run: Run, direction: Direction, Q: int) -> Time:
    """The exact chain, `lpnet.chain`, pipelined over Q parts of the batch."""
    share = run.costs.share(Q)
    lift = Time(run.lift.plain * share, run.lift.graded * share)
    ready, end = [_ZERO] * Q, _ZERO  # when a part arrives, and when all ranks are done
    busy = [rank for rank in direction.order if direction.slab.counts[rank]]
    for behind, rank in zip(reversed(range(len(busy))), busy, strict=True):
        n, time = direction.slab.counts[rank], _ZERO
        plain, graded = n * run.layer * share, n * (run.layer + run.gradient) * share
        for q in range(Q):
            time = time.latest(ready[q]).after(plain, plain if q < behind else graded)
            if rank == direction.slab.first:  # which lifts, or pulls the lift back
                time = time.after(*lift)
            ready[q] = time.after(run.costs.latency + run.costs.message / Q)
        if run.adjoint:  # gradients of the parts that were sent on without
            time = time.after(0.0, min(Q, behind) * graded)
        end = end.latest(time)
    return end


_Sent = defaultdict[tuple[int, int], deque[Time]]
"""(from, to) -> when the messages on their way were sent."""


class _Rank(FinePropagator):
    """A rank with a clock, in the place of the propagators and of the communicator."""

    def __init__(self, rank: int, time: Time, run: Run, sent: _Sent) -> None:
        self.rank, self.time, self.sent, self.costs, self.Q = rank, time, sent, run.costs, run.options.micro_batches
        self.layer = self.last_layer = run.layer
        self.gradient, self.point = run.gradient, run.costs.point

    # Values are new objects, since the solver tells by identity what it has evaluated already.
    def sweep(self, last: bool) -> None:
        self.last_layer = self.layer + self.gradient * last

    def run(self, i0: int, i1: int, u: Tensor) -> Tensor:
        self.time = self.time.after((i1 - i0) * self.layer, (i1 - i0) * self.last_layer)
        return u.detach()

    def step(self, prices: Sequence[float], k: int, u: Tensor) -> Tensor:
        self.time = self.time.after(prices[k])
        return u.detach()

    def send(self, x: Tensor, to: int) -> None:
        self.sent[self.rank, to].append(self.time)

    def recv(self, like: Tensor, source: int) -> Tensor:
        hop = self.costs.latency + self.costs.message * len(like) / self.Q
        self.time = self.time.latest(self.sent[source, self.rank].popleft().after(hop))
        return like.detach()

    def post(self, like: Tensor, source: int) -> Posted:
        return Posted(self, like, source)


class _Timed(Solver):
    """The solver of one rank with a clock."""

    def _residual(self) -> Tensor:
        one = self.fine
        assert isinstance(one, _Rank)
        one.time = one.time.after(len(self.c) * one.point)
        return super()._residual()


class _Parts(NamedTuple):
    """The coarse steps of a rank for parts of the batch: of a state, which has a number for each of them."""

    one: _Rank
    prices: Sequence[float]

    def split(self, u: Tensor) -> list[Tensor]:
        return list(u.split(1))

    def join(self, us: list[Tensor]) -> Tensor:
        return torch.cat(us)

    def step(self, q: int, k: int, u: Tensor) -> Tensor:
        return self.one.step(self.prices, k, u)


def simulate(run: Run, view: View) -> tuple[Time, list[Info]]:
    """`Engine._mgrit` or `Engine._mgrit_back`: when the last sum over all ranks is done, and every rank's info.

    Nothing is known of what comes after a sum on any rank before all have come to it. So with `tol`, where each cycle
    ends with one, the solve is run anew for each sum, with the ends of those before.
    """
    options = run.options
    assert isinstance(options, MGRIT)
    begin = _begin(run, view)
    prices = [run.coarse(view.direction.spans(bound), run.layer) for bound in view.bounds[1:]]
    Q = run.parts(view)
    parts = run.coarse(view.direction.spans(view.bounds[-1]), run.layer * run.costs.share(Q))
    if run.adjoint:
        prices, parts = [level[::-1] for level in prices], parts[::-1]
    sums: list[Time] = []
    infos: list[Info] = []
    for _ in range(1 if options.tol is None else options.cycles + 1):
        sent: _Sent = defaultdict(deque)
        arrivals: list[Time] = []
        infos = []
        for rank, levels in zip(view.direction.order, view.levels, strict=True):
            one = _Rank(rank, begin[rank], run, sent)
            steps: list[CoarseStep] = [one_by_one(partial(one.step, level)) for level in prices]
            solver = _Timed(options, levels, one, steps, one, _Parts(one, parts) if Q > 1 else None)
            _solve(solver, one, sums, arrivals)
            infos.append(solver.info)
        sums.append(reduce(Time.latest, arrivals).after(run.costs.latency * run.rounds))
    return sums[-1], infos


def _solve(solver: Solver, one: _Rank, sums: Sequence[Time], arrivals: list[Time]) -> None:
    """The solve of one rank; `arrivals` is given the time at which it comes to the first sum that is not known yet."""
    calls = 0

    def total(rows: np.ndarray) -> np.ndarray:
        nonlocal calls
        if calls < len(sums):
            one.time = sums[calls]
        elif calls == len(sums):
            arrivals.append(one.time)
        calls += 1
        return np.array([[math.inf, 1.0]] * rows.shape[1])  # never small enough to stop

    x0 = torch.zeros(one.Q)
    guess = None
    if solver.options.initial not in ("coarse", "nested"):
        coarse = solver.levels[1:] if solver.options.initial == "tau" else solver.levels[1:2]
        guess = [x0.detach() for level in coarse for _ in range(level.lo, level.hi)]
    solver.solve(x0=x0, guess=guess, total=total)


def _begin(run: Run, view: View) -> list[Time]:
    """When each rank begins its solve: after the coarse steps are ready, and the lift, or `Engine._linearize`."""
    direction, ready = view.direction, _ZERO.after(run.costs.level * (len(view.bounds) - 1))
    time = [ready] * run.ranks
    if not run.adjoint:
        lifted = time[direction.first] = run.lift.after(*ready)
        constant = isinstance(run.options, MGRIT) and run.options.initial == "constant"
        return [lifted.after(run.hop * run.rounds)] * run.ranks if constant else time
    for bound in view.bounds[1:]:
        spans = direction.spans(bound)
        sent = list(time)  # states are sent before any is waited for
        Q = run.parts(view) if bound == view.bounds[-1] else 1
        once = run.coarse(spans, run.costs.fine * run.costs.share(Q))
        steps = list(zip(spans, direction.owners(spans), [Q * cost for cost in once], strict=True))
        for (a, _), owner, cost in steps[1:]:
            source = direction.slab.owner(a)
            if source != owner:
                time[owner] = time[owner].latest(sent[source].after(run.hop))
            time[owner] = time[owner].after(cost)
    return time
