"""`python -m lpnet.info` on several ranks: it counts them all, and the first one speaks."""

import pytest

from lpnet import info, slab
from lpnet.version import __version__

pytestmark = pytest.mark.mpi


def test_counts_all_ranks(comm: slab.Comm) -> None:
    facts = info.collect()
    assert facts["ranks"] == comm.size
    assert sum(facts["hosts"].values()) == comm.size
    assert facts["warnings"] == []


def test_first_rank_speaks_for_all(comm: slab.Comm, capsys: pytest.CaptureFixture[str]) -> None:
    assert info.main(["--version"]) == 0
    out, err = capsys.readouterr()
    assert (out, err) == (f"lpnet {__version__}\n" if comm.rank == 0 else "", "")
    assert info.main(["--nonsense"]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1 if comm.rank == 0 else 0)
