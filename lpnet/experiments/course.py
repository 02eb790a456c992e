"""Networks for the problems in the plane, trained from few layers to many by Newton–PCG.

    logits = W y_N + c,    y_0 = (features, 0, …) or a linear layer,    y_{j+1} = Φ_j(y_j)

All accuracies and objectives are those of the exact chain.
"""

import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lpnet import LayerParallel, Serial, dynamics, regularizers, steppers
from lpnet.data import DataOptions, DataSet, load
from lpnet.errors import InputError
from lpnet.experiments.base import Context
from lpnet.experiments.models import F64
from lpnet.multilevel import Cascade, Level, prolongate_net
from lpnet.multilevel.prolong import only_trunk
from lpnet.network import Pad
from lpnet.optim import PCG, BlockCoordinateDescent
from lpnet.optim.gaussnewton import Report
from lpnet.stack import generator

Net = nn.Sequential


@dataclass(frozen=True)
class Task:
    """A network and how it is trained.

    Args:
        kind: dynamics of the registry; `stepper` fits it.
        width: of the states.
        T: final time.
        layers: of the levels.
        steps: outer steps on each level, at most.
        ddt, tikhonov, classifier: weights of the regularisers.
        start: K = start · I in all layers at first, b = 0; None: one random draw for all layers.
        opening: "pad" with zeros, or a "linear" layer that is trained too.
        pcg: inner steps, at most, and relative tolerance.
        enough: a level ends with a step that reduces the objective by less than this share.
        options: of the dynamics.
    """

    kind: str
    width: int
    T: float
    layers: tuple[int, ...]
    steps: tuple[int, ...]
    stepper: steppers.Stepper | None = None
    ddt: float = 1e-3
    tikhonov: float = 1e-6
    classifier: float = 1e-4
    start: float | None = None
    opening: str = "pad"
    pcg: tuple[int, float] = (20, 1e-2)
    enough: float = 1e-4
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class Course:
    """What a training did.

    Attributes:
        net: the finest network.
        levels: what each level did.
        work, objective: after each outer step, from before the first on; work in gradients of the finest network.
        level: of each outer step.
        reports: of each outer step.
    """

    net: Net
    levels: tuple[Level, ...] = ()
    work: list[float] = field(default_factory=list)
    objective: list[float] = field(default_factory=list)
    level: list[int] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """The levels for the JSON file."""
        return [
            {
                "layers": one.layers,
                "steps": self.level.count(one.layers) - (one is self.levels[0]),
                "objective_before": one.before,
                "objective_prolongated": one.start,
                "jump": one.jump,
                "objective": one.end,
                "work": one.work,
                "seconds": one.seconds,
            }
            for one in self.levels
        ]


