"""Pipelines of torch.distributed on the ranks of the benchmark: the gradients are those of autograd."""

import sys
from pathlib import Path

import pytest
import torch

from lpnet import slab

pytestmark = pytest.mark.mpi
SHAPES = {"K": (3, 3), "b": (3,)}


@pytest.fixture
def rivals(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "scripts"))
    import rivals

    yield rivals
    sys.modules.pop("rivals")


def test_pipelines_compute_the_gradient_of_autograd(comm, rivals):
    if comm.size == 1:
        pytest.skip("a pipeline needs two ranks")
    layers, width, batch, h = 7, 3, 12, 0.25
    generator = torch.Generator().manual_seed(0)
    theta = {name: torch.randn(layers, *shape, generator=generator) for name, shape in SHAPES.items()}
    y, bar = (torch.randn(batch, width, generator=generator, dtype=torch.float64) for _ in range(2))
    own = slab.Slab(layers, comm)
    true = rivals.exact(rivals.network(theta, h, range(layers), torch.float64), y, bar)
    part = rivals.network(theta, h, range(own.lo, own.hi), torch.float64)
    with rivals.process_group(comm):
        for kind in rivals.KINDS:
            steps = rivals.schedule(kind, 4, part, comm)
            x, weights = rivals.stacked(rivals.by_pipeline(steps, part, comm, y, bar)())
            found = [own.gather(g) for g in weights]
            assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-12) for a, b in zip(found, true[1], strict=True))
            assert comm.rank > 0 or torch.allclose(x, true[0], rtol=1e-12, atol=1e-12)
