"""Workspaces that are used again: the first touch of fresh memory costs more than most of what is done with it.

A page of fresh memory is cleared by the system when it is first written, which takes several times as long as writing
it again. So large buffers of a step are not given back to the system: they are lent, for as long as someone holds them.
Views of their entries are made once as well: a view costs half a microsecond, as much as a small product. What nobody
has asked for in a while is given up.
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


class Bytes:
    """Memory of which tensors are made, and views of the entries of the last tensor that was asked for."""

    def __init__(self, count: int) -> None:
        self._whole = np.empty(count + 64, np.uint8)
        self._first, self._count = -self._whole.ctypes.data % 64, count
        self._entries: tuple[tuple[Any, ...], tuple[Tensor, ...]] = (), ()

    def part(self) -> np.ndarray:
        """All of it; anew each time, so that it is known when one of them is gone."""
        return self._whole[self._first : self._first + self._count]

    def entries(self, shape: tuple[int, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Along the first axis of a tensor of this shape; they do not hold a `part`."""
        if self._entries[0] != (shape, dtype):
            with torch.inference_mode(False):
                self._entries = (shape, dtype), as_tensor(self.part(), shape, dtype).unbind()
        return self._entries[1]


def as_tensor(part: np.ndarray, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor on these bytes, whose storage alone holds them."""
    return torch.from_numpy(part).view(dtype).view(shape)


class Pool:
    """What steps need again and again."""

    def __init__(self) -> None:
        self._free: defaultdict[Hashable, list[tuple[Any, int]]] = defaultdict(list)  # and when it was given back
        self._lasting: dict[Hashable, tuple[Tensor, Any, int]] = {}  # and when it was asked for
        self._met: dict[Hashable, weakref.ref[torch.UntypedStorage]] = {}
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
        return self._lent(tuple(shape), like)[0]

    def stacked(self, shape: Sequence[int], like: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same, and its entries along the first axis, which are of use as long as the tensor itself is held."""
        made, memory = self._lent(tuple(shape), like)
        return made, made.unbind() if memory is None else memory.entries(tuple(shape), like.dtype)

    def _lent(self, shape: tuple[int, ...], like: Tensor) -> tuple[Tensor, Bytes | None]:
        count = math.prod(shape) * like.element_size()
        if like.device.type != "cpu" or count < LARGE:
            return like.new_empty(shape), None
        key = ("bytes", count)
        memory = self._found(key, lambda: Bytes(count))
        part = memory.part()  # is held by the tensor's storage, and by nothing else
        weakref.finalize(part, self._give, key, memory).atexit = False
        return as_tensor(part, shape, like.dtype), memory

    def lasting(self, key: Hashable, stack: Tensor, make: Callable[[Tensor], T]) -> T:
        """What is made of a tensor, such as views of its entries, once for as long as the tensor stays where it is.

        It is kept where the same memory was met before, as that of parameters is, and given up where other memory is:
        so a copy of the weights that is made for one step does not outlive it.

        Args:
            key: what it is; for one key that of the last tensor is kept.
            stack: the tensor.
            make: makes it of a tensor that is the same memory, and no more; changes of the values must not matter.
        """
        twin, made, _ = self._lasting.pop(key, (None, None, 0))
        if twin is None or not (twin.is_set_to(stack) and twin.dtype == stack.dtype):
            storage, before = stack.untyped_storage(), self._met.get(key)
            self._met[key] = weakref.ref(storage)
            with torch.inference_mode(False), torch.no_grad():
                twin = stack.new_empty(0).set_(storage, stack.storage_offset(), stack.shape, stack.stride())
                made = make(twin)
            if before is None or before() is not storage:
                return made
        self._lasting[key] = twin, made, self._loans
        return made  # type: ignore[return-value]

    def forget(self) -> None:
        """Give up what was made of lasting tensors: they are others now."""
        self._lasting.clear()

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
        """Drop what has been free, or not asked for, for more than so many loans."""
        for free in self._free.values():
            free[:] = [(item, since) for item, since in free if self._loans - since <= loans]
        self._lasting = {key: kept for key, kept in self._lasting.items() if self._loans - kept[2] <= loans}

    def _fresh(self, make: Callable[[], T]) -> T:
        with torch.inference_mode(False):  # whose tensors would be of no use outside it
            return make()