class Problem:
    """Examples as tensors, and what is asked of a network on them."""

    def __init__(self, context: Context, name: str, **options: Any) -> None:
        self.data: DataSet = load(DataOptions(**({"name": name} | options)), context.seed)
        pairs = ((self.data.train_x, self.data.train_y), (self.data.val_x, self.data.val_y))
        self.train, self.validation = ((torch.from_numpy(x).to(F64), torch.from_numpy(c)) for x, c in pairs)
        self.context = context

    def net(self, task: Task, layers: int | None = None) -> Net:
        """The network of a task with its first weights; collective."""
        seed, width = self.context.seed, task.width
        module = dynamics.REGISTRY[task.kind](width, **task.options)
        n = task.layers[0] if layers is None else layers
        trunk = LayerParallel(
            module, n, task.T, task.stepper, Serial(), Serial(), seed, self.context.comm, dtype=F64
        )
        if task.start is not None:
            with torch.no_grad():
                for name, p in trunk.theta.items():
                    p.copy_(task.start * torch.eye(width, dtype=F64).expand_as(p) if name == "K" else 0.0 * p)
        opening = Pad(self.data.features, width) if task.opening == "pad" else _linear(seed, 2, width)
        return Net(opening, trunk, _linear(seed, width, self.data.classes))

    @torch.no_grad()
    def accuracy(self, net: nn.Module, which: str = "validation") -> float:
        """Share of the examples that are classified correctly; collective."""
        x, c = getattr(self, which)
        return float((net(x).argmax(1) == c).double().mean())

    def penalties(self, net: Net, task: Task) -> list[regularizers.Penalty]:
        """The regularisers of a task."""
        trunk = only_trunk(net)
        return [
            regularizers.Tikhonov(trunk, task.tikhonov),
            regularizers.TimeDerivative(trunk, task.ddt),
            regularizers.Quadratic(net[-1].parameters(), task.classifier),
        ]

    @torch.no_grad()
    def objective(self, net: Net, task: Task) -> float:
        """Cross entropy and regularisers; collective."""
        x, c = self.train
        return float(cross_entropy(net(x), c) + sum(penalty() for penalty in self.penalties(net, task)))

    def course(self, task: Task, watch: Callable[[Net, int, int], None] | None = None) -> Course:
        """Train from level to level; collective.

        Args:
            task: what is trained, and how.
            watch: is shown (net, layers, step) after each outer step.
        """
        net = self.net(task)
        found = Course(net, work=[0.0], objective=[self.objective(net, task)], level=[task.layers[0]])

        def train(net: Net, level: int) -> float:
            before = len(found.reports)
            self.descend(net, task, task.steps[level], found, watch)
            return sum(report.work for report in found.reports[before:])

        cascade = Cascade(task.layers)
        found.net, found.levels = cascade.run(
            net, train, lambda net: self.objective(net, task), self.accuracy, refine=prolongate_net
        )
        return found

    def descend(
        self, net: Net, task: Task, steps: int, found: Course, watch: Callable[[Net, int, int], None] | None = None
    ) -> None:
        """Outer steps on one network, written down in `found`; collective."""
        iterations, tol = task.pcg
        optimizer = BlockCoordinateDescent(net, penalties=self.penalties(net, task), pcg=PCG(iterations, tol))
        layers = only_trunk(net).layers
        for step in range(steps):
            report = optimizer.step_on(*self.train)
            found.reports.append(report)
            found.work.append(found.work[-1] + report.work * layers / task.layers[-1])
            found.objective.append(report.after)
            found.level.append(layers)
            if watch is not None:
                watch(net, layers, step)
            if not report.before - report.after > task.enough * report.before:
                break


def _linear(seed: int, inputs: int, outputs: int) -> nn.Linear:
    """A linear layer with weights of variance 1/inputs, drawn from the seed alone."""
    layer = nn.Linear(inputs, outputs, dtype=F64)
    source = generator(seed, zlib.crc32(f"experiments/{inputs}x{outputs}".encode()))
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=source, dtype=F64) / inputs**0.5)
        layer.bias.zero_()
    return layer


def percent(value: float) -> str:
    """As the gallery writes accuracies."""
    return f"{100 * value:.2f} %"


def listed(values: Sequence[Any], form: str = "{}") -> str:
    """1, 2 and 3."""
    texts = [form.format(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def grid(data: DataSet, cells: int = 200) -> tuple[tuple[float, float, float, float], Tensor, tuple[int, int]]:
    """The frame of a data set in the plane, the points of a grid over it (n, 2), and its rows and columns."""
    if data.bounds is None:
        raise InputError(f"data: {data.name} given, which has no frame; peaks, ellipses, swissroll allowed")
    (left, right), (bottom, top) = data.bounds
    columns = cells
    rows = max(2, round(cells * (top - bottom) / (right - left)))
    x, y = np.linspace(left, right, columns), np.linspace(bottom, top, rows)
    points = np.column_stack([axis.ravel() for axis in np.meshgrid(x, y)])
    return (left, right, bottom, top), torch.from_numpy(points), (rows, columns)
