"""The training loop: in each step the gradient of

    cross entropy(net(x), c)  +  regularisers of the trunk  +  ½ α_c |W|² of the classifier

on a batch (x, c), by the forward and the adjoint solver of the configuration, and one update by torch's optimizer.
Accuracies come from an exact, serial propagation, never from an inexact solve.
"""

import math
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LRScheduler

from lpnet import cost, regularizers
from lpnet.data import DataSet
from lpnet.errors import NonFiniteError
from lpnet.network import Network
from lpnet.oneshot import Descent, OneShot, Progress
from lpnet.optim import GaussNewton
from lpnet.optim.head import Misfit
from lpnet.phases import phase, phased
from lpnet.regularizers import Penalty
from lpnet.sharded import clip_grad_norm_, exact, grad_norm, synchronize
from lpnet.training.updates import make_optimizer, make_schedule

Record = dict[str, Any]

_TOTALS: Record = {
    "serial_steps": 0,
    "largest_gradient_error": 0.0,
    "largest_gradient_error_used": 0.0,
    "layer_evaluations": 0,
}

CHUNK = 2048  # examples that an exact evaluation propagates at once


class Log(Protocol):
    """What the loop tells of itself."""

    def step(self, record: Record) -> None:
        """One step is done."""

    def warn(self, message: str) -> None:
        """Something that the user should know."""


@dataclass(frozen=True)
class Tensors:
    """The examples on the device: features (n, features) in the dtype of the run, labels (n,)."""

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor

    @classmethod
    def of(cls, data: DataSet, like: Tensor) -> "Tensors":
        """The examples of a data set, in dtype and on the device of a tensor."""
        x = (torch.from_numpy(np.ascontiguousarray(a)).to(like) for a in (data.train_x, data.val_x))
        y = (torch.from_numpy(np.ascontiguousarray(a)).to(like.device) for a in (data.train_y, data.val_y))
        train_x, val_x = x
        train_y, val_y = y
        return cls(train_x, train_y, val_x, val_y)


@dataclass
class Course:
    """Where a training stands, and what goes on from one network to the next finer one.

    Args:
        optimizer: of the network that is trained now.
        schedule: of its learning rate.
        drawn: the batches to come.
        steps: how many there will be in all.
        until: train to this step.
        done: steps done.
        level: of multilevel training, counted from 1.
    """

    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    drawn: Iterator[tuple[int, Tensor]]
    steps: int
    until: int
    done: int = 0
    level: int = 1
    totals: Record = field(default_factory=lambda: dict(_TOTALS))

    @classmethod
    def of(cls, net: Network, data: Tensors) -> "Course":
        """The whole course of a network, from its beginning."""
        config = net.config
        steps = config.training.total_steps(len(data.train_y))
        optimizer = optimizer_of(net)
        schedule = make_schedule(config.schedule, optimizer, steps)
        return cls(optimizer, schedule, batches(data, config.training.batch, config.run.seed), steps, steps)


def optimizer_of(net: Network) -> torch.optim.Optimizer:
    """The optimizer of the configuration, without a history."""
    return make_optimizer(net.config.optimizer, net, penalties_of(net))


