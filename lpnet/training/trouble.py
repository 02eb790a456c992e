"""Numbers that go wrong: where the first one is that is not finite, and how a training goes on from there.

    stop        with the last good weights
    rollback    θ, s ← those before the last update, lr ← lr/2 for the rest of the run, and the step again from there

A step is good as soon as loss and gradient at the weights that it led to are finite, on all ranks. At most `MOST` steps
in a row may turn out not to be; the learning rate that a schedule sets is scaled around the update alone, so that no
schedule knows. What all ranks have, opening layer and classifier, may go wrong on some of them alone: then the others'
takes its place, and nothing is taken back.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from lpnet.errors import NonFiniteError
from lpnet.finite import first_bad_layer
from lpnet.launch import share
from lpnet.network import Network
from lpnet.phases import phase
from lpnet.sharded import synchronize
from lpnet.slab import Comm
from lpnet.training.evaluation import CHUNK, predict
from lpnet.training.records import Log, Record
from lpnet.training.state import State

MOST = 10
"""Steps in a row that may lead to numbers which are not finite."""


def found(comm: Comm, record: Record, *keys: str) -> list[int]:
    """The ranks on which the first of these numbers of a record that is not finite everywhere is not; collective.

    All ranks decide by this, and so decide alike.
    """
    mine = np.array([[not math.isfinite(record[key]) for key in keys]], dtype=np.int64)
    of_keys = (np.flatnonzero(column).tolist() for column in comm.allgather(mine, [1] * comm.size).T)
    return next((ranks for ranks in of_keys if ranks), [])


def healed(net: Network, bad: Sequence[int], record: Record, log: Log) -> bool:
    """Where only some ranks are bad, give them the opening layer and classifier of another one; whether it was so.

    Collective.
    """
    comm = net.trunk.comm
    if len(bad) in (0, comm.size):
        return False
    root = next(rank for rank in range(comm.size) if rank not in bad)
    what = share(comm, _what(record) if comm.rank == bad[0] else "", bad[0])
    synchronize(net, root)
    log.warn(
        f"step {record['step']}: {what} on {_ranks(bad)} alone: opening layer or classifier differed between ranks; "
        f"set to those of rank {root}, and evaluated again"
    )
    return True


def answer(state: State, bad: Sequence[int], x: Tensor, record: Record, log: Log) -> None:
    """Go back to the last good weights, and on with a smaller step, if the configuration says so; collective.

    Args:
        state: of the training.
        bad: the ranks that have something not finite, see `found`; at least one.
        x: the batch.
        record: of the step.
        log: is told.

    Raises:
        NonFiniteError: the training stops, with these weights.
    """
    net, course, good, comm = state.net, state.course, state.good, state.net.trunk.comm
    what = share(comm, _what(record) if comm.rank == bad[0] else "", bad[0])
    alone = f" on {_ranks(bad)} alone" if len(bad) < comm.size else ""
    with phase(comm, "search for what is not finite"):
        said = f"step {record['step']}: {what}{alone}: {whereabouts(net, x)}"
    could, wanted = good.moved and course.in_a_row < MOST, net.config.training.on_nan == "rollback"
    good.back()
    if not (could and wanted):
        log.step(record)
        raise NonFiniteError(f"{said} {_stopped(record, course.in_a_row, could)}")
    course.factor, course.in_a_row = course.factor / 2, course.in_a_row + 1
    course.totals["rollbacks"] += 1
    log.warn(f"{said}; back to the last good weights, and on with {course.factor:g} times the learning rate")


@contextmanager
def scaled(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """Inside, the optimizer has so many times the learning rate that its schedule has set."""
    before = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = group["lr"] * factor
    try:
        yield
    finally:
        for group, lr in zip(optimizer.param_groups, before, strict=True):
            group["lr"] = lr


def _what(record: Record) -> str:
    for key, name in (("loss", "loss"), ("grad_norm", "norm of the gradient"), ("train_loss", "training loss")):
        if not math.isfinite(record[key]):
            return f"the {name} is {record[key]}"
    raise AssertionError("everything is finite")


def _ranks(bad: Sequence[int]) -> str:
    return f"rank{'s' * (len(bad) > 1)} {', '.join(map(str, bad))}"


def _stopped(record: Record, in_a_row: int, could: bool) -> str:
    """Why it stops, though it could have gone back, or could not."""
    step = record["step"]
    kept = f"the last good weights, those of step {step - 1}, are kept" if step > 1 else "the initial weights are kept"
    if in_a_row:
        taken = "one step has" if in_a_row == 1 else f"{in_a_row} steps in a row have"
        kept = f"{taken} been taken back; the last good weights are kept"
    advice = "a smaller optimizer.lr, optimizer.clip or trunk.T"
    advice += ", or training.on_nan rollback, for --resume too," if could else ""
    return f"(learning rate {record['lr']:g}); {advice} may help; {kept}"


# ---- where ---------------------------------------------------------------------------------------------------------


def whereabouts(net: Network, x: Tensor) -> str:
    """Where the first number is that is not finite: in weights, then states, then gradients; collective.

    States are those of the exact chain. Gradients are searched in the order in which they are found, from the loss on.
    """
    trunk, parts = net.trunk, {"opening layer": net.opening, "classifier": net.classifier}
    weights = {name: list(part.parameters()) for name, part in parts.items()}
    grads = {name: [p.grad for p in each if p.grad is not None] for name, each in weights.items()}
    if _any(net, [x]):
        return "the input is not finite"
    if _any(net, weights["opening layer"]):
        return "the weights of the opening layer are not finite"
    if (row := _row(net, list(trunk.theta.values()), first=True)) is not None:
        return f"the weights of {_place(net, row)} are not finite"
    if _any(net, weights["classifier"]):
        return "the weights of the classifier are not finite"
    with torch.no_grad():
        y = net.opening(x)
    if _any(net, [y]):
        return "what the opening layer gives is not finite"
    if (layer := first_bad_layer(trunk, y, CHUNK)) is not None:
        return f"the state behind layer {layer} (rank {trunk._slab.owner(layer)}) is not finite"
    if _any(net, [predict(net, x)]):
        return "what the classifier gives is not finite"
    if _any(net, grads["classifier"]):
        return "the gradient of the classifier is not finite"
    if (row := _row(net, [p.grad for p in trunk.theta.values() if p.grad is not None], first=False)) is not None:
        return f"the gradient of {_place(net, row)} is not finite, the first one on the way back"
    if _any(net, grads["opening layer"]):
        return "the gradient of the opening layer is not finite"
    return "every number is finite, but not the sum of their squares"


def _any(net: Network, tensors: Sequence[Tensor]) -> bool:
    """Whether any number is not finite, on any rank; collective."""
    return bool(net.trunk.comm.agree(int(not all(bool(torch.isfinite(t).all()) for t in tensors))))


def _row(net: Network, tensors: Sequence[Tensor], first: bool) -> int | None:
    """The first or last row, of all ranks, of tensors like the parameters that has a number not finite; collective."""
    grid = net.trunk.grid
    flags = [torch.isfinite(t.detach()).reshape(len(t), -1).all(dim=1) for t in tensors if len(t)]
    bad = torch.stack(flags).all(dim=0).logical_not().nonzero().flatten().tolist() if flags else []
    rows = [grid.rows.start + i for i in bad]
    found = net.trunk.comm.agree(max((grid.count - row if first else row + 1 for row in rows), default=0))
    return None if not found else grid.count - found if first else found - 1


def _place(net: Network, row: int) -> str:
    """The layer and its rank, or the control point, which all ranks have."""
    grid = net.trunk.grid
    return f"{grid.axis} {row}" + ("" if grid.slab is None else f" (rank {grid.slab.owner(row)})")
