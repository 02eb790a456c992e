"""A checkpoint is read as it was written, on any number of ranks; or not written at all."""

import math
import os
from pathlib import Path
from unittest import mock

import h5py
import pytest
import torch
from checkpoints import equal, inside, on, sample, share, whole, written
from counting import Living
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from lpnet.checkpoint import layout
from lpnet.checkpoint.content import Content, Rows
from lpnet.checkpoint.file import read, write
from lpnet.checkpoint.target import Disk
from lpnet.errors import InputError, OutputError
from lpnet.slab import Comm

some = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def bits(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Any bits, among them NaN of all kinds."""
    source = torch.Generator().manual_seed(seed)
    if dtype == torch.bool:
        return torch.rand(shape, generator=source) > 0.5
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.randint(0, 256, (math.prod(shape) * size,), generator=source, dtype=torch.uint8)
    return raw.view(dtype).reshape(shape)


tensors = st.builds(
    bits,
    st.sampled_from(list(layout.TYPES)),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    st.integers(0, 99),
)
names = st.lists(st.sampled_from(["K", "θ", "0.weight", "a b", "net"]), min_size=1, max_size=2).map("/".join)


@some
@given(
    tensors=st.dictionaries(names, tensors, max_size=5),
    ranks=st.integers(1, 4),
    readers=st.integers(1, 4),
    block=st.sampled_from([1, 40, 2**20]),
)
def test_tensors_are_read_as_they_were_written(
    tmp_path: Path, tensors: dict[str, Tensor], ranks: int, readers: int, block: int
) -> None:
    """By any number of ranks, cut into blocks of any size, spread or not."""
    tensors = {name: x for name, x in tensors.items() if not any(other.startswith(f"{name}/") for other in tensors)}
    rows = {name for k, (name, x) in enumerate(tensors.items()) if x.ndim and k % 2}

    def content(comm: Comm) -> Content:
        return Content(
            {"inf": [math.inf, -math.inf]},
            {name: x for name, x in tensors.items() if name not in rows and not comm.rank},
            {name: share(tensors[name], comm) for name in rows},
        )

    with mock.patch.object(layout, "BLOCK", block):
        path = written(tmp_path / "c.h5", ranks, content)
    assert equal(whole(path, readers), tensors)
    assert os.listdir(tmp_path) == ["c.h5"]


def test_any_rows_can_be_read(tmp_path: Path) -> None:
    stored = read(written(tmp_path / "c.h5", 3), Comm())
    K = stored.whole("trunk/K")
    assert stored.shape("trunk/K") == (6, 2, 2)
    assert all(torch.equal(stored.rows("trunk/K", a, b), K[a:b]) for a in range(7) for b in range(a, 7))
    assert stored.meta["text"] == "θ"
    assert math.isnan(stored.meta["loss"])
    with pytest.raises(InputError, match="trunk/b is missing"):
        stored.whole("trunk/b")


def test_others_read_it_without_lpnet(tmp_path: Path) -> None:
    with h5py.File(written(tmp_path / "c.h5", 2)) as file:
        assert file["data/trunk/K"].shape == (6, 2, 2)
        assert b'"step": 3' in file["meta"][()]


@pytest.mark.parametrize("ranks", [1, 4])
def test_no_rank_holds_much_more_than_its_own_rows(tmp_path: Path, ranks: int) -> None:
    """A few blocks, in a file of a hundred of them: tensors that live at once, besides its own rows."""
    block, x = 4096, torch.arange(200 * 256.0).reshape(200, 256)

    def most(comm: Comm) -> int:
        own = Rows(share(x, comm).local.clone())
        with Living() as living:
            write(tmp_path / "c.h5", comm, Content(rows={"K": own, "m": own}))
            read(tmp_path / "c.h5", comm)
        return living.most - own.local.nbytes

    with mock.patch.object(layout, "BLOCK", block), mock.patch("lpnet.checkpoint.stream._SIZES", (64, block)):
        found = on(ranks, most)
    assert equal(whole(tmp_path / "c.h5"), {"K": x, "m": x})
    assert max(found) <= 8 * block


class Failing(Disk):
    """A disk that is full after so many writes."""

    left = 0

    def write(self, given: object) -> int:
        if Failing.left <= 0 and self.error is None:
            self.error = OSError(28, os.strerror(28))
        Failing.left -= 1
        return super().write(given)


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_disk_that_fills_up_leaves_what_there_was(tmp_path: Path, ranks: int) -> None:
    """Whatever write is the first to fail: all ranks have the same error, and the file of this name is as before."""
    path = written(tmp_path / "c.h5")
    before = whole(path)

    def trial(comm: Comm) -> str:
        with pytest.raises(OutputError) as caught:
            write(path, comm, sample(comm, 7))
        return str(caught.value)

    with mock.patch.object(layout, "BLOCK", 16), mock.patch("lpnet.checkpoint.target.Disk", Failing):
        for first in range(20):
            Failing.left = first
            assert set(on(ranks, trial)) == {f"checkpoint: {str(path)!r} cannot be written (No space left on device)"}
            assert os.listdir(tmp_path) == ["c.h5"]
        assert equal(whole(path), before)
        Failing.left = 1000
        assert len(whole(written(path, ranks, lambda comm: sample(comm, 7)))["trunk/K"]) == 7


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_disk_that_fails_behind_our_back(tmp_path: Path, ranks: int) -> None:
    """What the system has taken, and cannot bring to the disk."""

    def trial(comm: Comm) -> None:
        with pytest.raises(OutputError, match=r"c.h5' cannot be written \(Input/output error\)"):
            write(tmp_path / "c.h5", comm, sample(comm, 7))

    failure = OSError(5, os.strerror(5))
    for flush, where in ((30, "os.fdatasync"), (10**6, "os.fsync")):
        with mock.patch("lpnet.checkpoint.target._FLUSH", flush), mock.patch(where, side_effect=failure):
            on(ranks, trial)
        assert not os.listdir(tmp_path)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_rank_that_cannot_open_the_file_keeps_all_from_opening_it_together(tmp_path: Path, ranks: int) -> None:
    """They would wait for it in HDF5."""

    def trial(comm: Comm) -> None:
        with pytest.raises(OutputError, match=r"c.h5' cannot be written \(No such file"):
            write(tmp_path / "c.h5", comm, sample(comm))

    outcomes = [None] * (ranks - 1) + [OSError(2, os.strerror(2))]
    with (
        mock.patch("lpnet.checkpoint.file.can_be_filled", return_value=True),
        mock.patch("lpnet.checkpoint.file.reach", side_effect=outcomes),
        mock.patch("lpnet.checkpoint.file.fill") as fill,
    ):
        on(ranks, trial)
    fill.assert_not_called()
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_place_that_cannot_be_written_to(tmp_path: Path, ranks: int) -> None:
    (tmp_path / "file").touch()
    for path, why in ((tmp_path / "no" / "c.h5", "No such file"), (tmp_path / "file" / "c.h5", "Not a directory")):

        def trial(comm: Comm, path: Path = path) -> str:
            with pytest.raises(OutputError) as caught:
                write(path, comm, sample(comm))
            return str(caught.value)

        (message,) = set(on(ranks, trial))
        assert str(path) in message
        assert why in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Content({"a": {1, 2}}), "meta data given"),
        (Content(whole={"a": torch.zeros(2, dtype=torch.complex64)}), "'a' of torch.complex64"),
        (Content(whole={"a": torch.zeros(2).to_sparse()}), "dense"),
        (Content(whole={"a/../b": torch.zeros(2)}), "'a/../b' given"),
        (Content(whole={"a": torch.zeros(2), "a/b": torch.zeros(2)}), "'a/b' given beside"),
        (Content(whole={"a": torch.zeros(2)}, rows={"a": Rows(torch.zeros(2))}), "a whole and as rows"),
        (Content(rows={"a": Rows(torch.tensor(1.0))}), "without axes"),
    ],
)
def test_what_no_file_can_hold(tmp_path: Path, content: Content, words: str) -> None:
    """Told on all ranks, also where rank 0 alone has it."""

    def trial(comm: Comm) -> None:
        mine = content if comm.rank == 0 else Content(rows=content.rows)
        with pytest.raises(InputError, match=words) as caught:
            write(tmp_path / "c.h5", comm, mine)
        assert "allowed" in str(caught.value)

    on(2, trial)
    assert not os.listdir(tmp_path)


def test_ranks_that_disagree_are_an_error_and_no_deadlock(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="rank 1 has rows of other names or shapes"):
        on(2, lambda comm: write(tmp_path / "c.h5", comm, Content(rows={f"K{comm.rank}": Rows(torch.zeros(2))})))


def test_contents_are_joined_once() -> None:
    a, b = Content({"x": 1}, {"t": torch.zeros(1)}), Content({"y": 2}, {}, {"u": Rows(torch.zeros(1))})
    assert (a | b).meta == {"x": 1, "y": 2}
    with pytest.raises(ValueError, match="t, x given twice"):
        _ = a | a


def test_a_file_stays_open_to_be_read(tmp_path: Path) -> None:
    """Also when another one takes its name meanwhile."""
    path = written(tmp_path / "c.h5")
    stored = read(path, Comm())
    before = inside(stored)
    written(path, 1, lambda comm: sample(comm, 9))
    assert equal(inside(stored), before)
    stored.close()
    assert len(whole(path)["trunk/K"]) == 9