def fit(net: Network, data: Tensors, log: Log, course: Course | None = None) -> Record:
    """Train the network as its configuration says; collective.

    Args:
        net: is changed in place.
        data: the examples, equal on all ranks.
        log: is told each step.
        course: goes on from there; None: from the beginning to the end.

    Returns:
        The record of the last step, with the accuracies at the end, `serial_steps` (how many steps took the gradient of
        the exact chain), `largest_gradient_error` (the largest estimate for the schedules of the steps; None if any
        step has none), `largest_gradient_error_used` (the same without the steps that were checked, since those used
        the reference) and `layer_evaluations` (forward and adjoint, of all ranks, without line searches).

    Raises:
        NonFiniteError: loss or gradient stopped being finite; the network has the last good weights.
    """
    config, options = net.config, net.config.training
    course = Course.of(net, data) if course is None else course
    objective = Objective(net, course.optimizer)
    descent = descent_of(net, course.optimizer, objective, len(data.train_y))
    record: Record = {}
    good = _copies(net)
    for step in range(course.done + 1, course.until + 1):
        start = time.perf_counter()
        epoch, index = next(course.drawn)
        lr = course.optimizer.param_groups[0]["lr"]
        with phase(net.trunk.comm, "loss and gradient"):
            loss = descent.evaluate(data.train_x[index], data.train_y[index], index).item()
        norm = _gradient_norm(net, config.optimizer.clip)
        progress = descent.progress(loss, norm)
        record = {"step": step, "epoch": epoch, "loss": loss, "cross_entropy": objective.fitting, "grad_norm": norm}
        record |= {"lr": lr, "level": course.level, "layers": net.trunk.layers} | _solves(net, progress)
        if not (math.isfinite(loss) and math.isfinite(norm)):
            log.step(record | {"seconds": time.perf_counter() - start})
            _restore(net, good)
            raise NonFiniteError(_stopped(record))
        course.totals |= _counted(course.totals, progress)
        if progress.diverged:
            log.warn(_diverged(step, progress))
        _copy(good, net)
        with phase(net.trunk.comm, "optimizer"):
            descent.update()
        course.done = step
        if step < course.steps:  # a schedule is made for so many steps, and not one more
            course.schedule.step()
        record["seconds"] = time.perf_counter() - start
        last = step == course.until or progress.converged
        if last or (options.validate_every and step % options.validate_every == 0):
            record |= evaluate(net, data)
            if synchronize(net):
                log.warn(f"step {step}: opening layer or classifier differed between ranks; set to those of rank 0")
        log.step(record)
        if progress.converged:
            log.warn(f"step {step}: residuals and gradient are within oneshot.tol; {_ended(course)}")
            break
    work = net.trunk.comm.allgather(np.array([[net.trunk.info.layer_evaluations]]), [1] * net.trunk.comm.size)
    course.totals["layer_evaluations"] += int(work.sum())
    return record | course.totals


def _ended(course: Course) -> str:
    return "stopped before the last step" if course.until == course.steps else "the next level begins"


class Objective:
    """Cross entropy and regularisers; `fitting` is the last cross entropy alone.

    A function of the logits, or of the features where the optimizer takes care of the classifier.
    """

    def __init__(self, net: Network, optimizer: torch.optim.Optimizer | None = None) -> None:
        self.comm = net.trunk.comm
        self.penalties, self.fitting, self.misfit = penalties_of(net), math.nan, None
        if isinstance(optimizer, GaussNewton) and isinstance(optimizer.loss, Misfit):
            self.penalties, self.misfit = list(optimizer.penalties), optimizer.loss

    @phased("loss")
    def __call__(self, output: Tensor, label: Tensor) -> Tensor:
        loss = cross_entropy(output, label) if self.misfit is None else self.misfit(output, label)
        self.fitting = loss.item() if self.misfit is None else self.misfit.cross_entropy
        return sum((penalty() for penalty in self.penalties), loss)


def descent_of(net: Network, optimizer: torch.optim.Optimizer, loss: Objective, examples: int) -> Descent:
    """The method of the configuration."""
    config = net.config
    if config.training.method == "gradient":
        return Descent(net, optimizer, loss)
    parts = config.training.batch is not None and config.training.batch < examples
    return OneShot(
        net,
        optimizer,
        loss,
        cycles=None,
        control=config.control.options(),
        warm=config.oneshot.options(examples if parts else None),
        tol=config.oneshot.tol,
    )


def evaluate(net: Network, data: Tensors) -> Record:
    """Loss (cross entropy) and accuracy on training and validation data, by exact serial propagation; collective."""
    found: Record = {}
    for name, x, y in (("train", data.train_x, data.train_y), ("val", data.val_x, data.val_y)):
        with phase(net.trunk.comm, "exact evaluation"):
            logits = predict(net, x)
        found[f"{name}_loss"] = cross_entropy(logits.double(), y).item()
        found[f"{name}_accuracy"] = (logits.argmax(dim=1) == y).double().mean().item()
    return found


def predict(net: Network, x: Tensor) -> Tensor:
    """Logits (n, classes) of normalised features (n, features), by exact serial propagation; collective."""
    before = net.training
    net.eval()
    try:
        with exact(net), torch.no_grad():
            return torch.cat([net(part) for part in x.split(CHUNK)])
    finally:
        net.train(before)


