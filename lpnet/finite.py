"""Where the states of a trunk stop being finite: the first layer by the exact chain, examples part by part.

One state is held at a time, and nothing is read before a part has gone through all layers of a rank.
"""

import torch
from torch import Tensor

from lpnet import chain
from lpnet.measure import prepare
from lpnet.module import LayerParallel
from lpnet.tape import Tape


@torch.no_grad()
def first_bad_layer(trunk: LayerParallel, y: Tensor, part: int) -> int | None:
    """The first layer, of all ranks, behind which a state is not finite; None: there is none. Collective.

    Args:
        trunk: with its present weights; nothing is left in it.
        y: y_0, (batch, *features), the same on every rank.
        part: examples that are propagated at once.
    """
    found = min((_of_part(trunk, some) for some in y.split(part)), default=trunk.layers)
    found = trunk.layers - trunk.comm.agree(trunk.layers - found)
    return found if found < trunk.layers else None


def _of_part(trunk: LayerParallel, y: Tensor) -> int:
    """The first such layer of this rank; `trunk.layers` where there is none."""
    prepared, x = prepare(trunk, y)
    layers, nothing = prepared.layers, Tape([], records=False)
    flags: list[Tensor] = []

    def through(q: int, u: Tensor) -> Tensor:
        for j in range(layers.lo, layers.lo + layers.n):
            u = layers.run(j, j + 1, u, nothing)
            flags.append(torch.isfinite(u).all())
        return u

    chain.propagate(trunk._engine.ahead, layers, [x], lambda q, part: layers.lift(part), through)
    bad = [] if not flags else torch.stack(flags).logical_not().nonzero().flatten().tolist()
    return layers.lo + bad[0] if bad else trunk.layers
