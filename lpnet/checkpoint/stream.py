"""Blocks on their way to rank 0, which writes them: it asks for them in the order of the file, a few ahead.

No rank sends before it was asked, so that no more than `AHEAD` blocks are on their way at once, and all stop when
rank 0 gives up. Messages have few sizes, so that their buffers serve again.
"""

from collections import deque
from collections.abc import Callable, Generator, Sequence

import torch
from torch import Tensor

from lpnet.checkpoint.layout import BLOCK, Piece
from lpnet.messages import Posted
from lpnet.slab import Comm

AHEAD = 2
_SIZES = (2**16, BLOCK)


def gathered(
    comm: Comm, pieces: Sequence[Piece], own: Callable[[Piece], Tensor]
) -> Generator[tuple[Piece, Tensor], None, None]:
    """On rank 0 all pieces in their order, with what belongs there; the others send theirs and get none. Collective.

    To be closed on rank 0 where it is not run to its end: then all others are told to stop.

    Args:
        comm: the ranks.
        pieces: the same on all ranks.
        own: the rows of a piece of this rank, as the file keeps them.
    """
    if comm.rank:
        _send(comm, [piece for piece in pieces if piece.rank == comm.rank], own)
        return
    foreign = [piece for piece in pieces if piece.rank]
    coming: deque[Posted] = deque()
    asked = 0
    try:
        for piece in pieces:
            while asked < len(foreign) and len(coming) < AHEAD:
                coming.append(_ask(comm, foreign[asked]))
                asked += 1
            yield piece, (_unpacked(piece, coming.popleft().wait()) if piece.rank else own(piece))
    finally:
        for posted in coming:
            posted.wait()
        for rank in sorted({piece.rank for piece in foreign[asked:]}):
            comm.send(torch.tensor(False), rank)


def _ask(comm: Comm, piece: Piece) -> Posted:
    comm.send(torch.tensor(True), piece.rank)
    return comm.post(torch.empty(1, dtype=torch.uint8).expand(_message(piece.size)), piece.rank)


def _send(comm: Comm, mine: Sequence[Piece], own: Callable[[Piece], Tensor]) -> None:
    for piece in mine:
        data = own(piece).reshape(-1).view(torch.uint8)
        if not comm.recv(torch.tensor(False), 0):
            return
        comm.send(_packed(data), 0)


def _message(size: int) -> int:
    """Bytes of its message."""
    return next((most for most in _SIZES if size <= most), size)


def _packed(data: Tensor) -> Tensor:
    if len(data) == _message(len(data)):
        return data
    message = data.new_empty(_message(len(data)))
    message[: len(data)] = data
    return message


def _unpacked(piece: Piece, message: Tensor) -> Tensor:
    room = piece.entry.empty(0)
    return message[: piece.size].view(room.dtype).reshape(-1, *room.shape[1:])
