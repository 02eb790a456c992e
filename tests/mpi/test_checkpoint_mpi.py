"""Checkpoints under MPI: read on any ranks as they were written on any, and no rank is left waiting."""

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from checkpoints import equal, inside, sample, share
from small_training import examples, network
from torch import nn

from lpnet import Serial, checkpoint, launch
from lpnet.checkpoint.content import Content
from lpnet.checkpoint.file import read, write
from lpnet.checkpoint.store import Checkpoints
from lpnet.errors import InputError, OutputError
from lpnet.slab import Comm

pytestmark = [pytest.mark.mpi, pytest.mark.filterwarnings("ignore:lpnet")]


@pytest.fixture
def folder(comm: Comm, tmp_path: Path) -> Path:
    """A folder that all ranks share."""
    return Path(launch.share(comm, str(tmp_path)))


def big(comm: Comm) -> Content:
    """Many blocks of several sizes on each rank."""
    x = torch.arange(1_500_000, dtype=torch.int64)
    spread = {"K": share(x.reshape(-1, 1000), comm), "b": share(x[:30], comm), "m": share(x.reshape(3, -1), comm)}
    return Content({"step": 1}, {"M": x[:1000]}, spread)


def test_written_by_many_and_by_one_it_is_the_same(comm: Comm, folder: Path) -> None:
    """And read by many as by one."""
    written = write(folder / "many.h5", comm, big(comm))
    assert written.bytes == 8 * (2 * 1_500_000 + 30 + 1000)
    if comm.rank == 0:
        write(folder / "one.h5", Comm(), big(Comm()))
    comm.barrier()
    everyone, alone = (read(folder / name, ranks) for name, ranks in (("many.h5", comm), ("one.h5", Comm())))
    assert equal(inside(everyone), inside(alone))
    comm.barrier()
    assert sorted(os.listdir(folder)) == ["many.h5", "one.h5"]


@contextmanager
def limited(comm: Comm, most: int) -> Iterator[None]:
    """Rank 0 may write no files of more bytes: as if the disk were full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most if comm.rank == 0 else soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("most", [0, 3_000_000, 20_000_000])
def test_a_full_disk_is_an_error_on_all_ranks(comm: Comm, folder: Path, most: int) -> None:
    """At once, after some blocks of any rank, or nearly at the end; and there is what there was before."""
    store = Checkpoints(comm, folder, 2)
    store.save(1, sample(comm))
    words = r"step-00000002.h5' cannot be written \(File too large\)"
    with limited(comm, most), pytest.raises(OutputError, match=words):
        store.save(2, big(comm))
    comm.barrier()
    assert os.listdir(folder) == ["step-00000001.h5"]
    comm.barrier()
    store.save(2, big(comm))
    assert store.newest(pytest.fail).meta["step"] == 1


def test_damage_that_one_rank_finds_is_told_by_all(comm: Comm, folder: Path) -> None:
    store = Checkpoints(comm, folder, 2)
    store.save(1, sample(comm))
    store.save(2, big(comm))
    if comm.rank == 0:
        with (folder / "step-00000002.h5").open("r+b") as file:
            file.seek(15_000_000)
            file.write(b"damage")
    comm.barrier()
    with pytest.raises(InputError, match=r"step-00000002.h5' given \(\w is damaged\)"):
        read(folder / "step-00000002.h5", comm)
    said: list[str] = []
    assert store.newest(said.append).shape("trunk/K") == (6, 2, 2)
    assert len(said) == 1


def steps(comm: Comm, path: Path, load: bool) -> list[float]:
    """Losses of three steps behind the checkpoint."""
    x, label = examples(number=30)
    net = network(7, comm, forward=Serial(), adjoint=Serial())
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    losses = []
    if load:
        checkpoint.load(path, net, optimizer)
    for k in range(3 if load else 6):
        if k == 3:
            checkpoint.save(path, net, optimizer)
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), label)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses[-3:]


def test_training_goes_on_on_any_ranks(comm: Comm, folder: Path) -> None:
    """Bit for bit on the same ranks, to rounding on one."""
    going = steps(comm, folder / "c.h5", False)
    assert steps(comm, folder / "c.h5", True) == going
    comm.barrier()
    if comm.rank == 0:
        assert steps(Comm(), folder / "c.h5", True) == pytest.approx(going, rel=1e-9)
    comm.barrier()
