"""The training loop: in each step the gradient of

    cross entropy(net(x), c)  +  regularisers of the trunk  +  ½ α_c |W|² of the classifier

on a batch (x, c), by the forward and the adjoint solver of the configuration, and one update by torch's optimizer.
Accuracies come from an exact, serial propagation, never from an inexact solve.
"""

import math
import time

import numpy as np
import torch
from torch import Tensor, nn

from lpnet.errors import NonFiniteError
from lpnet.network import Network
from lpnet.phases import note, phase
from lpnet.sharded import clip_grad_norm_, grad_norm, synchronize
from lpnet.training.course import Course
from lpnet.training.evaluation import evaluate
from lpnet.training.examples import Tensors
from lpnet.training.keeper import Keeper
from lpnet.training.objective import Objective, descent_of
from lpnet.training.records import Log, Record, counted, diverged, solves
from lpnet.training.state import State


def fit(
    net: Network, data: Tensors, log: Log, course: Course | None = None, keeper: Keeper | None = None
) -> Record:
    """Train the network as its configuration says; collective.

    Args:
        net: is changed in place.
        data: the examples, equal on all ranks.
        log: is told each step.
        course: goes on from there; None: from the beginning to the end.
        keeper: keeps checkpoints, and may have one to go on from; None: there are none.

    Returns:
        The record of the last step, with the accuracies at the end, `serial_steps` (how many steps took the gradient of
        the exact chain), `largest_gradient_error` (the largest estimate for the schedules of the steps; None if any
        step has none), `largest_gradient_error_used` (the same without the steps that were checked, since those used
        the reference), `diverged_steps` (which had a solve that diverged) and `layer_evaluations` (forward and adjoint,
        of all ranks, without line searches).

    Raises:
        NonFiniteError: loss or gradient stopped being finite; the network has the last good weights.
        Stopped, OutputError: from the keeper.
    """
    course = Course.of(net, data) if course is None else course
    objective = Objective(net, course.optimizer)
    descent = descent_of(net, course.optimizer, objective, len(data.train_y))
    state = State(net, data, course, descent, _copies(net))
    if keeper is not None:
        keeper.begin(state)
    while course.rest:
        _step(state, objective, log)
        if course.converged:
            log.warn(f"step {course.done}: residuals and gradient are within oneshot.tol; {_ended(course)}")
        if keeper is not None:
            keeper.after(state)
    work = net.trunk.comm.allgather(np.array([[net.trunk.info.layer_evaluations]]), [1] * net.trunk.comm.size)
    course.totals["layer_evaluations"] += int(work.sum())
    return course.last | course.totals


def _step(state: State, objective: Objective, log: Log) -> None:
    """The next step of the course; collective."""
    start = time.perf_counter()
    net, data, course, descent = state.net, state.data, state.course, state.descent
    options, step = net.config.training, course.done + 1
    note(net.trunk.comm, "step", step)
    epoch, index = next(course.drawn)
    lr = course.optimizer.param_groups[0]["lr"]
    with phase(net.trunk.comm, "loss and gradient"):
        loss = descent.evaluate(data.train_x[index], data.train_y[index], index).item()
    norm = _gradient_norm(net, net.config.optimizer.clip)
    progress = descent.progress(loss, norm)
    record: Record = {"step": step, "epoch": epoch, "loss": loss, "cross_entropy": objective.fitting, "grad_norm": norm}
    record |= {"lr": lr, "level": course.level, "layers": net.trunk.layers} | solves(net, progress)
    if not (math.isfinite(loss) and math.isfinite(norm)):
        log.step(record | {"seconds": time.perf_counter() - start})
        _restore(net, state.good)
        raise NonFiniteError(_stopped(record))
    course.totals |= counted(course.totals, progress)
    if progress.diverged and not course.last.get("diverged"):
        log.warn(diverged(step, progress))
    _copy(state.good, net)
    with phase(net.trunk.comm, "optimizer"):
        descent.update()
    course.done, course.converged = step, progress.converged
    if step < course.steps:  # a schedule is made for so many steps, and not one more
        course.schedule.step()
    record["seconds"] = time.perf_counter() - start
    if not course.rest or (options.validate_every and step % options.validate_every == 0):
        record |= evaluate(net, data)
        if synchronize(net):
            log.warn(f"step {step}: opening layer or classifier differed between ranks; set to those of rank 0")
    log.step(record)
    course.last = record


def _ended(course: Course) -> str:
    return "stopped before the last step" if course.until == course.steps else "the next level begins"


def _gradient_norm(net: Network, largest: float | None) -> float:
    """Norm of the whole gradient, which is scaled down to `largest`, if that is given; collective."""
    parameters = list(net.parameters())
    with phase(net.trunk.comm, "norm of the gradient"):
        return float(grad_norm(parameters) if largest is None else clip_grad_norm_(parameters, largest))


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
