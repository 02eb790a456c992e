"""Numbers that algorithms need as tensors again and again: copied to a device once, so that no step waits for it."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


def constant(values: np.ndarray, like: Tensor) -> Tensor:
    """These numbers as a tensor with dtype and device of another; not to be changed."""
    whole = np.ascontiguousarray(values, dtype=np.float64)
    return _made(whole.tobytes(), whole.shape, like.dtype, like.device)


@lru_cache(maxsize=256)
def _made(raw: bytes, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    values = np.frombuffer(raw, dtype=np.float64).reshape(shape).copy()
    with torch.inference_mode(False):  # whose tensors would be of no use outside it
        return torch.from_numpy(values).to(device=device, dtype=dtype)
