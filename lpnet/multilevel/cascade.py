"""Cascadic training: train few layers, prolongate, train twice as many, and so on.

    N_1 = N/2^{l−1}, …, N_{l−1} = N/2, N_l = N          over the same time T, so that h halves from level to level

Work is counted in gradients of the finest network: one of N_i layers is N_i/N of it. Objectives are those of exact,
serial propagation. How much the objective jumps at a prolongation says whether h resolves the dynamics: where it does,
the jump is of order h; where it does not, what was trained belongs to the steps and not to the flow, and is lost.

Sources: Haber, Ruthotto, Holtham, Jun, Learning across scales (2018); Bornemann, Deuflhard, The cascadic multigrid
method for elliptic problems (1996).
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lpnet.errors import InputError
from lpnet.module import LayerParallel
from lpnet.multilevel.prolong import only_trunk, prolongate_net
from lpnet.sharded import exact

Measure = Callable[[Any], Tensor | float]


@dataclass(frozen=True)
class Level:
    """What training on one level did.

    Attributes:
        layers: N_i.
        before: objective at the end of the level before, on its own network; None on the first level.
        start: objective of this level's network before training.
        end: objective after training.
        accuracy: after training, if it was asked for.
        accuracy_start: before training.
        work: in gradients of the finest network.
        seconds: of training.
    """

    layers: int
    before: float | None
    start: float
    end: float
    accuracy: float | None
    accuracy_start: float | None
    work: float
    seconds: float

    @property
    def jump(self) -> float | None:
        """Relative change of the objective by the prolongation."""
        return None if self.before is None else (self.start - self.before) / abs(self.before or 1.0)


@dataclass
class Ascent:
    """How far a training on several levels has come, so that it can go on from there.

    Attributes:
        levels: those that are done.
        start: objective at the start of the level that is under way; None: none is.
        accuracy_start: the same of the accuracy.
        seconds: of training on it, before `begun`.
        begun: when training on it began, or went on, by `time.perf_counter`.
    """

    levels: list[Level] = field(default_factory=list)
    start: float | None = None
    accuracy_start: float | None = None
    seconds: float = 0.0
    begun: float = 0.0

    def state(self) -> dict[str, Any]:
        """As values of JSON."""
        own = {"start": self.start, "accuracy_start": self.accuracy_start, "seconds": self.so_far()}
        return {"levels": [asdict(level) for level in self.levels], **own}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Ascent":
        """From what `state` said."""
        levels = [Level(**level) for level in state["levels"]]
        return cls(levels, state["start"], state["accuracy_start"], state["seconds"])

    def so_far(self) -> float:
        """Seconds of training on the level that is under way."""
        return self.seconds + (time.perf_counter() - self.begun if self.begun else 0.0)

    def add(self, level: Level) -> None:
        """The level is done."""
        self.levels.append(level)
        self.start, self.accuracy_start, self.seconds, self.begun = None, None, 0.0, 0.0


@dataclass(frozen=True)
class Cascade:
    """Training from few layers to many.

    Args:
        layers: N_1, …, N_l, each twice the one before; see also `halved`.

    Raises:
        InputError: the numbers do not double.
    """

    layers: tuple[int, ...]

    def __post_init__(self) -> None:
        given = tuple(self.layers) if isinstance(self.layers, list | tuple) else (self.layers,)
        whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 1 for n in given)
        if not given or not whole or any(b != 2 * a for a, b in pairwise(given)):
            raise InputError(f"layers: {self.layers!r} given, whole numbers, each twice the one before, allowed")
        object.__setattr__(self, "layers", given)

    def run(
        self,
        net: nn.Module,
        train: Callable[[Any, int], float | None],
        objective: Measure,
        accuracy: Measure | None = None,
        refine: Callable[[Any, int], Any] = prolongate_net,
        ascent: Ascent | None = None,
    ) -> tuple[Any, tuple[Level, ...]]:
        """Train on all levels; the finest network, and what each level did. Collective.

        Args:
            net: with one trunk, of `layers[0]` layers; is trained in place.
            train: (net, level) trains a network in place, levels counted from 0. Returns its work in gradients of this
                network; None: the layers that its trunk has evaluated for gradients are counted (N forward and N
                adjoint are one gradient), which leaves out line searches. What carries over, such as the state of an
                optimizer, is its own business (see `prolongate_state`).
            objective: (net) -> scalar, called within ``lpnet.exact(net)``, in eval mode and without gradients.
            accuracy: the same for a second number to report.
            refine: (net, layers) -> the network with more layers; for other solvers on each level.
            ascent: is kept up to date; with levels done, or one under way, it goes on from there: then `net` is that of
                the level that is under way, and `train` takes up its state.

        Raises:
            InputError: none or several trunks, or another number of layers.
        """
        ascent = Ascent() if ascent is None else ascent
        given, first = only_trunk(net).layers, len(ascent.levels)
        if given != self.layers[first]:
            which = "first level" if not first else f"level {first + 1}"
            raise InputError(f"net: {given} layers given, the {self.layers[first]} of the {which} allowed")

        def looked(net: Any) -> tuple[float, float | None]:
            return exactly(net, objective), None if accuracy is None else exactly(net, accuracy)

        for level, layers in enumerate(self.layers[first:], first):
            if ascent.start is None:
                net = refine(net, layers) if level else net
                ascent.start, ascent.accuracy_start = looked(net)
            before = ascent.levels[-1].end if level else None
            ascent.begun = time.perf_counter()
            work, seconds = self._trained(net, train, level), ascent.so_far()
            end, after = looked(net)
            start, accuracy_start = ascent.start, ascent.accuracy_start
            ascent.add(Level(layers, before, start, end, after, accuracy_start, work, seconds))
        return net, tuple(ascent.levels)

    def _trained(self, net: nn.Module, train: Callable[[Any, int], float | None], level: int) -> float:
        """Work in gradients of the finest network."""
        trunk = only_trunk(net)
        evaluated = trunk.info.layer_evaluations
        gradients = train(net, level)
        if gradients is None:
            gradients = _everywhere(trunk, trunk.info.layer_evaluations - evaluated) / (2 * trunk.layers)
        return gradients * trunk.layers / self.layers[-1]


def halved(layers: int, levels: int) -> tuple[int, ...]:
    """N/2^{l−1}, …, N/2, N.

    Raises:
        InputError: the number of layers cannot be halved so often.
    """
    for key, given in (("layers", layers), ("levels", levels)):
        if isinstance(given, bool) or not isinstance(given, int) or given < 1:
            raise InputError(f"{key}: {given!r} given, a whole number of at least 1 allowed")
    most = (layers & -layers).bit_length()  # one more than N can be halved
    if levels > most:
        raise InputError(f"levels: {levels} given for {layers} layers, at most {most} allowed (N is halved for each)")
    return tuple(layers >> k for k in reversed(range(levels)))


def exactly(net: nn.Module, measure: Measure) -> float:
    """A number of a network by exact, serial propagation in eval mode; collective."""
    before = net.training
    net.eval()
    try:
        with exact(net), torch.no_grad():
            return float(measure(net))
    finally:
        net.train(before)


def _everywhere(trunk: LayerParallel, value: int) -> int:
    """The sum over the ranks."""
    return int(trunk.comm.allgather(np.array([[value]]), [1] * trunk.comm.size).sum())
