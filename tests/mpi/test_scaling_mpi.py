"""The points of a launcher's ranks: on the wall and on virtual clocks, with the errors of one rank."""

from pathlib import Path

import pytest

from lpnet import launch
from lpnet.scaling import __main__, model
from lpnet.scaling.files import read_points
from lpnet.scaling.problem import Problem
from lpnet.scaling.solvers import Pair, parse
from lpnet.slab import Comm

pytestmark = pytest.mark.mpi
SOLVERS = ("exact=2", "coarsening=4x2,levels=3,cycles=1")


def test_points_of_all_kinds(comm: Comm, tmp_path: Path) -> None:
    folder = launch.share(comm, str(tmp_path))
    problem = ("--layers=24", "--width=3", "--batch=4", "--T=2", "--dtype=float64", "--rounds=2", f"--out={folder}")
    solvers = [f"--solver={text}" for text in SOLVERS]
    assert __main__.main(["point", "strong", *problem, *solvers, "--kind=all"]) == launch.DONE
    comm.barrier()
    points = read_points([Path(folder)])
    assert {(point.kind, point.ranks, point.rounds) for point in points} == {
        (kind, comm.size, 2) for kind in ("wall", "virtual")
    }
    errors = model.Errors(Problem(24, 24, 2.0, 3, 4, "float64"))
    for text in SOLVERS:
        pair = parse(text).solver
        assert isinstance(pair, Pair)
        for point in (point for point in points if point.series == text):
            assert point.gradient_error == pytest.approx(errors.of(pair), rel=1e-6, abs=1e-12)


def test_bad_input_ends_all_ranks(comm: Comm) -> None:
    assert __main__.main(["point", "strong", "--layers=x"]) == launch.BAD_INPUT
