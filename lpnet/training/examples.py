"""The examples of a run on its device, and in which order its steps take them."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from lpnet.data import DataSet


@dataclass(frozen=True)
class Tensors:
    """The examples on the device: features (n, features) in the dtype of the run, labels (n,)."""

    train_x: Tensor
    train_y: Tensor
    val_x: Tensor
    val_y: Tensor

    @classmethod
    def of(cls, data: DataSet, like: Tensor) -> "Tensors":
        """The examples of a data set, in dtype and on the device of a tensor."""
        x = (torch.from_numpy(np.ascontiguousarray(a)).to(like) for a in (data.train_x, data.val_x))
        y = (torch.from_numpy(np.ascontiguousarray(a)).to(like.device) for a in (data.train_y, data.val_y))
        train_x, val_x = x
        train_y, val_y = y
        return cls(train_x, train_y, val_x, val_y)


def batches(data: Tensors, size: int | None, seed: int, done: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Epoch after epoch (counted from 1): the numbers of each batch's examples, in an order from (seed, epoch).

    With `done` the first so many batches are left out.
    """
    n = len(data.train_y)
    size = n if size is None else min(size, n)
    epochs, done = divmod(done, -(-n // size))
    for epoch in count(epochs + 1):
        order = torch.arange(n)
        if size < n:
            rng = np.random.default_rng([seed, zlib.crc32(b"order of examples"), epoch])
            order = torch.from_numpy(rng.permutation(n))
        for part in order.to(data.train_y.device).split(size)[done:]:
            yield epoch, part
        done = 0


def fingerprint(data: DataSet) -> int:
    """A number that tells these examples from others."""
    found = zlib.crc32(repr(data.classes).encode())
    for array in (data.train_x, data.train_y, data.val_x, data.val_y, data.shift, data.scale):
        found = zlib.crc32(repr((array.shape, array.dtype.str)).encode(), found)
        found = zlib.crc32(np.ascontiguousarray(array).data, found)
    return found