def penalties_of(net: Network) -> list[Penalty]:
    """The regularisers of the configuration."""
    options = net.config.regularizer
    found: list[Penalty] = []
    if options.tikhonov:
        found.append(regularizers.Tikhonov(net.trunk, options.tikhonov))
    if options.ddt:
        found.append(regularizers.TimeDerivative(net.trunk, options.ddt))
    if options.classifier:
        found.append(regularizers.Quadratic(net.classifier.weight, options.classifier))
    return found


def batches(data: Tensors, size: int | None, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Epoch after epoch (counted from 1): the numbers of each batch's examples, in an order from (seed, epoch)."""
    n, epoch = len(data.train_y), 0
    while True:
        epoch += 1
        if size is None or size >= n:
            yield epoch, torch.arange(n, device=data.train_y.device)
            continue
        rng = np.random.default_rng([seed, zlib.crc32(b"order of examples"), epoch])
        order = torch.from_numpy(rng.permutation(n)).to(data.train_y.device)
        for part in order.split(size):
            yield epoch, part


def _gradient_norm(net: Network, largest: float | None) -> float:
    """Norm of the whole gradient, which is scaled down to `largest`, if that is given; collective."""
    parameters = list(net.parameters())
    with phase(net.trunk.comm, "norm of the gradient"):
        return float(grad_norm(parameters) if largest is None else clip_grad_norm_(parameters, largest))


def _solves(net: Network, progress: Progress) -> Record:
    """Cycles and residuals of the last two solves, what control says of them, and their critical path."""
    info = net.trunk.info
    found: Record = {"exact": progress.exact, "checked": progress.checked, "gradient_error": progress.gradient_error}
    found["critical_path"] = critical_path(net)
    for name, one in (("forward", info.forward), ("adjoint", info.adjoint)):
        if one is not None:
            found |= {f"cycles_{name}": one.cycles, f"residuals_{name}": list(one.residuals)}
    return found


def critical_path(net: Network) -> float:
    """Evaluations of f on the critical path of the last gradient and its check, for `control.plan_ranks` (a model)."""
    trunk, ranks = net.trunk, net.built_from.control.plan_ranks
    made = trunk.info.schedules
    return sum(cost.critical_path(trunk.stepper, trunk.layers, ranks, s.forward, s.adjoint).total for s in made)


def _counted(totals: Record, progress: Progress) -> Record:
    """The totals with one more step."""
    def larger(key: str, new: float | None) -> float | None:
        return None if totals[key] is None or new is None else max(totals[key], new)

    error = progress.gradient_error
    return {
        "serial_steps": totals["serial_steps"] + progress.exact,
        "largest_gradient_error": larger("largest_gradient_error", error),
        "largest_gradient_error_used": larger("largest_gradient_error_used", 0.0 if progress.checked else error),
    }


def _diverged(step: int, progress: Progress) -> str:
    answer = "the exact chain" if progress.exact else "more cycles"
    return (
        f"step {step}: the solves diverge from the states of these weights (estimated gradient error "
        f"{progress.gradient_error:.2g}); answered by {answer}"
    )


def _copies(net: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in net.parameters()]


def _copy(kept: list[Tensor], net: nn.Module) -> None:
    """Keep the parameters as they are, where earlier ones were kept."""
    for value, p in zip(kept, net.parameters(), strict=True):
        value.copy_(p.detach())


def _restore(net: nn.Module, values: list[Tensor]) -> None:
    with torch.no_grad():
        for p, value in zip(net.parameters(), values, strict=True):
            p.copy_(value)


def _stopped(record: Record) -> str:
    which = "loss" if not math.isfinite(record["loss"]) else "grad_norm"
    step = record["step"]
    kept = f"the last good weights, those of step {step - 1}, are kept" if step > 1 else "the initial weights are kept"
    return (
        f"step {step}: the {which.replace('grad_norm', 'norm of the gradient')} is {record[which]} "
        f"(learning rate {record['lr']:g}); a smaller optimizer.lr, optimizer.clip or trunk.T may help; {kept}"
    )
