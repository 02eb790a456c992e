"""What the steps of a solve cost, for the cost model and its clocks."""

import math
from dataclasses import dataclass, fields

from lpnet.errors import InputError


@dataclass(frozen=True)
class Costs:
    """What the steps cost, in any unit of time; by default in evaluations of a layer.

    Attributes:
        fine: one layer forward, for the whole batch, on one rank.
        pull: its adjoint without weight gradient.
        gradient: its weight gradient.
        batched: s parts evaluated at once cost 1 + (s − 1) batched evaluations (0: a device that is bound by launches;
            1: no gain).
        latency: time of an empty message.
        message: what a message takes longer when it holds one state of the whole batch.
        fixed: share of a layer's cost that does not shrink with the batch; one of Q equal parts of the batch costs
            fixed + (1 − fixed)/Q of it.
        overhead: of a coarse step besides its evaluations: what is done once for each step, however few they are.
        call: what a solve takes besides on every rank, however few its layers are: the input is packed, the result
            unpacked, the weights made ready.
        level: for each coarse level of a solve, its coarse steps are made ready, on every rank.
        point: after each sweep, the residual at a C-point.

    Raises:
        InputError: a negative cost, or one that is not finite; `fixed` above 1.
    """

    fine: float = 1.0
    pull: float = 1.0
    gradient: float = 1.0
    batched: float = 1.0
    latency: float = 0.0
    message: float = 0.0
    fixed: float = 0.0
    overhead: float = 0.0
    call: float = 0.0
    level: float = 0.0
    point: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            given = getattr(self, field.name)
            if not (0 <= given < math.inf):
                raise InputError(f"{field.name}: {given!r} given, a finite number of at least 0 allowed")
        if self.fixed > 1:
            raise InputError(f"fixed: {self.fixed!r} given, a number from 0 to 1 allowed")

    def share(self, count: int) -> float:
        """Cost of a layer for one of `count` equal parts of the batch, as a share of that for the whole."""
        return self.fixed + (1 - self.fixed) / count
