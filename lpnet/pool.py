"""Workspaces that are used again: the first touch of fresh memory costs more than most of what is done with it.

A page of fresh memory is cleared by the system when it is first written, which takes several times as long as writing
it again. So large buffers of a step are not given back to the system: they are lent, for as long as someone holds them.
What nobody has asked for in a while is given up.
"""

import math
import weakref
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

LARGE = 1 << 20
"""Bytes from which `Pool.empty` lends memory; the allocator of the process uses smaller pieces again by itself."""
RECENT, WHILE = 16, 64
"""Loans for which something is kept: where something new is made, and in any case. A step takes some ten."""

T = TypeVar("T")


class Pool:
    """What steps need again and again."""

    def __init__(self) -> None:
        self._free: defaultdict[Hashable, list[tuple[Any, int]]] = defaultdict(list)  # and when it was given back
        self._loans = 0

    def __reduce__(self) -> tuple[type["Pool"], tuple[()]]:
        return Pool, ()

    def take(self, key: Hashable, make: Callable[[], T], holder: object) -> T:
        """Something that was made under this key, until the holder is gone.

        Args:
            key: what it is; anything made under the same key must do.
            make: makes one, if none is free.
            holder: its last reference ends the loan, so it must outlive all use.
        """
        item: T = self._found(key, make)
        weakref.finalize(holder, self._give, key, item).atexit = False
        return item

    def empty(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """An uninitialised tensor with dtype and device of another, whose memory comes back when no tensor uses it."""
        count = math.prod(shape) * like.element_size()
        if like.device.type != "cpu" or count < LARGE:
            return like.new_empty(tuple(shape))
        key = ("bytes", count)
        whole: np.ndarray = self._found(key, lambda: np.empty(count + 64, np.uint8))
        first = -whole.ctypes.data % 64
        part = whole[first : first + count]  # is held by the tensor's storage, and by nothing else
        weakref.finalize(part, self._give, key, whole).atexit = False
        return torch.from_numpy(part).view(like.dtype).view(tuple(shape))

    def _found(self, key: Hashable, make: Callable[[], T]) -> T:
        self._loans += 1
        if self._loans % WHILE == 0:
            self._give_up(WHILE)
        if self._free.get(key):
            item: T = self._free[key].pop()[0]
            return item
        self._give_up(RECENT)
        return self._fresh(make)

    def _give(self, key: Hashable, item: Any) -> None:
        self._free[key].append((item, self._loans))

    def _give_up(self, loans: int) -> None:
        """Drop what has been free for more than so many loans."""
        for free in self._free.values():
            free[:] = [(item, since) for item, since in free if self._loans - since <= loans]

    def _fresh(self, make: Callable[[], T]) -> T:
        with torch.inference_mode(False):  # whose tensors would be of no use outside it
            return make()
