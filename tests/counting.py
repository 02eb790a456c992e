"""What tests of forecasts count: the messages of a communicator, and the bytes of all tensors that live at once."""

import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lpnet.slab import Comm


class CountingComm(Comm):
    """The ranks of another communicator; `count` and `bytes` of what this one sends, and brings to collectives."""

    def __init__(self, comm: Comm) -> None:
        self.inside, self.rank, self.size = comm, comm.rank, comm.size
        self.reset()

    def reset(self) -> None:
        self.count: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def _one(self, kind: str, size: int) -> None:
        self.count[kind] += 1
        self.bytes[kind] += size

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)

    def barrier(self, idle: bool = False) -> None:
        self.inside.barrier(idle)

    def agree(self, value: int) -> int:
        return self.inside.agree(value)

    def send(self, x: Tensor, to: int) -> None:
        self._one("send", x.numel() * x.element_size())
        self.inside.send(x, to)

    def recv(self, like: Tensor, source: int) -> Tensor:
        return self.inside.recv(like, source)

    def bcast_(self, x: Tensor, root: int) -> Tensor:
        self._one("broadcast", x.numel() * x.element_size())
        return self.inside.bcast_(x, root)

    def allgather(self, row: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        self._one("sum", row.nbytes)
        return self.inside.allgather(row, counts)


class Living(TorchDispatchMode):
    """Bytes of all tensors made inside that live now, and at most; `size`: of those with an axis of it."""

    def __init__(self, size: int | None = None) -> None:
        super().__init__()
        self.now = self.most = 0
        self._size = size
        self._known: set[int] = set()

    def reset(self) -> None:
        self.most = self.now

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and (self._size is None or self._size in t.shape):
                self._take(t.untyped_storage())
        return out

    def _take(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self._known.add(key)
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size
