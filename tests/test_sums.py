"""Sums per layer against those of NumPy, and that they are the same bits for every part of the layers."""

import numpy as np
import pytest
import torch

from lpnet.sums import flat, layer_products, layer_squares

F32, F64 = torch.float32, torch.float64


@pytest.mark.parametrize("dtype", [F32, F64])
@pytest.mark.parametrize("shape", [(0, 3), (1, 40000), (7, 100, 130), (5,), (2000, 4, 4)])
def test_sums_are_those_of_numpy_whatever_the_parts(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    a, b = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
    found = layer_products([(flat(a), flat(b)), (flat(a), flat(a))])
    for column, other in zip(found.T, (b, a), strict=True):
        expected = np.array([np.vdot(x, y) for x, y in zip(a.double().numpy(), other.double().numpy(), strict=True)])
        assert column.dtype == F64
        assert np.allclose(column.numpy(), expected, rtol=1e-12, atol=1e-10)
    assert torch.equal(layer_squares(a), found[:, 1])
    for cut in (1, 2, len(a) // 2):
        assert torch.equal(torch.cat([layer_squares(a[:cut]), layer_squares(a[cut:])]), layer_squares(a))
