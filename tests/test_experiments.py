"""The command of the gallery: what it writes, what it refuses, and that the gallery in the docs is whole."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lpnet.experiments import REGISTRY, Context, folder
from lpnet.experiments.__main__ import main, parse
from lpnet.launch import Answer
from lpnet.slab import Comm

DOCS = Path(__file__).resolve().parent.parent / "docs"


def test_an_experiment_writes_a_picture_its_numbers_and_the_page(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "pictures"
    assert main(["orders", "--quick", "--out", str(out), "--seed", "3"]) == 0
    assert (out / "orders.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    found = json.loads((out / "orders.json").read_text(encoding="utf-8"))
    assert (found["number"], found["ranks"], found["settings"]["seed"], found["settings"]["quick"]) == (1, 1, 3, True)
    assert found["command"] == "python -m lpnet.experiments orders --seed 3 --quick"
    page = " ".join((tmp_path / "pictures.md").read_text(encoding="utf-8").split())
    assert all(part in page for part in ("pictures/orders.png", found["see"], found["command"]))
    said = " ".join(capsys.readouterr().out.split())
    assert found["see"] in said


def test_list_names_all() -> None:
    with pytest.raises(Answer) as answer:
        parse(["list"])
    assert [line.split()[1] for line in str(answer.value).splitlines()] == list(REGISTRY)
    assert [one.number for one in REGISTRY.values()] == sorted(one.number for one in REGISTRY.values())
    assert parse(["all", "--quick"]).experiments == tuple(REGISTRY.values())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "NAME: nothing given"),
        (["ordres"], "NAME: 'ordres' given, did you mean orders?"),
        (["orders", "--seed", "-1"], "--seed: -1 given, a whole number of 0 to 9223372036854775807 allowed"),
        (["orders", "--fast"], "--fast"),
        (["orders", "--out", "/dev/null/pictures"], "--out: '/dev/null/pictures' given"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, capsys: Any) -> None:
    assert main(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert said in lines[0]


def test_numbers_become_strict_json() -> None:
    content = {"a": np.array([1.0, np.inf, 0.1234567891]), 2: [np.float64("nan"), np.int64(3)], "rows": [[1], [2.5]]}
    found = json.loads(folder.text(folder.plain(content)))
    assert found == {"a": [1.0, None, 0.123457], "2": [None, 3], "rows": [[1], [2.5]]}


def test_draws_depend_on_seed_and_tag() -> None:
    def draw(seed: int, tag: str) -> float:
        return float(Context(Comm(), seed=seed).rng(tag).random())

    assert draw(0, "a") == draw(0, "a")
    assert len({draw(0, "a"), draw(1, "a"), draw(0, "b")}) == 3


def shown(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((DOCS / "gallery" / f"{name}.json").read_text(encoding="utf-8"))
    return found


@pytest.mark.parametrize("name", list(REGISTRY))
def test_the_gallery_shows_every_experiment_whole(name: str) -> None:
    found, one = shown(name), REGISTRY[name]
    page = " ".join((DOCS / "gallery.md").read_text(encoding="utf-8").split())
    assert (found["name"], found["number"], found["title"]) == (name, one.number, one.title)
    assert not found["settings"]["quick"]
    assert (DOCS / "gallery" / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    parts = (f"## {one.number}. {one.title}", f"gallery/{name}.png", f"gallery/{name}.json", f"`{found['command']}`")
    assert all(part in page for part in (*parts, found["see"]))


def test_the_gallery_has_nothing_else() -> None:
    assert sorted(path.name for path in (DOCS / "gallery").iterdir()) == sorted(
        f"{name}.{kind}" for name in REGISTRY for kind in ("json", "png")
    )


# ---- what the gallery has to reach -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "least"), [("Hamiltonian", 0.995), ("ResNet", 0.99), ("antisymmetric", 0.99)])
def test_the_swiss_roll_is_learnt(name: str, least: float) -> None:
    found = shown("swissroll")["numbers"][name]
    assert found["levels"][-1]["layers"] == 1024
    assert found["validation_accuracy"] >= least


def test_ellipses_are_learnt_in_the_plane() -> None:
    found = shown("ellipses")["numbers"]
    assert found["levels"][-1]["layers"] == 1024
    assert found["validation_accuracy"] >= 0.995


def test_peaks_are_learnt_in_few_steps() -> None:
    found = shown("peaks")["numbers"].values()
    assert any(one["validation_accuracy"] >= 0.98 and one["outer_steps"] <= 40 for one in found)


def test_multilevel_training_pays_where_the_steps_resolve_the_dynamics() -> None:
    found = shown("multilevel")["numbers"]
    multilevel, scratch = found["multilevel"], found["scratch"]
    assert len(multilevel["levels"]) > 2
    assert multilevel["largest_jump"] < 0.1
    assert scratch["work"] >= multilevel["work"]
    assert multilevel["objective"] < scratch["objective"]


def test_orders_are_as_stated() -> None:
    found = shown("orders")["numbers"]["steppers"]
    orders = {"Euler": 1, "Verlet from zero": 1, "Verlet from half": 2, "Leapfrog from half": 2, "AB3": 3, "RK4": 4}
    measured = {name: found[name]["measured"] for name in orders}
    assert measured == pytest.approx(orders, abs=0.15)


def test_states_are_reversed_over_1024_layers() -> None:
    found = shown("reversible")["numbers"]
    assert found["layers"][-1] == 1024
    assert max(max(row) for row in found["round_trip_error"].values()) <= 1e-12
