"""17. Training with MGRIT in place of the exact chain, and with weights, states and adjoints converging together.

    serial       exact forward and adjoint chain                      3 N evaluations a step, one after the other
    (i)          gradients by MGRIT, one cycle forward and one back
    (ii)         simultaneous optimisation: one sweep each way, the next step goes on from its defects τ

The same network, batches, optimizer and first weights for all three. Losses and accuracies are from exact evaluations.
Work and time on many ranks are modelled by `lpnet.cost` from the solves that each step did, checks included.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lpnet import MGRIT, Adaptive, LayerParallel, OneShot, Serial, WarmStates, cost, dynamics, regularizers
from lpnet.cost import UNIT, Costs
from lpnet.data import DataOptions, load
from lpnet.experiments import style
from lpnet.experiments.base import Context, Result
from lpnet.experiments.course import listed, percent
from lpnet.experiments.machine import BANDWIDTH, LATENCY, machine, times
from lpnet.experiments.models import accuracy, ends, exact_loss
from lpnet.oneshot import TOLERANCE, Descent
from lpnet.options import SolverOptions

WIDTH, T, BATCH, RATE, EVERY = 8, 5.0, 500, 2e-2, 10
DDT, TIKHONOV = 1e-4, 1e-7
SOLVER = MGRIT((8, 4), 3, cycles=1)
NAMES = {"serial": "serial", "sgd": "(i) MGRIT, 1 + 1 cycles", "oneshot": "(ii) simultaneous"}


@dataclass
class Run:
    """One training.

    Attributes:
        loss: of each step's batch, at the states that the solver found, with regularisers.
        seconds: of each step, as measured here.
        evaluations, modelled: of each step: critical path on P ranks in evaluations of a layer, and in seconds.
        here: the same as `modelled` for the ranks at hand, to compare with what was measured.
        gradient_error: of each step, as error control estimates it (a checked step uses the better gradient); or None.
        steps, train_loss, accuracy: exact evaluations: after so many steps, cross entropy and validation accuracy.
        train_accuracy: at the end.
    """

    loss: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    evaluations: list[float] = field(default_factory=list)
    modelled: list[float] = field(default_factory=list)
    here: list[float] = field(default_factory=list)
    gradient_error: list[float | None] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    train_loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    train_accuracy: float = math.nan

    def reached(self, wanted: float) -> int | None:
        """Steps to this validation accuracy."""
        return next((step for step, a in zip(self.steps, self.accuracy, strict=True) if a >= wanted), None)


class Prices(NamedTuple):
    """Critical path of a step: in evaluations of a layer and in seconds on P ranks, and in seconds on those at hand."""

    evaluations: float
    modelled: float
    here: float


class Task:
    """The network and the examples that all methods are given."""

    def __init__(self, context: Context) -> None:
        self.context, self.layers = context, context.pick(256, 64)
        self.ranks, self.steps = context.pick(32, 8), context.pick(240, 60)
        data = load(DataOptions("peaks", train=2000, validation=2000), context.seed)
        pairs = ((data.train_x, data.train_y), (data.val_x, data.val_y))
        self.train, self.validation = ((torch.from_numpy(x).float(), torch.from_numpy(c)) for x, c in pairs)

    def net(self, solver: SolverOptions) -> nn.Sequential:
        """The network with its first weights; collective."""
        opening, classifier = ends(2, WIDTH, 5, self.context.rng("training/ends"))
        module, comm = dynamics.Dense(WIDTH), self.context.comm
        trunk = LayerParallel(
            module, self.layers, T, None, solver, solver, self.context.seed, comm, dtype=torch.float32
        )
        return nn.Sequential(opening.float(), trunk, classifier.float())

    def descent(self, name: str) -> Descent:
        """The network of a method, with the method."""
        net = self.net(Serial() if name == "serial" else SOLVER)
        trunk: Any = net[1]
        penalties = (regularizers.Tikhonov(trunk, TIKHONOV), regularizers.TimeDerivative(trunk, DDT))

        def loss(logits: Tensor, label: Tensor) -> Tensor:
            return sum((penalty() for penalty in penalties), cross_entropy(logits, label))

        adam = torch.optim.Adam(net.parameters(), lr=RATE)
        if name != "oneshot":
            return Descent(net, adam, loss)
        control = Adaptive(TOLERANCE, plan_ranks=self.ranks)
        return OneShot(net, adam, loss, control=control, warm=WarmStates(examples=len(self.train[1])))

    def batches(self) -> Iterator[Tensor]:
        """Numbers of the examples of each batch, the same for all methods."""
        rng = self.context.rng("training/batches")
        while True:
            yield from torch.from_numpy(rng.permutation(len(self.train[1]))).split(BATCH)

    def rate(self, step: int) -> float:
        """The learning rate over its largest: ten steps up, then a cosine."""
        return min((step + 1) / 10, 0.5 * (1 + math.cos(math.pi * step / self.steps)))

    def run(self, name: str, priced: Callable[[Descent], "Prices"]) -> Run:
        """Train by a method; collective.

        Args:
            name: of the method.
            priced: critical path of the last step.
        """
        descent, found = self.descent(name), Run()
        schedule = torch.optim.lr_scheduler.LambdaLR(descent.optimizer, self.rate)
        x, label = self.train
        for step, index in zip(range(self.steps + 1), self.batches(), strict=False):
            if step % EVERY == 0:
                found.steps.append(step)
                found.train_loss.append(exact_loss(descent.net, x, label))
                found.accuracy.append(accuracy(descent.net, *self.validation))
            if step == self.steps:
                break
            start = time.perf_counter()
            progress = descent.step(x[index], label[index], index)
            found.seconds.append(time.perf_counter() - start)
            schedule.step()
            found.loss.append(progress.loss)
            found.gradient_error.append(0.0 if progress.checked else progress.gradient_error)
            price = priced(descent)
            found.evaluations.append(price.evaluations)
            found.modelled.append(price.modelled)
            found.here.append(price.here)
        found.train_accuracy = accuracy(descent.net, x, label)
        return found


def run(context: Context) -> Result:
    """Train by the three methods; collective."""
    task, wanted = Task(context), context.pick(0.95, 0.6)
    trunk: Any = task.net(Serial())[1]
    costs = machine(trunk, torch.zeros(BATCH, WIDTH), context.pick(5, 3))
    units = (replace(UNIT, fixed=costs.fixed), costs)
    chains = [times(task.layers, task.ranks, SOLVER, unit, BATCH) for unit in units]

    def priced(descent: Descent) -> Prices:
        many, here = task.ranks, context.comm.size
        if not isinstance(descent.trunks[0].forward_solver, MGRIT):
            return Prices(chains[0]["serial"], chains[1]["serial"], _critical_path(descent, here, costs))
        on = ((many, units[0]), (many, costs), (here, costs))
        return Prices(*(_critical_path(descent, ranks, unit) for ranks, unit in on))

    runs = {name: task.run(name, priced) for name in NAMES}
    numbers: dict[str, Any] = {
        "wanted": wanted,
        "ranks": {"modelled": task.ranks, "measured": context.comm.size},
        "layers": task.layers,
        "methods": {name: _numbers(one, wanted) for name, one in runs.items()},
        "pipelined_a_step": {"evaluations": chains[0]["pipelined"], "modelled": chains[1]["pipelined"]},
        "largest_loss_difference": {name: _apart(runs[name], runs["serial"]) for name in ("sgd", "oneshot")},
        "curves": {name: vars(one) for name, one in runs.items()},
        "costs": asdict(costs),
    }
    settings = {
        "data": "peaks, 2000 and 2000 examples", "width": WIDTH, "T": T, "batch": BATCH, "steps": task.steps,
        "optimizer": f"Adam, {RATE}, cosine", "ddt": DDT, "tikhonov": TIKHONOV, "solver": str(SOLVER),
        "tolerance_of_control": TOLERANCE, "latency": LATENCY, "bandwidth": BANDWIDTH,
    }  # fmt: skip
    return Result(numbers, _see(numbers), lambda: _draw(numbers), settings)


def _critical_path(descent: Descent, ranks: int, costs: Costs) -> float:
    """Of all solves of the last step."""
    trunk = descent.trunks[0]
    solves = ((s.forward, s.adjoint) for s in trunk.info.schedules)
    return sum(cost.critical_path(trunk.stepper, trunk.layers, ranks, *pair, costs=costs).total for pair in solves)


def _numbers(one: Run, wanted: float) -> dict[str, Any]:
    """The end of a run, and what it took to the accuracy."""
    steps = one.reached(wanted)
    found: dict[str, Any] = {
        "train_loss": one.train_loss[-1],
        "train_accuracy": one.train_accuracy,
        "validation_accuracy": one.accuracy[-1],
        "steps_to_accuracy": steps,
    }
    for key in ("evaluations", "modelled", "seconds"):
        found[f"{key}_a_step"] = float(np.mean(getattr(one, key)))
        found[f"{key}_to_accuracy"] = None if steps is None else float(np.sum(getattr(one, key)[:steps]))
    found["milliseconds_a_step_here"] = {"measured": _milli(one.seconds), "modelled": _milli(one.here)}
    errors = [e for e in one.gradient_error if e is not None]
    return found | {"largest_gradient_error": max(errors, default=None)}


def _milli(seconds: list[float]) -> float:
    """Median in milliseconds, for other work on the machine disturbs single steps."""
    return 1e3 * float(np.median(seconds))


def _apart(one: Run, other: Run) -> float:
    """Largest difference of the training losses, relative to the first loss."""
    return float(np.abs(np.subtract(one.train_loss, other.train_loss)).max() / other.train_loss[0])


# ---- words and picture -----------------------------------------------------------------------------------------------


def _see(numbers: dict[str, Any]) -> str:
    found, ranks, apart = numbers["methods"], numbers["ranks"], numbers["largest_loss_difference"]
    ends = ", ".join(f"{NAMES[name]} {percent(one['validation_accuracy'])}" for name, one in found.items())
    here = "one rank" if ranks["measured"] == 1 else f"{ranks['measured']} ranks"
    steps = {
        kind: [one["milliseconds_a_step_here"][kind] for one in found.values()] for kind in ("measured", "modelled")
    }
    chain = numbers["pipelined_a_step"]["modelled"] / found["serial"]["modelled_a_step"]
    return (
        f"Peaks with {numbers['layers']} layers, trained three times from the same weights with the same batches. The "
        "losses of all examples, evaluated exactly, lie on one curve: those of (i) and (ii) differ from the serial "
        f"ones by at most {100 * apart['sgd']:.1g} % and {100 * apart['oneshot']:.1g} % of the first loss. At the end "
        f"{ends} of the validation examples are right. Error control estimates the errors of the gradients used in "
        f"(ii) as at most {found['oneshot']['largest_gradient_error']:.2f}. To {numbers['wanted']:.0%}, serial "
        f"training does {_to(found, 'evaluations', '{:.0f}')} evaluations of a layer in sequence; on the critical path "
        f"of {ranks['modelled']} ranks (modelled, with checks) it is {_ratios(found, 'evaluations')}. With layers as "
        "fast as here and a network of 2 µs and 10 GB/s, where coarse steps and messages cost time beside evaluations, "
        f"it is {_ratios(found, 'modelled')} of {_to(found, 'modelled', '{:.2f}')} s, and the pipelined chain takes "
        f"{chain:.2f} of the serial time. Measured on {here} here, a step takes {_three(steps['measured'])} ms "
        f"(serial, (i), (ii); medians), where the model, for the trunk alone, says "
        f"{_three(steps['modelled'])}: layer parallelism pays with ranks, not without."
    )


def _three(values: list[float]) -> str:
    return listed(values, "{:.0f}")


def _to(found: dict[str, Any], key: str, form: str) -> str:
    value = found["serial"][f"{key}_to_accuracy"]
    return "(not reached)" if value is None else form.format(value)


def _ratios(found: dict[str, Any], key: str) -> str:
    texts = []
    for name, label in (("sgd", "(i)"), ("oneshot", "(ii)")):
        mine, serial = (found[one][f"{key}_to_accuracy"] for one in (name, "serial"))
        texts.append(f"{label} never" if None in (mine, serial) else f"1/{serial / mine:.1f} in {label}")
    return " and ".join(texts)


def _draw(numbers: dict[str, Any]) -> Figure:
    ranks = numbers["ranks"]
    title = f"Training in parallel over {numbers['layers']} layers: the serial curve in less time on many ranks"
    figure, axes = style.figure(title, (2, 2), (12.0, 8.4))
    left, right = axes[0]
    for i, (name, one) in enumerate(numbers["curves"].items()):
        left.plot(one["steps"], one["train_loss"], **_look(i), label=NAMES[name])
    style.log(left, "y")
    style.axis(left, "Training loss, exact evaluation", "step", "cross entropy")
    style.legend(left)
    on = f"critical path on {ranks['modelled']} ranks (serial: one), modelled"
    _draw_accuracy(right, numbers, "evaluations")
    style.axis(right, "Accuracy against work", f"evaluations of a layer, {on}", "validation accuracy")
    _draw_accuracy(axes[1, 0], numbers, "modelled")
    label = f"seconds, {on}"
    style.axis(axes[1, 0], "Measured layers, network of 2 µs and 10 GB/s", label, "validation accuracy")
    _draw_accuracy(axes[1, 1], numbers, "seconds")
    label = f"seconds of training, measured, ranks: {ranks['measured']}"
    style.axis(axes[1, 1], "Measured on the ranks at hand", label, "validation accuracy")
    return figure


def _draw_accuracy(ax: Axes, numbers: dict[str, Any], key: str) -> None:
    for i, (name, one) in enumerate(numbers["curves"].items()):
        ax.plot(*_against(one, np.array(one[key])), **_look(i), label=NAMES[name])
    if key in numbers["pipelined_a_step"]:
        one = numbers["curves"]["serial"]
        spent = np.full(len(one[key]), numbers["pipelined_a_step"][key])
        ax.plot(*_against(one, spent), **style.look(1, marker=None, linestyle="--"), label="pipelined chain, best Q")
    wanted = numbers["wanted"]
    ax.axhline(wanted, color="0.5", linewidth=1.0, linestyle=":", label=f"accuracy of {wanted:.0%}")
    style.log(ax, "x")
    ax.yaxis.set_major_formatter(style.percent())
    style.legend(ax)


def _against(one: dict[str, Any], each: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What was spent until each exact evaluation but the first, and the accuracy there."""
    spent = np.cumsum(each)
    return spent[np.array(one["steps"][1:]) - 1], np.array(one["accuracy"][1:])


def _look(i: int) -> dict[str, Any]:
    """Curves that lie on each other: the first is broad, the last has markers alone inside."""
    return style.look((7, 5, 0)[i], linewidth=(4.0, 1.6, 1.6)[i], markersize=(0, 5.5, 3.5)[i])
