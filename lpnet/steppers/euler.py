"""Forward Euler, y_{j+1} = y_j + h f(y_j, θ_j): the residual network."""

from dataclasses import dataclass
from typing import ClassVar

from lpnet.options import MGRIT
from lpnet.steppers.base import Picard, Program, Stage, Stepper, Steps


@dataclass(frozen=True)
class Euler(Stepper):
    """Forward Euler, order 1.

    Coarse step over an interval cut into parts i of H_i = n_i h with weights θ̄_i, p passes, k = 0 at first:

        k_i ← f(y + Σ_{l<i} H_l k_l + ½(H_i − h) k_i, θ̄_i)   for all i at once,      G(y) = y + Σ_i H_i k_i

    One part and two passes agree with the fine steps to third order, G(y) = y + H f(y + ½(H − h) f(y)); one pass is
    the rediscretised step. With as many parts as layers it is Picard iteration over the exact layers.
    """

    continuous: ClassVar[bool] = True
    takes_passes: ClassVar[bool] = True

    @property
    def order(self) -> int:
        return 1

    def stages(self, h: float) -> Steps:
        return (Stage("f", 0, 0, h),)

    def coarse(self, lengths: tuple[int, ...], h: float, options: MGRIT) -> Program:
        passes = 1 if options.coarse == "rediscretized" else options.passes or (2 if options.samples == 1 else 3)
        H = sum(lengths) * h
        if len(lengths) == 1 and passes == 1:
            return (Stage("f", 0, 0, H),)
        if len(lengths) == 1 and passes == 2:
            return (Stage("f", 0, 1, (H - h) / 2, start=0), Stage("f", 1, 0, H))
        return Picard("f", lengths, h, passes)
