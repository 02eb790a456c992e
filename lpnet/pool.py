"""Workspaces that are used again: the first touch of fresh memory costs more than most of what is done with it.

A page of fresh memory is cleared by the system when it is first written, which takes several times as long as writing
it again. So large buffers of a step are not given back to the system: they are lent, for as long as someone holds them.
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

T = TypeVar("T")


class Pool:
    """What steps of one shape need again and again. One that asks for what was not there before empties it first."""

    def __init__(self) -> None:
        self._free: defaultdict[Hashable, list[Any]] = defaultdict(list)

    def __reduce__(self) -> tuple[type["Pool"], tuple[()]]:
        return Pool, ()

    def take(self, key: Hashable, make: Callable[[], T], holder: object) -> T:
        """Something that was made under this key, until the holder is gone.

        Args:
            key: what it is; anything made under the same key must do.
            make: makes one, if none is free.
            holder: its last reference ends the loan, so it must outlive all use.
        """
        item: T = self._free[key].pop() if self._free.get(key) else self._fresh(make)
        weakref.finalize(holder, self._free[key].append, item).atexit = False
        return item

    def empty(self, shape: Sequence[int], like: Tensor) -> Tensor:
        """An uninitialised tensor with dtype and device of another, whose memory comes back when no tensor uses it."""
        count = math.prod(shape) * like.element_size()
        if like.device.type != "cpu" or count < LARGE:
            return like.new_empty(tuple(shape))
        key = ("bytes", count)
        whole: np.ndarray = (
            self._free[key].pop() if self._free.get(key) else self._fresh(lambda: np.empty(count + 64, np.uint8))
        )
        first = -whole.ctypes.data % 64
        part = whole[first : first + count]  # is held by the tensor's storage, and by nothing else
        weakref.finalize(part, self._free[key].append, whole).atexit = False
        return torch.from_numpy(part).view(like.dtype).view(tuple(shape))

    def _fresh(self, make: Callable[[], T]) -> T:
        for free in self._free.values():
            free.clear()
        with torch.inference_mode(False):  # whose tensors would be of no use outside it
            return make()
