"""Where a training stands, and what it goes on with."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lpnet.network import Network
from lpnet.training.examples import Tensors, batches
from lpnet.training.objective import optimizer_of
from lpnet.training.records import TOTALS, Record
from lpnet.training.updates import make_schedule

_KEPT = ("done", "converged", "factor", "in_a_row", "totals", "last")


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
        converged: no more steps are needed on this level.
        factor: by which the learning rates of the schedule are multiplied (see `lpnet.training.trouble`).
        in_a_row: steps that have been taken back since the last one that was good.
        totals: over all steps.
        last: the record of the last step.
    """

    optimizer: torch.optim.Optimizer
    schedule: LRScheduler
    drawn: Iterator[tuple[int, Tensor]]
    steps: int
    until: int
    done: int = 0
    level: int = 1
    converged: bool = False
    factor: float = 1.0
    in_a_row: int = 0
    totals: Record = field(default_factory=lambda: dict(TOTALS))
    last: Record = field(default_factory=dict)

    @classmethod
    def of(cls, net: Network, data: Tensors) -> "Course":
        """The whole course of a network, from its beginning."""
        config = net.config
        steps = config.training.total_steps(len(data.train_y))
        optimizer = optimizer_of(net)
        schedule = make_schedule(config.schedule, optimizer, steps)
        return cls(optimizer, schedule, batches(data, config.training.batch, config.run.seed), steps, steps)

    @property
    def rest(self) -> range:
        """The steps of this level that are still to be done."""
        return range(self.done + 1, self.done + 1 if self.converged else self.until + 1)

    @property
    def over(self) -> bool:
        """Whether there is nothing more to do, on no level."""
        return not self.rest and self.until == self.steps

    def state(self) -> dict[str, Any]:
        """As values of JSON (and numbers that are not finite), but for optimizer and schedule."""
        return {key: getattr(self, key) for key in _KEPT}

    def restore(self, state: Mapping[str, Any], net: Network, data: Tensors) -> None:
        """Go on from there, with the batches that follow.

        Raises:
            LookupError, ValueError: it is not what `state` says.
        """
        for key in _KEPT:
            value, own = state[key], getattr(self, key)
            if type(value) is not type(own):
                raise ValueError(f"{key} is of another type")
            setattr(self, key, dict(value) if isinstance(value, Mapping) else value)
        needed = {"step", "epoch", "loss"} if self.done else set()
        needed |= set() if self.rest else {"train_loss", "val_loss", "train_accuracy", "val_accuracy"}
        if self.totals.keys() != TOTALS.keys() or not needed <= self.last.keys():
            raise ValueError("records are of another form")
        options = net.config.training
        self.drawn = batches(data, options.batch, net.config.run.seed, self.done)
