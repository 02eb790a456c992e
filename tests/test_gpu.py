"""The benchmark on a GPU, as far as it goes without one: its contestants, its verdict, and how much they launch."""

import json
import subprocess
import sys
from argparse import Namespace

import pytest
import torch
from scripts_folder import SCRIPTS, script

SMALL = {"layers": 64, "width": 4, "batch": 6, "T": 4.0, "seed": 0, "coarsenings": [8], "cycles": [0, 1], "passes": 2}


@pytest.fixture(scope="module")
def gpu():
    with script("gpu") as found:
        yield found


def test_all_compute_the_same_gradient_and_the_verdict_is_of_the_fastest(gpu):
    problem = gpu.Problem(Namespace(**SMALL, rounds=1, skip_compile=True), torch.device("cpu"))
    entries = gpu.measure(problem)
    errors = {entry.name: entry.gradient_error for entry in entries}
    assert errors["PyTorch autograd"] < 1e-6
    assert errors["lpnet Serial"] < 1e-6
    assert errors["lpnet MGRIT m=8, 1+1 cycles"] < 1e-3 < errors["lpnet MGRIT m=8, 0+0 cycles"] < 0.2
    assert 10 * errors["lpnet MGRIT m=8, 1+1 cycles, samples=8"] < errors["lpnet MGRIT m=8, 0+0 cycles, samples=8"]
    for at, entry in enumerate(entries):
        entry.seconds = [1.0 + at]
    ((name, ratio),) = gpu.verdicts(entries).items()
    assert (name, ratio) == ("PyTorch autograd / lpnet Serial", 0.5)


def test_a_contestant_that_cannot_run_is_noted(gpu):
    def broken():
        raise RuntimeError("no capture\nand more")

    entry = gpu.Entry("one", broken)
    gpu.begin(entry, (torch.ones(1), [torch.ones(1)]), torch.device("cpu"))
    assert (entry.run, entry.note) == (None, "no capture")


def test_launches_grow_with_the_depth_alone(gpu):
    """Of MGRIT with its coarse intervals and with m, not with N: twice the layers, m twice as large."""
    found = {}
    for layers, m in ((64, 8), (128, 16)):
        args = Namespace(**{**SMALL, "layers": layers, "coarsenings": [m], "cycles": [0]})
        found[layers] = {name.partition(" m=")[0]: n for name, n in gpu.count(args).items() if "samples" not in name}
    for name in ("PyTorch autograd", "lpnet Serial"):
        assert 1.9 < found[128][name] / found[64][name] < 2.1
    assert found[128]["lpnet Serial"] < found[128]["PyTorch autograd"]
    more = found[128]["lpnet MGRIT"] - found[64]["lpnet MGRIT"]
    assert more <= 8 * (3 + 6 + 2)  # eight layers of one interval: forward, adjoint with gradients, and some spare


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so():
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "bench.py"), "gpu"], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 2
    assert done.stderr == "bench.py: error: device: 'cuda' given, 'cpu' (on this machine) allowed\n"


def test_the_table_is_written(gpu, tmp_path, capsys):
    small = {**SMALL, "layers": 16, "coarsenings": [4], "cycles": [0]}
    args = Namespace(**small, rounds=1, skip_compile=True, count=False, device="cpu", json=tmp_path / "x.json")
    gpu.gpu(args, {})
    rows = json.loads(args.json.read_text())["rows"]
    said = capsys.readouterr().out
    assert len(rows) == 4
    assert all(row["name"] in said for row in rows)
    assert all(len(row["seconds"]) == 1 for row in rows)
