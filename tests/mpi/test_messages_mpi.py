"""Messages that go through memory of the host, as those of tensors on GPUs do, are the messages of all others."""

from typing import Any

import pytest
import torch
from reference import normal
from torch import Tensor

import lpnet
from lpnet import messages
from lpnet.slab import Comm, MPIComm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]

MGRIT = lpnet.MGRIT(coarsening=2, levels=3, cycles=1)


def gradient(comm: Comm, options: Any) -> list[Tensor]:
    """Twice, so that buffers are used again."""
    trunk = lpnet.LayerParallel(
        lpnet.dynamics.Dense(3), 13, 2.0, forward=options, adjoint=options, comm=comm, dtype=torch.float64
    )
    y = normal(4, 3).requires_grad_()
    for _ in range(2):
        trunk(y).square().sum().backward()
    assert y.grad is not None
    return [y.grad, *(trunk._slab.gather(p.grad) for p in trunk.theta.values() if p.grad is not None)]


@pytest.mark.parametrize("options", [lpnet.Serial(2), MGRIT], ids=["serial", "mgrit"])
def test_staged_messages_change_nothing(comm: Comm, monkeypatch: pytest.MonkeyPatch, options: Any) -> None:
    direct = gradient(comm, options)
    monkeypatch.setattr(messages, "is_staged", lambda x, cuda_aware: True)
    for a, b in zip(direct, gradient(comm, options), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("options", [lpnet.Serial(2), MGRIT], ids=["serial", "mgrit"])
def test_training_goes_on_after_inference_mode(comm: Comm, options: Any) -> None:
    """Buffers of messages that were made in it are of use outside it."""
    trunk = lpnet.LayerParallel(
        lpnet.dynamics.Dense(3), 13, 2.0, forward=options, adjoint=options, comm=comm, dtype=torch.float64
    )
    y = normal(5 if isinstance(options, lpnet.Serial) else 6, 3)  # a size for which there are no buffers yet
    with torch.inference_mode():
        expected = trunk(y).clone()
    for _ in range(2):
        out = trunk(y)
        out.square().sum().backward()
        assert torch.equal(out, expected)


def test_a_broadcast_takes_the_values_of_its_root_alone(comm: Comm, monkeypatch: pytest.MonkeyPatch) -> None:
    if not isinstance(comm, MPIComm):
        return
    monkeypatch.setattr(messages, "is_staged", lambda x, cuda_aware: True)
    for make in (lambda r: normal(3, 4, seed=r), lambda r: normal(4, 6, seed=r).T[::2]):
        for root in range(comm.size):
            x = make(comm.rank)
            assert comm.bcast_(x, root) is x
            assert torch.equal(x, make(root))
