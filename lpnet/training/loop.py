"""The training loop: in each step the gradient of

    cross entropy(net(x), c)  +  regularisers of the trunk  +  ½ α_c |W|² of the classifier

on a batch (x, c), by the forward and the adjoint solver of the configuration, and one update by torch's optimizer.
Accuracies come from an exact, serial propagation, never from an inexact solve.
"""

import time

import numpy as np
from torch import Tensor

from lpnet.network import Network
from lpnet.oneshot import Progress
from lpnet.phases import note, phase
from lpnet.sharded import clip_grad_norm_, grad_norm, synchronize
from lpnet.training import trouble
from lpnet.training.course import Course
from lpnet.training.evaluation import evaluate
from lpnet.training.examples import Tensors
from lpnet.training.good import Good
from lpnet.training.keeper import Keeper
from lpnet.training.objective import Objective, descent_of
from lpnet.training.records import Log, Record, counted, diverged, is_told, solves
from lpnet.training.state import State

Batch = tuple[int, Tensor]


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
        the reference), `diverged_steps` (which had a solve that diverged), `rollbacks` (steps that were taken back) and
        `layer_evaluations` (forward and adjoint, of all ranks, without line searches).

    Raises:
        NonFiniteError: loss or gradient stopped being finite, and training.on_nan is stop or did not help; the network
            has the last good weights.
        Stopped, OutputError: from the keeper.
    """
    course = Course.of(net, data) if course is None else course
    objective = Objective(net, course.optimizer)
    descent = descent_of(net, course.optimizer, objective, len(data.train_y))
    good = Good(net, course.optimizer, net.config.training.on_nan == "rollback")
    state = State(net, data, course, descent, good)
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
    net, course = state.net, state.course
    every, step = net.config.training.validate_every, course.done + 1
    note(net.trunk.comm, "step", step)
    batch = next(course.drawn)
    record, progress = _good(state, objective, batch, log, start)
    course.in_a_row = 0 if state.good.moved else course.in_a_row
    course.totals |= counted(course.totals, progress)
    if progress.diverged and is_told(course.totals["diverged_steps"]):
        log.warn(diverged(step, progress, course.totals["diverged_steps"]))
    _update(state)
    converged = _all_converged(net, progress)
    record["seconds"] = time.perf_counter() - start
    if converged or step == course.until:
        record = _ended_well(state, objective, batch, record, log, start)
    elif every and step % every == 0:
        record |= evaluate(net, state.data)
        _synchronize(net, step, log)
    course.done, course.converged = step, converged
    if step < course.steps:  # a schedule is made for so many steps, and not one more
        course.schedule.step()
    log.step(record)
    course.last = record


def _good(state: State, objective: Objective, batch: Batch, log: Log, start: float) -> tuple[Record, Progress]:
    """As `_evaluated`, with numbers that are finite on all ranks, whatever that takes; collective."""
    net, again = state.net, False
    record, progress = _evaluated(state, objective, *batch)
    while bad := trouble.found(net.trunk.comm, record, "loss", "grad_norm"):
        if again or not trouble.healed(net, bad, record, log):
            record |= {"seconds": time.perf_counter() - start}
            trouble.answer(state, bad, state.data.train_x[batch[1]], record, log)
        again = True
        record, progress = _evaluated(state, objective, *batch)
    return record, progress


def _update(state: State) -> None:
    """Update the weights by the gradient that was found last; collective."""
    state.good.keep()
    with phase(state.net.trunk.comm, "optimizer"), trouble.scaled(state.course.optimizer, state.course.factor):
        state.descent.update()


def _all_converged(net: Network, progress: Progress) -> bool:
    """Whether all ranks find that no more steps are needed; collective."""
    return net.config.oneshot.tol is not None and not net.trunk.comm.agree(int(not progress.converged))


def _evaluated(state: State, objective: Objective, epoch: int, index: Tensor) -> tuple[Record, Progress]:
    """Loss and gradient of these examples, and what a step tells of them; collective."""
    net, data, course, descent = state.net, state.data, state.course, state.descent
    lr = course.optimizer.param_groups[0]["lr"] * course.factor
    with phase(net.trunk.comm, "loss and gradient"):
        loss = descent.evaluate(data.train_x[index], data.train_y[index], index).item()
    norm = _gradient_norm(net, net.config.optimizer.clip)
    progress = descent.progress(loss, norm)
    record: Record = {"step": course.done + 1, "epoch": epoch, "loss": loss, "cross_entropy": objective.fitting}
    record |= {"grad_norm": norm, "lr": lr, "level": course.level, "layers": net.trunk.layers}
    return record | solves(net, progress), progress


def _ended_well(
    state: State, objective: Objective, batch: Batch, record: Record, log: Log, start: float
) -> Record:
    """The record of the last step of a level, with losses and accuracies behind it; collective.

    There is no next step to find that it led to numbers which are not finite: then it is done again from here.
    """
    net, data, again = state.net, state.data, False
    found = evaluate(net, data)
    while bad := trouble.found(net.trunk.comm, found, "train_loss"):
        if again or not trouble.healed(net, bad, record | found, log):
            trouble.answer(state, bad, data.train_x, record | found, log)
            record, _ = _good(state, objective, batch, log, start)
            _update(state)
            record["seconds"] = time.perf_counter() - start
        again = True
        found = evaluate(net, data)
    _synchronize(net, record["step"], log)
    return record | found


def _synchronize(net: Network, step: int, log: Log) -> None:
    """What all ranks have is that of rank 0, with a warning where it was not; collective."""
    if synchronize(net):
        log.warn(f"step {step}: opening layer or classifier differed between ranks; set to those of rank 0")


def _ended(course: Course) -> str:
    return "stopped before the last step" if course.until == course.steps else "the next level begins"


def _gradient_norm(net: Network, largest: float | None) -> float:
    """Norm of the whole gradient, which is scaled down to `largest`, if that is given; collective."""
    parameters = list(net.parameters())
    with phase(net.trunk.comm, "norm of the gradient"):
        return float(grad_norm(parameters) if largest is None else clip_grad_norm_(parameters, largest))
