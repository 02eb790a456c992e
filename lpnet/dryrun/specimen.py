"""A short network with the sizes of a configuration, by which the costs of a step are measured on this machine."""

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lpnet import devices
from lpnet.calibration import processor_time
from lpnet.choices import Solver, Solvers
from lpnet.config import Config
from lpnet.multilevel import Multilevel
from lpnet.network import Examples, Network, build, require_room
from lpnet.optimizers import NEWTON, SEARCHING
from lpnet.options import Serial
from lpnet.sharded import grad_norm
from lpnet.slab import Comm
from lpnet.training.objective import optimizer_of, penalties_of

MOST = 256
"""Layers of a specimen, at most."""
TAKEN = 6.0
"""Times that weights are there while a step of them is measured: gradients, sums, and what an optimizer keeps."""
ROUNDS = 7
"""Measurements, of which the median counts (after one that warms up)."""


def specimen(config: Config, examples: Examples, layers: int) -> Network:
    """The network with so many layers of the same step h, each with weights of its own, on this rank alone."""
    trunk = config.trunk
    trunk = dataclasses.replace(trunk, layers=layers, T=trunk.T / trunk.layers * layers, controls=None, basis=None)
    exact = Solver.of(Serial())
    control = dataclasses.replace(config.control, gradient_tol=None)
    training = dataclasses.replace(config.training, method="gradient")
    short = dataclasses.replace(
        config,
        trunk=trunk,
        solver=Solvers(False, exact, exact),
        control=control,
        training=training,
        multilevel=Multilevel(),
    )
    device = devices.own(config.run.device, Comm()) or torch.device("cpu")
    require_room(short, examples, Comm(), device, TAKEN)
    return build(short, examples, Comm(), device)


@dataclass(frozen=True)
class Rest:
    """Seconds of a step outside of the trunk's solves.

    Attributes:
        edges: opening layer, classifier and loss, forward and backward, on every rank.
        once: penalties, norm of the gradient and update, whatever the number of layers,
        layer: and of each layer that a rank has.
    """

    edges: float = 0.0
    once: float = 0.0
    layer: float = 0.0

    def seconds(self, layers: int) -> float:
        """Of a rank with so many layers."""
        return self.edges + self.once + self.layer * layers


def rest(config: Config, examples: Examples, batch: int, layers: int) -> Rest:
    """Measured on specimens of so many layers and of one."""
    long, short = specimen(config, examples, max(2, layers)), specimen(config, examples, 1)
    device = long.classifier.weight.device
    edges = _median(_edges(long, batch), device)
    many, one = _median(_update(long), device), _median(_update(short), device)
    each = max(0.0, (many - one) / (long.trunk.layers - 1))
    return Rest(edges, max(0.0, one - each), each)


def copies(config: Config, examples: Examples) -> float:
    """How many times the optimizer keeps what is like a parameter."""
    name, own = config.optimizer.name, config.optimizer.resolved()
    if name == "lbfgs":
        return 2.0 * (own.memory or 0) + 2
    if name in NEWTON:  # residuals of all iterations, and the vectors of the inner solve
        return 2.0 * (own.iterations or 0) + 8
    if name in SEARCHING:
        return 3.0
    net = specimen(config, examples, 2)
    optimizer = optimizer_of(net)
    for p in net.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    numbers = sum(p.numel() for p in net.parameters())
    held = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor) and v.ndim]
    return sum(v.numel() for v in held) / numbers


def _edges(net: Network, batch: int) -> Callable[[], object]:
    like = net.classifier.weight
    x = like.new_zeros(batch, net.examples.features)
    label = torch.zeros(batch, dtype=torch.long, device=like.device)

    def act() -> None:
        net.zero_grad()
        cross_entropy(net.classifier(net.opening(x)), label).backward()

    return act


def _update(net: Network) -> Callable[[], object]:
    """Penalties, norm, the copy of the last good weights, and the update where it needs no further solves."""
    penalties, searching = penalties_of(net), net.config.optimizer.name in SEARCHING
    optimizer = None if searching else optimizer_of(net)
    parameters = list(net.parameters())
    good = [p.detach().clone() for p in parameters]

    def act() -> None:
        net.zero_grad()
        for p in parameters:
            p.grad = torch.zeros_like(p)
        for penalty in penalties:
            penalty().backward()
        grad_norm(parameters).item()
        for p, value in zip(parameters, good, strict=True):
            value.copy_(p.detach())
        if optimizer is not None:
            optimizer.step()

    return act


def _median(act: Callable[[], object], device: torch.device) -> float:
    """Median seconds, of processor time as those of the trunk's steps are."""
    found, clock = [], processor_time(device)
    for _ in range(ROUNDS + 1):
        start = clock()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(clock() - start)
    return statistics.median(found[1:])
