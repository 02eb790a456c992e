"""What a run would take on so many ranks: slabs, levels, memory, messages, and time by the cost model.

Memory and messages follow from the configuration; the time is modelled, from what the steps cost on this machine and
from an interconnect that is given. None of it is measured on these ranks.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lpnet.clock import view_of
from lpnet.config import Config
from lpnet.cost import critical_path, on_fabric, serial_work
from lpnet.costs import Costs
from lpnet.data import DataSet
from lpnet.dryrun.footprint import Edges, Footprint, footprint
from lpnet.dryrun.specimen import MOST, Rest, copies, rest, specimen
from lpnet.dryrun.subject import Subject, shape_of
from lpnet.dryrun.traffic import outside
from lpnet.dryrun.walk import Walk
from lpnet.errors import InputError
from lpnet.fabrics import Fabric, fabric_of
from lpnet.measure import measure
from lpnet.network import Examples
from lpnet.optimizers import SEARCHING
from lpnet.options import MGRIT, SolverOptions

LARGEST = 4096
"""Most ranks of a forecast."""
GAIN = 0.95
"""More ranks help as long as they take less than this share of the time."""


@dataclass(frozen=True)
class Point:
    """A number of ranks.

    Attributes:
        ranks: P.
        solves: modelled seconds of the trunk's forward and adjoint solve.
        step: modelled seconds of a whole training step.
        serial: the same of the exact chain on one rank.
        memory: bytes of the largest rank.
    """

    ranks: int
    solves: float
    step: float
    serial: float
    memory: float

    @property
    def speedup(self) -> float:
        """Over the exact chain on one rank."""
        return self.serial / self.step

    @property
    def efficiency(self) -> float:
        """Speed-up per rank."""
        return self.speedup / self.ranks


@dataclass(frozen=True)
class Messages:
    """What a rank sends in one step, by what it is for: how many, and bytes."""

    counts: dict[str, int]
    bytes: dict[str, int]

    @classmethod
    def of(cls, *ledgers: Any) -> "Messages":
        """The sum of several."""
        counts: dict[str, int] = {}
        sizes: dict[str, int] = {}
        for ledger in ledgers:
            for kind, n in ledger.sent.items():
                counts[kind] = counts.get(kind, 0) + n
                sizes[kind] = sizes.get(kind, 0) + ledger.bytes[kind]
        return cls(counts, sizes)

    @property
    def sent(self) -> int:
        """Messages to a single rank."""
        return sum(n for kind, n in self.counts.items() if kind not in ("broadcast", "sum"))

    @property
    def volume(self) -> int:
        """Their bytes."""
        return sum(n for kind, n in self.bytes.items() if kind not in ("broadcast", "sum"))


@dataclass(frozen=True)
class Level:
    """A level of a solver: how many steps, the factor to the next coarser one, and how many ranks have any."""

    steps: int
    coarsening: int | None
    busy: int


@dataclass(frozen=True)
class Forecast:
    """What a run would take.

    Attributes:
        subject: trunk and batch.
        ranks: P.
        steps: training steps with this many layers.
        fabric: the interconnect of the model.
        slabs: layers of each rank.
        levels: of the forward and of the adjoint solver.
        footprints: memory of each rank.
        messages: of each rank, in one step.
        points: modelled time over the number of ranks.
        costs: of the steps, in seconds, measured on this machine.
        rest: the same of what is outside the trunk.
        notes: what the model leaves out.
        coarser: forecasts of the coarser levels of multilevel training, the coarsest first.
    """

    subject: Subject
    ranks: int
    steps: int
    fabric: Fabric
    slabs: tuple[int, ...]
    levels: tuple[tuple[Level, ...], tuple[Level, ...]]
    footprints: tuple[Footprint, ...]
    messages: tuple[Messages, ...]
    points: tuple[Point, ...]
    costs: Costs
    rest: Rest
    notes: tuple[str, ...] = ()
    coarser: tuple["Forecast", ...] = ()

    @property
    def here(self) -> Point:
        """The number of ranks that was asked for."""
        return next(point for point in self.points if point.ranks == self.ranks)

    @property
    def enough(self) -> int:
        """The number of ranks beyond which more does not help (by the model)."""
        least = min(point.step for point in self.points)
        return next(point.ranks for point in self.points if point.step * GAIN <= least)

    def lines(self) -> list[str]:
        """Lines to read."""
        from lpnet.dryrun.text import lines

        return lines(self)


def forecast(
    config: Config,
    dataset: DataSet,
    ranks: int = 1,
    fabric: Fabric | str = "default",
    costs: Costs | None = None,
    outside_trunk: Rest | None = None,
) -> Forecast:
    """What the run of a configuration would take on so many ranks; needs one rank alone, and writes nothing.

    Args:
        config: of the run, with the solvers that it would use.
        dataset: its examples.
        ranks: P.
        fabric: the interconnect, or its name (`lpnet.fabrics.FABRICS`).
        costs: of the steps; None: measured. Those of messages are the fabric's in any case.
        outside_trunk: of the rest of a step; None: measured.

    Raises:
        InputError: `ranks` below 1 or above 4096, or an unknown fabric.
    """
    if isinstance(ranks, bool) or not isinstance(ranks, int) or not 1 <= ranks <= LARGEST:
        raise InputError(f"ranks: {ranks!r} given, a whole number from 1 to {LARGEST} allowed")
    model = _Model(config, dataset, ranks, fabric_of(fabric), costs, outside_trunk)
    layers = config.multilevel.layers(config.trunk.layers)
    ends = config.multilevel.ends(config.training.total_steps(len(dataset.train_y)))
    steps = [b - a for a, b in zip((0, *ends), ends, strict=False)]
    *coarser, finest = [model.forecast(n, count) for n, count in zip(layers, steps, strict=True)]
    return dataclasses.replace(finest, coarser=tuple(coarser))


class _Model:
    """What forecasts of one configuration share."""

    def __init__(
        self,
        config: Config,
        dataset: DataSet,
        ranks: int,
        fabric: Fabric,
        costs: Costs | None,
        outside_trunk: Rest | None,
    ) -> None:
        self.config, self.ranks, self.fabric = config, ranks, fabric
        self.batch = min(config.training.batch or len(dataset.train_y), len(dataset.train_y))
        examples = Examples(dataset.features, dataset.classes)
        own = max(1, min(MOST, -(-config.trunk.layers // ranks)))
        self.net = specimen(config, examples, own)
        like = self.net.classifier.weight
        y = torch.randn(self.batch, config.trunk.width, generator=torch.Generator().manual_seed(0)).to(like)
        self.costs = measure(self.net.trunk, y) if costs is None else costs
        self.rest = rest(config, examples, self.batch, own) if outside_trunk is None else outside_trunk
        self.penalties = [key for key in ("tikhonov", "ddt") if getattr(config.regularizer, key)]
        self.edges = self._edges(dataset, copies(config, examples))

    def _edges(self, dataset: DataSet, kept: float) -> Edges:
        net, one = self.net, self.net.classifier.weight.element_size()
        arrays = [dataset.train_x, dataset.val_x]
        data = sum(a.nbytes + (a.size * one if a.itemsize != one else 0) for a in arrays)
        data += dataset.train_y.nbytes + dataset.val_y.nbytes
        parameters = sum(p.numel() for part in (net.opening, net.classifier) for p in part.parameters()) * one
        batches = self.config.training.method == "simultaneous" and self.batch < len(dataset.train_y)
        keeps = batches and self.config.oneshot.warm in ("auto", "examples") and self.config.oneshot.scratch is None
        examples = len(dataset.train_y) if keeps else 0
        return Edges(parameters, dataset.features, dataset.classes, data, examples, kept, len(self.penalties))

    def forecast(self, layers: int, steps: int) -> Forecast:
        """That of so many layers."""
        config = self.config.at_layers(layers)
        solvers = tuple(
            getattr(config.solver, key).options(f"solver.{key}") for key in ("forward", "adjoint")
        )
        shape = (self.batch, config.trunk.width)
        subject = Subject.of(self.net.trunk, shape, layers, (solvers[0], solvers[1]), config.trunk.control_grid)
        costs = on_fabric(self.costs, self.fabric, subject.state)
        walks = [Walk(subject, self.ranks, rank) for rank in range(self.ranks)]
        control = config.control.gradient_tol is not None
        around = [outside(subject, self.ranks, rank, self.penalties, control) for rank in range(self.ranks)]
        return Forecast(
            subject,
            self.ranks,
            steps,
            self.fabric,
            tuple(walks[0].slab.counts),
            (self._levels(subject, False), self._levels(subject, True)),
            tuple(footprint(walk, self.edges) for walk in walks),
            tuple(Messages.of(walk.ledger, more) for walk, more in zip(walks, around, strict=True)),
            tuple(self._points(subject, costs, sums=1 + len(self.penalties))),
            costs,
            self.rest,
            tuple(_notes(config)),
        )

    def _levels(self, subject: Subject, adjoint: bool) -> tuple[Level, ...]:
        options: SolverOptions = subject.adjoint if adjoint else subject.forward
        view = view_of(subject.layers, self.ranks, subject.unit(self.ranks), adjoint, shape_of(options))
        if not view.levels:
            return (Level(subject.layers, None, sum(n > 0 for n in view.direction.slab.counts)),)
        assert isinstance(options, MGRIT)
        factors = [options.factor(depth) for depth in range(len(view.bounds) - 1)]
        busy = [sum(levels[depth].lo < levels[depth].hi for levels in view.levels) for depth in range(len(view.bounds))]
        return tuple(Level(len(b) - 1, m, n) for b, m, n in zip(view.bounds, [*factors, None], busy, strict=True))

    def _points(self, subject: Subject, costs: Costs, sums: int) -> list[Point]:
        """Doubling the ranks until that no longer helps."""
        found: list[Point] = []
        serial = serial_work(subject.layers, costs).total + self.rest.seconds(subject.layers)
        P, least = 1, float("inf")
        while min(subject.layers, LARGEST // 4) >= P:
            found.append(self._point(subject, costs, P, serial, sums))
            if found[-1].step > GAIN * least and self.ranks < P:
                break
            least, P = min(least, found[-1].step), 2 * P
        if self.ranks not in [point.ranks for point in found]:
            found.append(self._point(subject, costs, self.ranks, serial, sums))
        return sorted(found, key=lambda point: point.ranks)

    def _point(self, subject: Subject, costs: Costs, P: int, serial: float, sums: int) -> Point:
        solves = critical_path(subject.stepper, subject.layers, P, subject.forward, subject.adjoint, costs).total
        most = _largest(subject, P)
        around = self.rest.seconds(most.layers) + sums * self.fabric.gather(0, P)
        return Point(P, solves, solves + around, serial, footprint(most, self.edges).total)


def _largest(subject: Subject, ranks: int) -> Walk:
    """The walk of a rank with the most layers (an inner one where there is a choice)."""
    counts = Walk(subject, ranks, 0).slab.counts
    most = max(counts)
    places: Sequence[int] = [rank for rank, n in enumerate(counts) if n == most]
    return Walk(subject, ranks, places[len(places) // 2])


def _notes(config: Config) -> list[str]:
    name, found = config.optimizer.name, []
    if name in SEARCHING:
        found.append(f"{name}: without its line search" + (" and inner solves" if name not in ("lbfgs", "ncg") else ""))
    if config.control.gradient_tol is not None:
        found.append("error control: the cycles may change in the course, and checks take further solves")
    if config.training.method == "simultaneous":
        found.append("simultaneous: comparing what mini-batches start from")
    for key in ("forward", "adjoint"):
        if getattr(config.solver, key).tol is not None:
            found.append(f"solver.{key}.tol: all cycles are counted, though fewer may do")
    found.append("exact evaluations of all examples, every training.validate_every steps")
    return found
