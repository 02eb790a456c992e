"""What a run minimises, and by which method:

    cross entropy(net(x), c)  +  regularisers of the trunk  +  ½ α_c |W|² of the classifier
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lpnet import regularizers
from lpnet.network import Network
from lpnet.oneshot import Descent, OneShot
from lpnet.optim import GaussNewton
from lpnet.optim.head import Misfit
from lpnet.phases import phased
from lpnet.regularizers import Penalty
from lpnet.training.updates import make_optimizer


def optimizer_of(net: Network) -> torch.optim.Optimizer:
    """The optimizer of the configuration, without a history."""
    return make_optimizer(net.config.optimizer, net, penalties_of(net))


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
