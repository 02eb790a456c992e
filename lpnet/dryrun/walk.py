"""One training step on one rank without numbers: what it sends, and how many states it holds at once.

The solver is `mgrit.Solver` itself, run on states that are counted and nothing else; what the engine does around it is
repeated here, message by message. What a rank sends does not depend on what it receives, so each can be run alone.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from lpnet import together
from lpnet.clock import View, view_of
from lpnet.coarse_steps import CoarseSteps
from lpnet.coarsen import Recipe, Recipes, Span, kind_of
from lpnet.direction import Direction
from lpnet.dryrun.counted import Counting, Ledger, Parts, State
from lpnet.dryrun.subject import Subject, shape_of
from lpnet.memory import FROM_EARLIER
from lpnet.messages import Posted
from lpnet.mgrit import FinePropagator
from lpnet.options import MGRIT, SolverOptions
from lpnet.steppers import Picard, is_in_place, stages_of


class Coarse(NamedTuple):
    """The coarse steps of a rank on one level of one direction.

    Attributes:
        recipes: what each step consists of.
        steps: those of the engine, without fields; None: it has none.
        last: index of the last step of the level.
        name: the same for two directions that share them.
    """

    recipes: list[Recipe]
    steps: CoarseSteps | None
    last: int
    name: Any


class _Rank(FinePropagator):
    """A rank in the place of the propagators and of the communicator; of the adjoint where it records nothing."""

    def __init__(self, walk: "Walk", records: Any = None) -> None:
        self.walk, self.ledger, self.records, self.kind = walk, walk.ledger, records, "halo"

    def sweep(self, last: bool) -> None:
        if self.records is not None:
            self.records.clear()

    def run(self, i0: int, i1: int, u: Any) -> Any:
        return self._note(i0, i1, u, State(self.ledger))

    def _note(self, i0: int, i1: int, u: Any, v: Any) -> Any:
        if self.records is not None:
            self.records[i0, i1] = (u, v) if self.walk.subject.store != "cpoints" else (u, u)
        return v

    def run_all(self, parts: Sequence[Span], us: Sequence[Any]) -> Iterator[Any]:
        """`together.run_all` and `together.pull_all`."""
        for group in self.walk.groups(parts, self.records is None):
            if len(group) < 2:
                yield from (self.run(*parts[i], us[i]) for i in group)
                continue
            length = parts[group[0]][1] - parts[group[0]][0]
            ends = self._at_once(group, length)
            yield from [self._note(*parts[i], us[i], v) for i, v in zip(group, ends, strict=True)]

    def _at_once(self, group: Sequence[int], length: int) -> list[State]:
        """The ends of a group; what it begins with is put together, and of the adjoint all states of general steps."""
        more = 1 if self.records is not None else 3 + (0 if self.walk.in_place else length)
        held = [State(self.ledger) for _ in range(more * len(group))]
        ends = [State(self.ledger) for _ in group]
        del held
        return ends

    def send(self, x: Any, to: int) -> None:
        self.ledger.count(self.kind, round(x.share * self.walk.subject.state))

    def recv(self, like: Any, source: int) -> Any:
        return State(self.ledger, like.share)

    def post(self, like: Any, source: int) -> Posted:
        return Posted(self, like, source)


class Walk:
    """The trunk's part of one training step on one of so many ranks.

    Args:
        subject: the trunk and the batch.
        ranks: P.
        rank: which of them.

    Attributes:
        ledger: messages and states.
        coarse: forward and adjoint, its coarse steps level by level.
        layers: how many it has.
        pieces: the layers of each segment that is swept forward.
        tapes: in how many parts of the batch the forward solve keeps it, and the adjoint wants it.
        blocks: groups of intervals that go together: the first one, and how many.
        alike: level -> how many coarse steps go together, at most.
        late: states of the exact chain's adjoint that wait for their gradients.
        points: C-points whose τ or state a solve leaves for the next one, forward and adjoint.
    """

    def __init__(self, subject: Subject, ranks: int, rank: int) -> None:
        self.subject, self.ranks, self.rank = subject, ranks, rank
        self.ledger, self.late = Ledger(), 0.0
        self.in_place = is_in_place(subject.stepper.stages(1.0))
        self.blocks: set[tuple[Span, int]] = set()
        self.alike: dict[Any, int] = {}
        self.tapes: list[int] = []
        self.recipes = Recipes(subject.stepper, 1.0)
        self.coarse: list[list[Coarse]] = []
        self._weights: set[Any] = set()
        ahead, back = self._view(False), self._view(True)
        self.slab = ahead.direction.slab
        self.layers, self.lo = self.slab.counts[rank], self.slab.starts[rank]
        self.hi = self.lo + self.layers
        self.points: list[int] = []
        self.records: dict[Span, Any] = {}
        self._go(ahead, back)
        self.pieces = list(self.records) if ahead.levels else [(self.lo, self.hi)] * (self.layers > 0)

    def _view(self, adjoint: bool) -> View:
        one = self.subject
        options = one.adjoint if adjoint else one.forward
        return view_of(one.layers, self.ranks, one.unit(self.ranks), adjoint, shape_of(options))

    def _go(self, ahead: View, back: View) -> None:
        one = self.subject
        earlier = [self._earlier(ahead, one.forward), self._earlier(back, one.adjoint)]
        self._restrict(ahead, one.forward)
        left = self._solve(ahead, one.forward, earlier[0], self.records)
        self.ledger.count("broadcast", one.slot)
        left = left if isinstance(one.forward, MGRIT) and one.forward.initial in FROM_EARLIER else []
        self._restrict(back, one.adjoint)
        linear = self._linearize(back)
        if one.store == "all" and not linear:
            self.records = {interval: (v, v) for interval, (_, v) in self.records.items()}
        self._solve(back, one.adjoint, earlier[1], None)
        self.ledger.count("broadcast", one.slot)
        self.points = [len(found or ()) for found in earlier]
        del left, linear  # up to here they were held

    def groups(self, parts: Sequence[Span], adjoint: bool) -> Iterator[list[int]]:
        """Which intervals of a sweep go together; notes them in `blocks`."""
        one = self.subject
        layers: Any = SimpleNamespace(fields=one.fields)
        for group in together.parts(layers, parts, [one.like] * len(parts)):
            own = [(one.layers - b, one.layers - a) if adjoint else (a, b) for a, b in (parts[i] for i in group)]
            swept = not adjoint or all(interval in self.records for interval in own)
            if len(group) > 1 and one.together and swept:
                self.blocks.add((min(own), len(own)))
                yield group
            else:
                yield from ([i] for i in group)

    # ---- coarse steps ------------------------------------------------------------------------------------------------

    def _restrict(self, view: View, options: SolverOptions) -> None:
        """`Engine.coarse` on each level: who computes what, and the weights that go to other ranks."""
        self.coarse.append([])
        for bound in view.bounds[1:]:
            assert isinstance(options, MGRIT)
            spans = view.direction.spans(bound)
            owners = view.direction.owners(spans)
            name = (tuple(spans), tuple(owners), *kind_of(options))
            mine = [k for k, owner in enumerate(owners) if owner == self.rank]
            recipes = [self.recipes(spans[k], options) for k in mine]
            self.coarse[-1].append(Coarse(recipes, self._steps(recipes, mine), len(spans) - 1, name))
            if name not in self._weights:
                self._weights.add(name)
                self._send_weights(spans, owners, options)

    def _steps(self, recipes: list[Recipe], mine: list[int]) -> CoarseSteps | None:
        if not mine:
            return None
        made, rows = [recipe.program for recipe in recipes], [len(recipe.rows) for recipe in recipes]
        return CoarseSteps(self.subject.stepper.memory, self.subject.fields, made, rows, mine[0])

    def evaluate(self, level: Coarse, adjoint: bool, taped: bool, ks: Sequence[int], us: Sequence[Any]) -> list[Any]:
        """Some coarse steps, `CoarseSteps._all`; those of `taped` have a tape."""
        found: dict[int, State] = {}
        assert level.steps is not None
        own = sorted(level.last - k for k in ks) if adjoint else sorted(ks)
        for run in level.steps.alike(own, [self.subject.like] if own else []):
            program = level.steps.programs[run[0] - level.steps.first]
            held = []
            if len(run) > 1 and not isinstance(program, Picard) and self.subject.fast:
                self.alike[level.name] = max(len(run), self.alike.get(level.name, 1))
                tape = 0 if taped else sum(self.subject.kept(step.term) for step in stages_of(program))
                held.append(State(self.ledger, len(run) * (1 + (tape + self.subject.scratch) / self.subject.state)))
            found |= {k: State(self.ledger) for k in run}
            del held
        return [found[level.last - k] if adjoint else found[k] for k in ks]

    def _send_weights(self, spans: Sequence[Span], owners: Sequence[int], options: MGRIT) -> None:
        for span, owner in zip(spans, owners, strict=True):
            if owner != self.rank and span[0] < self.hi and span[1] > self.lo:
                rows = len(self.recipes(span, options).rows)
                for numbers in self.subject.parameters:
                    self.ledger.count("weights", rows * numbers * self.subject.itemsize)

    def _linearize(self, view: View) -> list[State]:
        """`Engine._linearize`: the states that go to other ranks, and what is kept of those that come from there."""
        kept: list[State] = []
        for level, bound in zip(self.coarse[1], view.bounds[1:], strict=True):
            spans = view.direction.spans(bound)
            arrived, own = [], []
            for k, ((a, _), owner) in enumerate(zip(spans, view.direction.owners(spans), strict=True)):
                source = self.slab.owner(a)
                if k and source == self.rank != owner:
                    self.ledger.count("states", self.subject.state)
                elif k and owner == self.rank:
                    own.append(k)
                    local = [u for u, _ in self.records.values()]  # which the tape has already
                    arrived.append(State(self.ledger) if source != owner or not local else local[0])
            if own:
                self.evaluate(level, False, True, own, arrived)
            if any(isinstance(recipe.program, Picard) for recipe in level.recipes):
                kept += arrived  # in stages, only the tape is kept
        return kept

    # ---- solves ------------------------------------------------------------------------------------------------------

    def _solve(self, view: View, options: SolverOptions, earlier: Any, records: Any) -> list[Any]:
        """What a solve leaves for later ones."""
        x = State(self.ledger)
        self.tapes.append(1 if view.levels else len(self.subject.parts(options)))
        if not view.levels:
            return self._chain(view.direction, options, x, records)
        assert isinstance(options, MGRIT)
        levels = view.levels[view.direction.order.index(self.rank)]
        if options.initial == "constant":
            self.ledger.count("broadcast", self.subject.state)
        one = _Rank(self, records)
        adjoint = view.direction.adjoint
        steps = [partial(self.evaluate, level, adjoint, adjoint) for level in self.coarse[adjoint]]
        solver = Counting(options, levels, one, steps, one, self._parts(view, options))
        points = levels[0].coarse_hi - levels[0].coarse_lo
        guess: Any = [x] * points if options.initial == "constant" else earlier
        solver.solve(x, guess, self._total)  # type: ignore[arg-type]
        left: list[Any] = list(solver.tau() if options.initial == "tau" else solver.c)
        solver.end_counting()
        return left

    def _parts(self, view: View, options: MGRIT) -> Parts | None:
        """`Engine._parted`."""
        owners = view.direction.owners(view.direction.spans(view.bounds[-1]))
        if self.rank not in owners or len(set(owners)) == 1 or options.micro_batches == 1:
            return None
        return Parts(self.ledger, [part / self.subject.batch for part in self.subject.parts(options)])

    def _earlier(self, view: View, options: SolverOptions) -> list[State] | None:
        """What an earlier solve has left."""
        if not view.levels or not isinstance(options, MGRIT) or options.initial not in FROM_EARLIER:
            return None
        levels = view.levels[view.direction.order.index(self.rank)]
        coarse = levels[1:] if options.initial == "tau" else levels[1:2]
        return [State(self.ledger) for level in coarse for _ in range(level.lo, level.hi)]

    def _total(self, rows: np.ndarray) -> np.ndarray:
        if self.ranks > 1:
            self.ledger.count("sum", rows.nbytes)
        return np.array([[np.inf, 1.0]] * rows.shape[1])  # never small enough to stop

    def _chain(self, direction: Direction, options: SolverOptions, x: State, records: Any) -> list[Any]:
        """`Engine._chain` and `Engine._chain_back`; the states are those of all parts of the batch."""
        busy = [rank for rank in direction.order if self.slab.counts[rank]]
        if self.rank not in busy:
            return []
        parts = self.subject.parts(options)
        if self.rank != busy[-1]:
            for part in parts:
                self.ledger.count("chain", self.subject.state * part // self.subject.batch)
        bars = State(self.ledger) if records is None else None
        end = _Rank(self, records).run(self.lo, self.hi, x)
        del bars
        if records is None:  # cotangents of parts that are pulled once more
            self.late = sum(parts[: len(busy) - 1 - busy.index(self.rank)]) / self.subject.batch
        return [end]
