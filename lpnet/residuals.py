"""Residuals of solves, and what a solve did.

    r = |F_k(c_k) − c_{k+1}| / |c|        over all C-points k, after the first sweep and after each cycle

Cycles lead nowhere where the last residual is not finite, or has grown to 0.01 or more.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

LOST = 0.01
"""A residual that has grown above this is of a solve that says nothing of the gradient.

Of 1620 gradients by 1 to 5 cycles (`scripts/notes/diverging.py`: rough, trained and large weights) residuals grew in
550, never to less than this, and the error of the gradient was 0.15 at least, and 8 in the middle. Solves that converge
late are told by their last residual alone: it is below the first by then. What is replaced wrongly costs time only.
"""


class _Later:
    """Numbers that may be given as a function, which is called as soon as somebody looks."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = f"_{name}"

    def __get__(self, one: object, owner: type | None = None) -> list[float]:
        if one is None:
            # `dataclass` asks the class for the default of the field, and hands it to __set__ of every new object,
            # which makes a list of its own of it. So it is empty and, unlike a list, cannot be changed.
            return ()  # type: ignore[return-value]
        kept = one.__dict__[self._name]
        if callable(kept):
            kept = one.__dict__[self._name] = kept()
        return kept

    def __set__(self, one: object, value: Iterable[float] | Callable[[], list[float]]) -> None:
        one.__dict__[self._name] = value if callable(value) else list(value)


@dataclass
class Info:
    """What a solve did.

    Attributes:
        solver: "mgrit" or "serial".
        residuals: relative residual at the C-points, |F_k(c_k) − c_{k+1}| / |c|, after the first sweep and each cycle;
            on one rank they are fetched from the device when one looks.
        cycles: cycles done.
        levels: levels used.
        evaluations: evaluations of layers and coarse steps on this rank (a coarse step counts as one).
        layers: evaluations of layers alone; with those that an adjoint runs again where `store` keeps no states.
        round_trip: largest relative error of the states that the adjoint undid to the begin of a segment on this rank;
            None: none were.
        diverged: the exact chain was done in place of cycles, since these led nowhere, or those of the forward solve
            did; `solver` is "serial" then, cycles and evaluations are those of both, and a residual of 0 is the last.
    """

    solver: str
    residuals: _Later = _Later()
    cycles: int = 0
    levels: int = 1
    evaluations: int = 0
    layers: int = 0
    round_trip: float | None = None
    diverged: bool = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_residuals": self.residuals}

    def count(self, layers: int) -> None:
        """So many evaluations of layers more."""
        self.evaluations += layers
        self.layers += layers

    def replaces(self, lost: "Info") -> None:
        """This exact solve was done in place of another one, whose cycles led nowhere."""
        self.diverged, self.cycles, self.levels = True, lost.cycles, lost.levels
        self.residuals = [*lost.residuals, *self.residuals]
        self.evaluations += lost.evaluations
        self.layers += lost.layers

    @property
    def leads_nowhere(self) -> bool:
        """Whether the cycles diverge: the last residual is not finite, or above both the first and `LOST`."""
        first, last = self.residuals[0], self.residuals[-1]
        return not math.isfinite(last) or last > max(first if math.isfinite(first) else 0.0, LOST)

    @property
    def convergence_factor(self) -> float | None:
        """Ratio of the last two residuals; None where there are not two, or nothing was left to reduce."""
        if len(self.residuals) < 2 or self.residuals[-2] == 0 or self.diverged:
            return None
        return self.residuals[-1] / self.residuals[-2]


def relative(part: float, whole: float) -> float:
    """part / whole, a relative error; infinite where either is not finite, and 0 where both are nothing."""
    if not math.isfinite(part) or not math.isfinite(whole):
        return math.inf
    return part / whole if whole else (math.inf if part else 0.0)


def here(rows: np.ndarray) -> np.ndarray:
    """Sum of rows (k, 2) over the C-points of a rank that has them all."""
    return np.asarray(rows.sum(axis=0))


def norms(c: list[Tensor], F: list[Tensor]) -> Tensor:
    """(|F_k − c_k|, |c_k|) for all k, (points, 2); a GPU does them in a few launches."""
    if c[0].device.type == "cpu":  # one after the other, so that the differences need no memory
        norm = torch.linalg.vector_norm
        return torch.stack([size for a, b in zip(c, F, strict=True) for size in (norm(b - a), norm(a))]).view(-1, 2)
    at, ends = (torch.stack(states).flatten(1) for states in (c, F))
    return torch.stack([torch.linalg.vector_norm(x, dim=1) for x in (ends.sub_(at), at)], dim=1)


def ratios(squares: list[Tensor], total: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    """Relative residuals of some sweeps, by one transfer from the device."""
    sums = total(torch.stack(squares, dim=1).cpu().numpy())
    ratios = [up / down if down else (math.inf if up else 0.0) for up, down in sums.tolist()]
    return [math.sqrt(ratio) for ratio in ratios]  # not finite where the states are not
