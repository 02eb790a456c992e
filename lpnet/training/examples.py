"""The examples of a run on its device, and in which order its steps take them."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

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


def batches(data: Tensors, size: int | None, seed: int) -> Iterator[tuple[int, Tensor]]:
    """Epoch after epoch (counted from 1): the numbers of each batch's examples, in an order from (seed, epoch)."""
    n, epoch = len(data.train_y), 0
    while True:
        epoch += 1
        if size is None or size >= n:
            yield epoch, torch.arange(n, device=data.train_y.device)
            continue
        rng = np.random.default_rng([seed, zlib.crc32(b"order of examples"), epoch])
        order = torch.from_numpy(rng.permutation(n)).to(data.train_y.device)
        for part in order.split(size):
            yield epoch, part
