"""States without numbers, and solvers on them: what is sent, and how many there are at once."""

from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import torch

from lpnet.mgrit import Solver


class Ledger:
    """What a rank has sent, and the states that it holds.

    Attributes:
        sent: kind of message -> how many, and their bytes.
        live, most: states that there are now, and the most that there were.
    """

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.live = self.most = 0.0

    def count(self, kind: str, size: int) -> None:
        """One message more."""
        self.sent[kind] += 1
        self.bytes[kind] += size


class State:
    """A state without numbers, which knows when it comes into being and when it is gone.

    Args:
        ledger: of its rank.
        share: of the batch.
    """

    def __init__(self, ledger: Ledger, share: float = 1.0) -> None:
        self.ledger, self.share = ledger, share
        ledger.live += share
        ledger.most = max(ledger.most, ledger.live)

    def __del__(self) -> None:
        self.ledger.live -= self.share

    def __add__(self, other: Any) -> "State":
        return State(self.ledger, self.share)

    __sub__ = __add__

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return State(args[0].ledger, args[0].share)


class Counting(Solver):
    """A solver that says what its messages are for."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        coarsest: Any = self.grids[-1]
        coarsest.substitute = partial(self._of, "chain", coarsest.substitute)

    def end_counting(self) -> None:
        """Break the circle of references, in which all states would live on."""
        del self.grids[-1].substitute

    def _sweep(self, *given: Any) -> Any:
        return self._of("halo", super()._sweep, *given)

    def _residual(self) -> torch.Tensor:
        if len(self.c) > 1:
            State(self.c[0].ledger)  # type: ignore[attr-defined]  # a difference, for a moment
        return torch.zeros(len(self.c), 2, dtype=torch.float64)

    def tau(self) -> Any:
        return self._of("halo", super().tau)

    def _of(self, kind: str, act: Any, *given: Any) -> Any:
        self.comm.kind = kind  # type: ignore[attr-defined]
        return act(*given)


class Parts(NamedTuple):
    """The coarse steps of the coarsest level for parts of the batch, each so much of it."""

    ledger: Ledger
    shares: list[float]

    def split(self, u: Any) -> list[Any]:
        return [State(self.ledger, share) for share in self.shares]

    def join(self, us: list[Any]) -> Any:
        return State(self.ledger)

    def step(self, q: int, k: int, u: Any) -> Any:
        return State(self.ledger, u.share)
