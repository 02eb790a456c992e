"""The benchmark against PyTorch on several ranks: pipelines and the chain have the gradients of autograd."""

import argparse
import json

import pytest
from scripts_folder import script

pytestmark = pytest.mark.mpi


@pytest.fixture(scope="module")
def bench():
    with script("bench") as found:
        yield found


def test_all_contestants_on_all_ranks(comm, bench, tmp_path):
    """Errors of the gradients of all layers; rank 0 writes them."""
    parser = argparse.ArgumentParser()
    bench.peers.add(parser.add_subparsers(), bench.number, dict)
    sizes = ["--widths", "3", "--batches", "12", "--depths", "35", "--seconds", "0", "--block", "8", "--cores", "1"]
    args = parser.parse_args(["peers", *sizes, "--skip-compile", "--docs", str(tmp_path)])
    bench.peers.contest(args, comm, {})
    if comm.rank == 0:
        (point,) = json.loads((tmp_path / "results" / "peers.json").read_text())["points"]
        errors = {row["name"]: row["gradient_error"] for row in point["rows"]}
        assert max(error for name, error in errors.items() if "MGRIT" not in name) < 1e-5
        assert errors["lpnet MGRIT, error ≤ 0.01"] <= 1e-2
        assert ("PyTorch GPipe" in errors) == ("lpnet chain" in errors) == (comm.size > 1)
        assert ("PyTorch 1F1B" in errors) == (comm.size in (2, 3, 4))  # where micro-batches as many as ranks are even
