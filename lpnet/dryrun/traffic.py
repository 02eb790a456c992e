"""What a rank sends in a training step outside of the trunk's solves."""

from collections.abc import Sequence

from lpnet.controls import ControlGrid
from lpnet.dryrun.counted import Ledger
from lpnet.dryrun.subject import Subject
from lpnet.slab import Comm, Slab


class _Rank(Comm):
    """Stands for one of so many ranks where only that is asked for."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def outside(subject: Subject, ranks: int, rank: int, penalties: Sequence[str], control: bool) -> Ledger:
    """Penalties, the norm of the gradient, its error, and gradients of control points.

    Args:
        subject: trunk and batch.
        ranks, rank: P, and which of them.
        penalties: of the weights of the layers: "tikhonov", "ddt".
        control: the error of the gradient is estimated.
    """
    ledger, slab = Ledger(), Slab(subject.layers, _Rank(rank, ranks), subject.unit(ranks))
    if control:
        ledger.count("broadcast", 8)
    if subject.controls is not None:
        _control_points(ledger, subject, slab)
        return ledger
    n, weights = slab.counts[rank], len(subject.parameters)
    ledger.count("sum", n * weights * 8)  # the norm of the gradient
    if control:
        ledger.count("sum", n * 8)
    for penalty in penalties:
        ledger.count("sum", n * weights * 8)
        if penalty == "ddt":
            for neighbour in slab.beside:
                for numbers in subject.parameters if neighbour is not None else ():
                    ledger.count("weights", numbers * subject.itemsize)
    return ledger


def _control_points(ledger: Ledger, subject: Subject, slab: Slab) -> None:
    """`ControlGrid.reduce`."""
    assert subject.controls is not None
    grid, rank = ControlGrid(subject.controls, slab, 1.0), slab.comm.rank
    after = slab.beside[1]
    shared = grid._mine[1] - grid._columns[after][0] if after is not None else 0
    if shared > 0:
        ledger.count("weights", shared * subject.layer)
    ledger.count("sum", grid._done[rank] * subject.layer)
