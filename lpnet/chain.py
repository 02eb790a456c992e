"""The exact layers as a chain through the ranks, pipelined over Q parts of the batch.

    x_hi = Φ_{hi−1}(… Φ_lo(x_lo)),  sent on,          part after part

The adjoint goes the other way. The last rank cannot begin before the first part has come through the P − 1 ranks
before it, and has the weight gradients of its layers to do for all parts: for equal slabs and parts that takes
(P − 1) t(pull) + Q (t(pull) + t(gradient)). It takes no longer if the p-th rank, p = 0, 1, …, pulls its first P − 1 − p
parts without gradients, sends them on, and pulls them once more, with gradients, when it has nothing else to do: by the
time of so many pulls it is ahead of the last rank. Nothing is kept for that but the cotangents that came in.
"""

from collections.abc import Callable, Sequence

from torch import Tensor

from lpnet.direction import Direction
from lpnet.phases import phase
from lpnet.propagator import Layers
from lpnet.residuals import Info
from lpnet.tape import Tape, round_trip

Part = Callable[[int, Tensor], Tensor]
"""(q, a state for part q of the batch) -> another one."""


def propagate(
    direction: Direction, layers: Layers, parts: Sequence[Tensor], enter: Part, through: Part
) -> tuple[Tensor | None, Info]:
    """Parts q of the batch through all ranks, one behind the other; the result is on the last rank.

    Args:
        direction: the order of the ranks.
        layers: of this rank.
        parts: states, known on every rank; what the first one starts from, a template for the others.
        enter: (q, part) -> the state in which the first rank begins.
        through: (q, state) -> the state after this rank's layers.
    """
    info, comm, before = Info("serial", [0.0]), direction.slab.comm, direction.previous
    if not layers.n:
        return None, info
    coming = [] if before is None else [comm.post(part, before) for part in parts]
    ends: list[Tensor] = []
    for q, part in enumerate(parts):
        layers.micro_batch(q)
        u = coming[q].wait() if coming else enter(q, part)
        with phase(comm, "layers"):
            u = through(q, u)
        info.count(layers.n)
        if direction.next is not None:
            comm.send(u, direction.next)
        else:
            ends.append(u)
    return (layers.join(ends) if ends else None), info


def pull(
    direction: Direction, layers: Layers, xs: Sequence[Tensor], zs: Sequence[Tensor], tapes: Sequence[Tape], grad: bool
) -> tuple[Tensor | None, Info]:
    """Cotangents zs of the parts back through all ranks; with `grad`, gradients are added to those of the fields.

    Args:
        direction: the order of the ranks.
        layers: of this rank.
        xs: states before the lift.
        zs: cotangents of x_N, known on every rank.
        tapes: of the forward chain.
        grad: whether weight gradients are wanted.
    """
    late: list[Tensor] = []

    def back(q: int, z: Tensor, gradients: bool) -> Tensor:
        return layers.pull(layers.lo, layers.lo + layers.n, z, tapes[q], gradients)

    def through(q: int, z: Tensor) -> Tensor:
        if grad and q < direction.behind:
            late.append(z)
            return back(q, z, False)
        z = back(q, z, grad)
        return z if direction.next is not None else layers.pull_lift(xs[q], z, grad)

    end, info = propagate(direction, layers, zs, lambda q, z: z, through)
    for q, z in enumerate(late):
        layers.micro_batch(q)
        with phase(direction.slab.comm, "gradients"):
            back(q, z, True)
        info.count(layers.n)
    info.round_trip = round_trip(tapes)
    return end, info
