"""The device of a rank, as far as it can be told without one."""

from typing import Any

import numpy as np
import pytest
import torch

import lpnet
from lpnet import devices
from lpnet.errors import InputError
from lpnet.slab import Comm

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.mark.parametrize(
    ("name", "local_rank", "count", "expected"),
    [
        ("cpu", 1, 2, "cpu"),
        ("cuda", 0, 2, "cuda:0"),
        ("cuda", 1, 2, "cuda:1"),
        ("cuda", 5, 2, "cuda:1"),
        ("cuda:0", 1, 2, "cuda:0"),
        ("auto", 3, 2, "cuda:1"),
        ("auto", 3, 0, "cpu"),
        (torch.device("cuda"), 1, 2, "cuda:1"),
        ("meta", 1, 0, "meta"),
    ],
)
def test_one_gpu_for_each_rank_of_a_node(name: Any, local_rank: int, count: int, expected: str) -> None:
    assert devices.of_rank(name, local_rank, count) == torch.device(expected)


def test_none_is_what_torch_takes() -> None:
    assert devices.of_rank(None, 3, 2) is None


@pytest.mark.parametrize(
    ("name", "count", "says"),
    [
        ("cuda", 0, "device: 'cuda' given, 'cpu' (on this machine) allowed"),
        ("cuda:2", 2, "device: 'cuda:2' given, 'cpu' or 'cuda' to 'cuda:1' (on this machine) allowed"),
        ("tpu9", 1, "device: 'tpu9' given, 'cpu' or another device of this machine allowed"),
        (3.5, 1, "device: 3.5 given, 'cpu' or another device of this machine allowed"),
    ],
)
def test_no_such_device(name: Any, count: int, says: str) -> None:
    with pytest.raises(InputError) as error:
        devices.of_rank(name, 0, count)
    assert str(error.value) == says


class Nodes(Comm):
    """Rank 0 of ranks that bring what `rows` says."""

    def __init__(self, others: int, same: int) -> None:
        self.size, self.same = 1 + others, same

    def allgather(self, row: np.ndarray, counts: Any) -> np.ndarray:
        others = [row + (i >= self.same) * (i + 1) for i in range(self.size - 1)]
        return np.concatenate([row, *others])


@pytest.mark.parametrize(("others", "same"), [(0, 0), (3, 0), (3, 2), (3, 3)])
def test_sharing_counts_those_that_say_the_same(others: int, same: int) -> None:
    assert devices.sharing(Nodes(others, same), "a GPU") == 1 + same


def test_ranks_that_share_a_gpu_are_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.warns(UserWarning, match="3 ranks share a GPU, one for each rank is best"):
        devices.use(torch.device("cpu"), Nodes(3, 2))


@NO_GPU
def test_a_trunk_refuses_a_gpu_where_there_is_none() -> None:
    with pytest.raises(InputError, match=r"^device: 'cuda' given, 'cpu' \(on this machine\) allowed$"):
        lpnet.LayerParallel(lpnet.dynamics.Dense(2), 4, 1.0, device="cuda")


@GPU
@pytest.mark.parametrize("options", [lpnet.Serial(2), lpnet.MGRIT(coarsening=4, cycles=2)])
def test_a_gpu_finds_what_the_processor_finds(options: Any) -> None:
    found = []
    for device in ("cpu", "cuda"):
        made = lpnet.LayerParallel(
            lpnet.dynamics.Dense(4), 16, 2.0, forward=options, adjoint=options, dtype=torch.float64, device=device
        )
        y = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4).to(device).requires_grad_()
        made(y).square().sum().backward()
        found.append([y.grad.cpu(), *(p.grad.cpu() for p in made.theta.values())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("launched", "given", "wanted", "expected"),
    [
        (None, 64, None, 2),  # torch's own choice is the most
        ("PMI", 64, None, 64),  # under a launcher that is no guide
        (None, 1, None, 1),
        (None, None, None, None),
        ("PMI", 64, 3, 3),
        (None, None, 3, 3),
    ],
)
def test_threads_are_set(
    monkeypatch: pytest.MonkeyPatch, launched: str | None, given: int | None, wanted: int | None, expected: int | None
) -> None:
    found: list[int] = []
    monkeypatch.setattr(devices, "launcher", lambda: launched)
    monkeypatch.setattr(devices, "_AT_START", 2)
    monkeypatch.setattr(devices.cores, "threads", lambda *_: given)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    devices.set_threads(Comm(), wanted)
    assert found == ([] if expected is None else [expected])
