"""Where a training stands, and what it goes on with."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from lpnet.network import Network
from lpnet.training.examples import Tensors, batches
from lpnet.training.objective import optimizer_of
from lpnet.training.records import TOTALS, Record
from lpnet.training.updates import make_schedule


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
    totals: Record = field(default_factory=lambda: dict(TOTALS))

    @classmethod
    def of(cls, net: Network, data: Tensors) -> "Course":
        """The whole course of a network, from its beginning."""
        config = net.config
        steps = config.training.total_steps(len(data.train_y))
        optimizer = optimizer_of(net)
        schedule = make_schedule(config.schedule, optimizer, steps)
        return cls(optimizer, schedule, batches(data, config.training.batch, config.run.seed), steps, steps)
