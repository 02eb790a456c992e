"""A part of the corpus of bad input on several ranks: rank 0 says why, all end with code 2 and are still in step."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from bad.corpus import Case, cases, together

from lpnet import launch, slab

pytestmark = pytest.mark.mpi

CHOSEN = (
    "values: --trunk.layers=0",
    "values: nosuch",
    "values: --trunk.width=100000 --trunk.layers=1000000",
    "values: --dry-run --trunk.width=100000 --trunk.layers=1000",
    "configs: a key twice",
    "configs: references to references",
    "data: half an npz",
    "data: more than memory in HDF5",
    "folders: --run.dir=file/below",
    "commands_predict: half a model",
    "commands_trace: plot x.json --from x",
    "commands: point strong --width 100000",
    "resume: half of each checkpoint",
    "layers: 'other width'",
    "layers: 'device meta'",
)
ALL = [case for case in cases() if case.name in CHOSEN]


@pytest.fixture
def folder(comm: slab.Comm, tmp_path: Path) -> Iterator[Path]:
    """A folder that all ranks share: rank 0's."""
    yield Path(launch.share(comm, str(tmp_path)))
    comm.barrier()


@pytest.mark.parametrize("case", ALL, ids=lambda case: case.name)
def test_all_ranks_end_alike_and_one_speaks(case: Case, comm: slab.Comm, folder: Path) -> None:
    assert together(case, folder) == []
    assert comm.agree(comm.rank) == comm.size - 1


def test_all_that_are_chosen_are_there() -> None:
    assert len(ALL) == len(CHOSEN)
