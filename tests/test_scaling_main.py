"""`python -m lpnet.scaling`: what it writes, what it starts, and what it refuses in one line with code 2."""

import csv
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lpnet import slab
from lpnet.cost import Costs
from lpnet.scaling import __main__, model, ranks, studies
from lpnet.scaling.files import COLUMNS
from lpnet.scaling.options import read

COSTS = Costs(fine=2e-5, pull=2e-5, gradient=1e-5, fixed=0.3, overhead=1e-6, call=1e-4)
PROBLEM = ("--width=3", "--batch=4", "--T=1", "--rounds=1", "--repeats=1", "--processes-max=0")
SOLVERS = ("--solver=exact", "--solver=mine:coarsening=4x2")


@pytest.mark.parametrize(("study", "layers"), [("strong", [16, 16]), ("weak", [16, 48])])
def test_a_study_writes_tables_and_a_picture(
    study: str, layers: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model, "measure", lambda trunk, y, ranks: COSTS)
    monkeypatch.setattr(studies, "affinity", frozenset)
    assert __main__.main([study, "--layers=16", *PROBLEM, *SOLVERS, "--ranks", "1", "3", f"--out={tmp_path}"]) == 0
    rows = list(csv.DictReader((tmp_path / "scaling.csv").open(encoding="utf-8")))
    assert tuple(rows[0]) == COLUMNS
    assert {row["kind"] for row in rows} == {"virtual", "simulated"}
    assert {row["series"] for row in rows} == {"serial", "autograd", "exact", "mine"}
    assert sorted({int(row["layers"]) for row in rows if row["ranks"] in "13"}) == sorted(set(layers))
    assert len(json.loads((tmp_path / "scaling.json").read_text(encoding="utf-8"))["points"]) == len(rows)
    assert (tmp_path / f"{study}.png").read_bytes()[:4] == b"\x89PNG"
    said = capsys.readouterr().out
    assert "3 ranks: virtual clocks of threads" in said
    (tmp_path / "scaling.csv").unlink()
    assert __main__.main(["collect", str(tmp_path)]) == 0
    assert list(csv.DictReader((tmp_path / "scaling.csv").open(encoding="utf-8"))) == rows


def test_points_are_launched_with_the_study_and_its_solvers(monkeypatch: pytest.MonkeyPatch) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(ranks.subprocess, "run", run)
    study = read(["weak", "--layers=4", *SOLVERS, "--ranks", "2", "3", "--out=runs/x"]).study
    ranks.launch(2, study.arguments(study.solvers, "virtual"))
    command = commands[-1]
    assert command[command.index("-n") + 1] == "2"
    again = read(command[command.index("lpnet.scaling") + 1 :])
    assert again.name == "point"
    assert again.study.kind == "virtual"
    assert [again.study.problem(2), again.study.solvers] == [study.problem(2), study.solvers]


def test_studies_start_their_ranks_themselves() -> None:
    class Two(slab.Comm):
        size = 2

    with pytest.raises(ValueError, match="ranks: 2 of a launcher given to strong, 1 allowed"):
        __main__._refuse(read(["strong"]), Two())
