"""The benchmark against PyTorch: all contestants compute the same gradient, and the verdict is of the fastest."""

import json
import subprocess
import sys

import pytest
import torch
from scripts_folder import SCRIPTS, script


@pytest.fixture(scope="module")
def peers():
    with script("peers") as found:
        yield found


def run(*given, **more):
    command = [sys.executable, str(SCRIPTS / "bench.py"), "peers", "--ranks", "1", "--cores", "1", "--skip-compile"]
    return subprocess.run([*command, *given], capture_output=True, text=True, timeout=100, **more)


def test_all_contestants_compute_the_same_gradient(tmp_path):
    """On one rank, without torch.compile; a second depth is left out since the first took too long for it."""
    sizes = ["--widths", "3", "--batches", "5", "--depths", "32", "64", "--longest", "1e-9"]
    done = run(*sizes, "--seconds", "0", "--docs", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "results" / "peers.json").read_text())
    first, second = found["points"]
    assert not second["rows"]
    assert second["note"].startswith("time: one gradient by autograd would take")
    assert second["note"] in done.stdout
    errors = {row["name"]: row["gradient_error"] for row in first["rows"]}
    loose, tight = errors.pop("lpnet MGRIT, error ≤ 0.01"), errors.pop("lpnet MGRIT, error ≤ 0.0001")
    assert tight <= 1e-4
    assert tight <= loose <= 1e-2
    assert {"PyTorch autograd, 1 thread", "lpnet Serial, 1 thread"} <= set(errors)
    assert max(errors.values()) < 1e-5
    assert all(low <= row["median_s"] <= high for row in first["rows"] for low, high in [row["quartiles_s"]])
    assert (tmp_path / "peers.png").stat().st_size > 10_000


def test_a_folder_that_cannot_be_written_is_refused_before_the_run(tmp_path):
    (tmp_path / "file").touch()
    done = run("--docs", str(tmp_path / "file"))
    assert done.returncode == 2
    assert done.stderr.startswith("bench.py: error: --docs: ")
    assert done.stderr.count("\n") == 1


def test_points_that_take_too_much_memory_are_left_out(peers):
    """The states that autograd keeps are two for each layer."""
    contest = peers.Contest.__new__(peers.Contest)
    contest.args = type("Args", (), {"memory": 1.0, "longest": 1.0})
    point = peers.Point(layers=2**16, width=1, batch=2**11 + 1)
    assert contest.refusal(point, 0.0).startswith("memory: ")


def row(peers, engine, seconds, ours, wrong=0.0):
    return peers.Row(engine, engine, ours, "", seconds, (seconds, seconds), wrong)


def test_the_verdict_compares_the_fastest_at_an_allowed_error(peers):
    rows = [
        row(peers, "autograd", 4.0, False), row(peers, "GPipe", 3.0, False), row(peers, "serial", 2.0, True),
        row(peers, "MGRIT", 1.0, True, 5e-3),
    ]  # fmt: skip
    point = peers.Point(1, 1, 1, rows)
    assert peers.verdict(point, None) == (1.5, "serial", "GPipe")
    assert peers.verdict(point, 1e-4) == (1.5, "serial", "GPipe")
    assert peers.verdict(point, 1e-2) == (3.0, "MGRIT", "GPipe")


def test_choices_have_the_least_work_that_is_good_enough(peers):
    errors = {(8, (0, 0)): 1e-1, (16, (0, 0)): 1e-2, (32, (0, 0)): 1e-3, (8, (1, 1)): 1e-3, (8, (2, 2)): 1e-6}
    assert peers.ours.ordered(errors, 2e-3, 1024, 2) == [(32, (0, 0)), (8, (1, 1)), (8, (2, 2))]
    assert peers.ours.ordered(errors, 1e-5, 1024, 2) == [(8, (2, 2))]
    assert peers.ours.ordered(errors, 1e-7, 1024, 2) == []


def test_blocks_for_the_compiler_are_the_network(peers):
    """In value and gradient, with the same parameters."""
    generator = torch.Generator().manual_seed(0)
    theta = peers.smooth_weights(6, 3, generator)
    net = peers.rivals.network(theta, 0.25, range(6), torch.float64)
    blocks = torch.nn.Sequential(*(peers.rivals.Block(list(net)[j : j + 4], 0.25) for j in (0, 4)))
    y, bar = (torch.randn(5, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    true = peers.rivals.exact(net, y, bar)
    for model in (net, blocks):
        found = peers.rivals.stacked(peers.rivals.by_autograd(model, net, y, bar)())
        assert peers.ours.error(found, true) < 1e-6  # h is a float32 tensor in blocks
