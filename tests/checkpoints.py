"""Checkpoints for tests, on ranks that are threads of this process."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from lpnet.checkpoint.content import Content, Rows
from lpnet.checkpoint.file import Stored, read, write
from lpnet.crew import Crew
from lpnet.slab import Comm, partition

T = TypeVar("T")


def on(ranks: int, what: Callable[[Comm], T]) -> list[T]:
    """What each of so many ranks returns."""
    return Crew(ranks).run(what)


def share(x: Tensor, comm: Comm) -> Rows:
    """This rank's rows, the last ranks idle where there are few."""
    cuts = [0] * (comm.size + 1) if not len(x) else partition(len(x), comm.size)
    return Rows(x[cuts[comm.rank] : cuts[comm.rank + 1]])


def sample(comm: Comm, size: int = 6) -> Content:
    """A little of everything."""
    whole = {"classifier/weight": torch.arange(6.0).reshape(2, 3), "number": torch.tensor(3, dtype=torch.int32)}
    if comm.rank:
        whole = {}  # those of rank 0 count
    rows = {"trunk/K": share(torch.arange(size * 4.0).reshape(size, 2, 2), comm)}
    return Content({"step": 3, "loss": float("nan"), "text": "θ"}, whole, rows)


def written(path: Path, ranks: int = 1, content: Callable[[Comm], Content] = sample) -> Path:
    """The file of this content."""
    on(ranks, lambda comm: write(path, comm, content(comm)))
    return path


def inside(stored: Stored) -> dict[str, Tensor]:
    """All tensors of a file."""
    return {name: stored.whole(name) for name in stored.names()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Bit for bit, NaN and negative zeros too."""
    return a.keys() == b.keys() and all(_bits(a[name]) == _bits(b[name]) for name in a)


def _bits(x: Tensor) -> tuple[object, ...]:
    return x.dtype, x.shape, x.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def whole(path: Path, ranks: int = 1) -> dict[str, Tensor]:
    """What all ranks find in a file."""
    first, *others = on(ranks, lambda comm: inside(read(path, comm)))
    assert all(equal(first, other) for other in others)
    return first
