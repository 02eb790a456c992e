"""The pictures: they are written, show what they were given, and need no display and no global state."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread

from lpnet import plots
from lpnet.data import DataOptions, DataSet, load
from lpnet.plots import CHUNK, OKABE_ITO, decision_regions, history


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are written, in order."""
    written: list[Figure] = []
    write = plots.save

    def keep(figure: Figure, path: str | Path) -> None:
        written.append(figure)
        write(figure, path)

    monkeypatch.setattr(plots, "save", keep)
    return written


def pixels(path: Path) -> np.ndarray:
    """The picture, after a check that it is a PNG with something on it."""
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = imread(path)[..., :3]
    assert min(image.shape[:2]) > 250
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20
    return image


def records(n: int, every: int = 10) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"step": i, "loss": 2.0 / i} for i in range(1, n + 1)]
    for record in steps[every - 1 :: every]:
        record |= {"train_accuracy": 1 - record["loss"] / 4, "val_accuracy": 0.9 - record["loss"] / 4}
    return steps


def cloud(classes: int, n: int = 200) -> DataSet:
    x = np.random.default_rng(0).normal(size=(n, 2))
    y = np.arange(n) % classes
    return DataSet("cloud", x, y, x, y, classes)


def left_or_right(points: np.ndarray) -> np.ndarray:
    return (points[:, 0] > 0).astype(np.int64)


# --- history --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [40, 1000])
def test_history_shows_loss_and_accuracies(tmp_path: Path, figures: list[Figure], n: int) -> None:
    given = records(n)
    history(given, tmp_path / "history.png")
    pixels(tmp_path / "history.png")
    loss, accuracy = figures[0].axes
    assert loss.get_yscale() == "log"
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [(r["step"], r["loss"]) for r in given])
    assert len(loss.lines) == (2 if n >= 200 else 1)
    for line, key in zip(accuracy.lines, ("train_accuracy", "val_accuracy"), strict=True):
        np.testing.assert_allclose(line.get_xydata(), [(r["step"], r[key]) for r in given if key in r])
    for ax in (loss, accuracy):
        assert ax.get_legend() is not None
        assert ax.get_xlabel()
        assert ax.get_ylabel()


def test_the_running_mean_of_a_line_is_the_line(tmp_path: Path, figures: list[Figure]) -> None:
    history([{"step": i, "loss": 3.0 * i} for i in range(1, 501)], tmp_path / "history.png")
    mean = figures[0].axes[0].lines[1]
    np.testing.assert_allclose(mean.get_ydata(), 3 * np.asarray(mean.get_xdata()))


def test_history_is_one_panel_without_accuracies_and_linear_where_the_loss_is_not_positive(
    tmp_path: Path, figures: list[Figure]
) -> None:
    history([{"step": i, "loss": 1.0 - i} for i in range(9)], tmp_path / "history.png")
    pixels(tmp_path / "history.png")
    (loss,) = figures[0].axes
    assert loss.get_yscale() == "linear"


@pytest.mark.parametrize(
    "odd",
    [
        [],
        [{"step": 1, "loss": 2.0}],
        [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": None}],
        [{"step": 1, "loss": 2.0, "train_accuracy": 1.0, "val_accuracy": 1.0}],
        [{"step": 1, "loss": 2.0, "val_accuracy": 0.0}],
        [{"step": 1, "loss": 2.0, "train_accuracy": None}, {"step": 2, "loss": float("inf")}],
        [{"step": i, "loss": 1e-30} for i in range(300)],
    ],
)
@pytest.mark.filterwarnings("error")
def test_history_draws_short_and_broken_runs(tmp_path: Path, odd: list[dict[str, Any]]) -> None:
    history(odd, tmp_path / "history.png")
    pixels(tmp_path / "history.png")


# --- decision regions -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["peaks", "ellipses", "swissroll"])
@pytest.mark.filterwarnings("error")
def test_regions_have_the_colours_of_their_classes(tmp_path: Path, figures: list[Figure], name: str) -> None:
    data = load(DataOptions(name=name), seed=0)  # type: ignore[arg-type]
    decision_regions(left_or_right, data, tmp_path / "regions.png", title="two halves")
    image = pixels(tmp_path / "regions.png")
    ax = figures[0].axes[0]
    assert ax.get_title() == "two halves"
    assert ax.get_aspect() == 1
    assert data.bounds == (ax.get_xlim(), ax.get_ylim())
    drawn = ax.images[0].get_array()
    middle = drawn.shape[1] // 2
    for c, half in enumerate((drawn[:, :middle], drawn[:, middle:])):
        tint = 0.42 * np.array(to_rgb(OKABE_ITO[c])) + 0.58
        np.testing.assert_allclose(half, np.broadcast_to(tint, half.shape))
        assert (np.abs(image - tint).max(axis=2) < 0.01).mean() > 0.1
        np.testing.assert_allclose(ax.collections[c].get_facecolor()[0][:3], to_rgb(OKABE_ITO[c]))
    points = np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])
    assert {tuple(p) for p in points} <= {tuple(p) for p in data.train_x}
    assert len(points) == min(1500, len(data.train_x))
    assert len(figures[0].legends[0].get_texts()) == data.classes


