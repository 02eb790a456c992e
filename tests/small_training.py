"""Small networks on real data in float64, and runs whose gradients are compared with exact ones, step by step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from reference import F64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lpnet
from lpnet import MGRIT, data
from lpnet.oneshot import Descent, Progress
from lpnet.slab import Comm
from lpnet.step import Gradient, Step

SOLVER = MGRIT(coarsening=8, cycles=0, initial="tau")


def examples(name: str = "peaks", number: int = 60) -> tuple[Tensor, Tensor]:
    """Features (number, 2), normalised, and labels, the same on every rank."""
    found = data.load(data.DataOptions(name=name, train=number, validation=10), 0)
    x = torch.as_tensor(found.train_x, dtype=F64)
    return (x - x.mean(0)) / x.std(0), torch.as_tensor(found.train_y)


def network(layers: int = 64, comm: Any = None, width: int = 6, classes: int = 5, **more: Any) -> nn.Sequential:
    """Linear, trunk, linear; on this rank alone unless a communicator is given."""
    settings = {"T": 5.0, "forward": SOLVER, "adjoint": SOLVER, "dtype": F64, "comm": comm or Comm()} | more
    with torch.random.fork_rng():
        torch.manual_seed(3)
        ends = nn.Linear(2, width, dtype=F64), nn.Linear(width, classes, dtype=F64)
    dynamics = settings.pop("dynamics", None) or lpnet.dynamics.Dense(width)
    return nn.Sequential(ends[0], lpnet.LayerParallel(dynamics, layers, **settings), ends[1])


def with_ddt(net: nn.Sequential, coefficient: float = 1e-4) -> Callable[[Tensor, Tensor], Tensor]:
    """Cross entropy and the d/dt regulariser, as presets have it."""
    penalty = lpnet.regularizers.TimeDerivative(net[1], coefficient)
    return lambda out, label: cross_entropy(out, label) + penalty()


@contextmanager
def adjoints(monkeypatch: Any) -> Iterator[list[Gradient]]:
    """Inside, the list takes up a copy of what each adjoint solve returns."""
    found: list[Gradient] = []
    solve = Step.adjoint

    def recorded(self: Step, *arguments: Any) -> Gradient:
        one = solve(self, *arguments)
        found.append(Gradient([w.clone() for w in one.weights], one.inputs.clone(), one.forward, one.adjoint))
        return one

    with monkeypatch.context() as patch:
        patch.setattr(Step, "adjoint", recorded)
        yield found


def apart(found: Gradient, true: Gradient) -> float:
    """Relative error of a gradient on one rank: the larger one of all weights together and of the input."""
    weights = [torch.cat([w.flatten() for w in g.weights]) for g in (found, true)]
    pairs = [weights, [found.inputs, true.inputs]]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def exact_loss(net: nn.Sequential, x: Tensor, label: Tensor) -> float:
    with lpnet.exact(net), torch.no_grad():
        return float(with_ddt(net)(net(x), label))


@dataclass
class Watched:
    """What was said, and the true errors: of the gradient by the step's schedule, and of the one that was used."""

    progress: Progress
    error: float
    used: float

    @property
    def ratio(self) -> float:
        """Estimate over truth; 1 where both are rounding."""
        assert self.progress.gradient_error is not None
        return self.progress.gradient_error / self.error if self.error > 1e-12 else 1.0


def watched(descent: Descent, batches: Iterator[tuple[Tensor, Tensor, Tensor]], monkeypatch: Any) -> Iterator[Watched]:
    """Steps of a run, each compared with the exact gradient at the same weights, which changes nothing."""
    with adjoints(monkeypatch) as found:
        for x, label, index in batches:
            with lpnet.exact(descent.net):
                descent.net.zero_grad()
                descent.loss(descent.net(x), label).backward()
            true = found.pop()
            progress = descent.step(x, label, index)
            yield Watched(progress, apart(found[0], true), apart(found[-1], true))
            found.clear()


def batches(name: str, steps: int, parts: int, number: int = 60) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Examples in an order of each epoch, in so many parts."""
    x, label = examples(name, number)
    generator = torch.Generator().manual_seed(0)
    todo: list[Tensor] = []
    for _ in range(steps):
        if not todo:
            todo = list(torch.randperm(number, generator=generator).chunk(parts))
        index = todo.pop() if parts > 1 else torch.arange(number)
        yield x[index], label[index], index
