"""Torch's optimizers and learning-rate schedules from their options."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from lpnet.choices import Schedule
from lpnet.optimizers import NEWTON, OPTIMIZERS, Optimizer
from lpnet.regularizers import Penalty

SCHEDULED = ("lr", "initial_lr", "max_lr", "min_lr")
"""What schedules keep with the optimizer."""


def make_optimizer(
    options: Optimizer, of: nn.Module | Iterable[Tensor], penalties: Sequence[Penalty] = ()
) -> torch.optim.Optimizer:
    """The optimizer with these options, for a network and its penalties (or parameters, where it takes no network)."""
    kind = OPTIMIZERS[options.name]
    if options.name in NEWTON:
        return kind(of, penalties, **options.given())
    return kind(of.parameters() if isinstance(of, nn.Module) else of, **options.given())


def make_schedule(options: Schedule, optimizer: torch.optim.Optimizer, steps: int) -> lr_scheduler.LRScheduler:
    """The learning rate over so many steps: linear growth over the first `warmup` (at most half), then the schedule."""
    warmup = min(options.warmup, steps // 2)
    if not warmup:
        return _main(options, optimizer, steps)
    grow = lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / (warmup + 1))
    return lr_scheduler.SequentialLR(optimizer, [grow, _main(options, optimizer, steps - warmup)], [warmup])


def _main(options: Schedule, optimizer: torch.optim.Optimizer, steps: int) -> lr_scheduler.LRScheduler:
    own: dict[str, Any] = options.resolved().given()
    group = optimizer.param_groups[0]
    lr = float(group.get("initial_lr", group["lr"]))  # the warm-up has set lr to its first value already
    match options.name:
        case "linear":
            return lr_scheduler.LinearLR(optimizer, 1.0, own["final"], total_iters=steps)
        case "cosine":
            return lr_scheduler.CosineAnnealingLR(optimizer, steps, eta_min=lr * own["final"])
        case "polynomial":
            return lr_scheduler.PolynomialLR(optimizer, steps, **own)
        case "exponential":
            return lr_scheduler.ExponentialLR(optimizer, **own)
        case "step":
            return lr_scheduler.StepLR(optimizer, **own)
        case "onecycle":
            return lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, cycle_momentum=False, **own)
        case _:
            return lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