def test_the_upper_half_is_drawn_above(tmp_path: Path, figures: list[Figure]) -> None:
    decision_regions(lambda p: (p[:, 1] > 0).astype(int), cloud(2), tmp_path / "regions.png")
    ax = figures[0].axes[0]
    assert ax.images[0].origin == "lower"
    assert not np.array_equal(ax.images[0].get_array()[0, 0], ax.images[0].get_array()[-1, 0])
    np.testing.assert_allclose(ax.images[0].get_array()[-1, 0], 0.42 * np.array(to_rgb(OKABE_ITO[1])) + 0.58)


def test_the_network_sees_the_whole_frame_in_chunks(tmp_path: Path) -> None:
    seen: list[np.ndarray] = []

    def predict(points: np.ndarray) -> np.ndarray:
        seen.append(points)
        return left_or_right(points)

    data = load(DataOptions(name="peaks"), seed=0)
    decision_regions(predict, data, tmp_path / "regions.png")
    assert all(p.dtype == np.float64 and p.shape[1] == 2 and 0 < len(p) <= CHUNK for p in seen)
    points = np.concatenate(seen)
    assert len(np.unique(points, axis=0)) == len(points)
    assert np.abs(points).max() < 3
    assert np.abs(points).max() > 2.98


@pytest.mark.parametrize("classes", [1, 8, 9, 30])
@pytest.mark.filterwarnings("error")
def test_any_number_of_classes_and_no_bounds(tmp_path: Path, figures: list[Figure], classes: int) -> None:
    data = cloud(classes)
    decision_regions(lambda p: np.zeros(len(p), dtype=np.int64), data, tmp_path / "regions.png")
    pixels(tmp_path / "regions.png")
    colors = {tuple(c.get_facecolor()[0]) for c in figures[0].axes[0].collections}
    assert len(colors) == classes
    low, high = np.array((figures[0].axes[0].get_xlim(), figures[0].axes[0].get_ylim())).T
    assert ((low < data.train_x) & (data.train_x < high)).all()


@pytest.mark.parametrize(
    "answer",
    [
        lambda p: np.zeros((len(p), 2), dtype=np.int64),
        lambda p: np.zeros(len(p)),
        lambda p: np.full(len(p), 2),
        lambda p: np.full(len(p), -1),
        lambda p: np.zeros(len(p) - 1, dtype=np.int64),
    ],
)
def test_answers_that_are_no_classes_are_refused(tmp_path: Path, answer: Any) -> None:
    with pytest.raises(ValueError, match=r"predict returned .* allowed"):
        decision_regions(answer, cloud(2), tmp_path / "regions.png")
    assert not (tmp_path / "regions.png").exists()


def test_data_of_other_dimensions_are_refused(tmp_path: Path) -> None:
    data = load(DataOptions(name="digits"), seed=0)
    with pytest.raises(ValueError, match="2 features, 64 given"):
        decision_regions(left_or_right, data, tmp_path / "regions.png")


def test_no_pyplot_and_no_display(tmp_path: Path) -> None:
    code = (
        "import sys; from lpnet.plots import history; history([{'step': 1, 'loss': 1.0}], sys.argv[1]);"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "history.png")], check=False)
    assert done.returncode == 0
    pixels(tmp_path / "history.png")
