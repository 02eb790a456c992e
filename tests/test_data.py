"""Data sets: the published numbers, draws that depend on (seed, tag) alone, and one clear line for each bad option."""

from typing import Any, get_args, get_type_hints

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from refusal import refused

from lpnet.data import REGISTRY, DataOptions, DataSet, load
from lpnet.data.base import generator, split, stratified_order
from lpnet.data.synthetic import peaks_function, peaks_grid
from lpnet.errors import InputError

DRAWN = ["peaks", "ellipses", "digits"]
BUILT_IN = [*DRAWN, "swissroll"]
SIZES = st.integers(1, 60)


def same(a: DataSet, b: DataSet) -> bool:
    pairs = ((a.train_x, b.train_x), (a.train_y, b.train_y), (a.val_x, b.val_x), (a.val_y, b.val_y))
    return all(np.array_equal(x, y) for x, y in pairs)


# --- laws of all data sets ------------------------------------------------------------------------------------------


def test_names_of_the_command_line_are_those_of_the_registry() -> None:
    assert set(get_args(get_type_hints(DataOptions)["name"])) == set(REGISTRY)


@pytest.mark.parametrize("name", BUILT_IN)
def test_types_shapes_and_labels(name: str) -> None:
    data = load(DataOptions(name=name), seed=1)
    for x, y in ((data.train_x, data.train_y), (data.val_x, data.val_y)):
        assert x.dtype == np.float64
        assert y.dtype == np.int64
        assert x.shape == (len(y), data.features)
        assert np.isfinite(x).all()
        assert np.array_equal(np.unique(y), np.arange(data.classes))
    if data.bounds is not None:
        low, high = np.array(data.bounds).T
        assert ((data.train_x >= low) & (data.train_x <= high)).all()


@pytest.mark.parametrize("name", BUILT_IN)
def test_same_seed_same_data_whatever_the_global_state(name: str) -> None:
    first = load(DataOptions(name=name), seed=7)
    np.random.random(11)  # noqa: NPY002
    before = repr(np.random.get_state())  # noqa: NPY002
    assert same(first, load(DataOptions(name=name), seed=7))
    assert repr(np.random.get_state()) == before  # noqa: NPY002


@pytest.mark.parametrize("name", DRAWN)
def test_other_seed_other_data(name: str) -> None:
    assert not same(load(DataOptions(name=name), seed=0), load(DataOptions(name=name), seed=1))


@pytest.mark.parametrize("name", ["peaks", "ellipses"])
def test_validation_is_a_draw_of_its_own(name: str) -> None:
    few = load(DataOptions(name=name, train=10, validation=50), seed=3)
    many = load(DataOptions(name=name, train=50, validation=50), seed=3)
    assert np.array_equal(few.val_x, many.val_x)
    assert not np.array_equal(np.sort(many.train_x, axis=0), np.sort(many.val_x, axis=0))


@given(seed=st.integers(0, 2**40), tags=st.lists(st.text(max_size=8), min_size=2, max_size=2, unique=True))
def test_each_seed_and_tag_has_its_own_numbers(seed: int, tags: list[str]) -> None:
    draws = [generator(seed, tag).random(4) for tag in tags]
    assert np.array_equal(draws[0], generator(seed, tags[0]).random(4))
    assert not np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], generator(seed + 1, tags[0]).random(4))


@given(counts=st.lists(SIZES, min_size=1, max_size=6), seed=st.integers(0, 9), part=st.floats(0, 1))
def test_each_beginning_of_a_stratified_order_has_the_classes_in_proportion(
    counts: list[int], seed: int, part: float
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = stratified_order(labels, np.random.default_rng(seed))
    assert np.array_equal(np.sort(order), np.arange(len(labels)))
    taken = round(part * len(labels))
    found = np.bincount(labels[order[:taken]], minlength=len(counts))
    # Each class is rounded once for itself, and the total once for all classes together.
    share = np.array(counts) / len(labels)
    assert (np.abs(found - taken * share) <= 1 + len(counts) / 2 * share).all()


@given(n=st.integers(2, 60), classes=st.integers(2, 4), data=st.data())
def test_a_split_has_the_sizes_asked_for_and_no_example_twice(n: int, classes: int, data: st.DataObject) -> None:
    train = data.draw(st.none() | st.integers(1, n - 1))
    validation = data.draw(st.none() | st.integers(1, n - (train or 1)))
    x = np.arange(float(n))[:, None]
    y = np.arange(n) % classes
    result = split(DataOptions(name="digits", train=train, validation=validation), x, y, classes, seed=5)
    used = np.concatenate((result.train_x, result.val_x)).ravel().astype(int)
    assert len(np.unique(used)) == len(used)
    assert len(result.train_y) == (train or n - len(result.val_y))
    assert len(result.val_y) == (validation or min(max(1, round(0.2 * n)), n - (train or 1)))
    assert np.array_equal(np.concatenate((result.train_y, result.val_y)), used % classes)


@pytest.mark.parametrize("name", BUILT_IN)
def test_normalized_training_features_have_mean_0_and_deviation_1_and_raw_examples_follow(name: str) -> None:
    plain = load(DataOptions(name=name, normalize=False), seed=2)
    data = load(DataOptions(name=name, normalize=True), seed=2)
    varies = plain.train_x.std(axis=0) > 0
    np.testing.assert_allclose(data.train_x.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(data.train_x.std(axis=0), varies, atol=1e-12)
    raw = plain.val_x * plain.scale + plain.shift
    np.testing.assert_allclose(data.normalized(raw), data.val_x, atol=1e-12)
    if data.bounds is not None and plain.bounds is not None:
        np.testing.assert_allclose(data.normalized(np.array(plain.bounds).T), np.array(data.bounds).T)


# --- published numbers ----------------------------------------------------------------------------------------------


def test_peaks_has_the_published_bands() -> None:
    points, band, cuts = peaks_grid()
    published = [-6.549719226, -3.618696692, -0.687674157, 2.243348378, 5.174370912, 8.105393447]
    np.testing.assert_allclose(cuts, published, atol=1e-9)
    assert np.bincount(band).tolist() == [1829, 7968, 47557, 6384, 1798]
    assert points.shape == (256**2, 2)
    assert points.min(axis=0).tolist() == [-3, -3]
    assert points.max(axis=0).tolist() == [3, 3]


@pytest.mark.parametrize("number", [5, 12, 5000])
def test_peaks_draws_grid_points_of_their_band_equally_often(number: int) -> None:
    data = load(DataOptions(name="peaks", train=number, validation=number), seed=4)
    cuts = peaks_grid()[2]
    for x, y in ((data.train_x, data.train_y), (data.val_x, data.val_y)):
        counts = np.bincount(y, minlength=5)
        assert counts.sum() == number
        assert counts.max() - counts.min() <= (number % 5 > 0)
        z = peaks_function(*x.T)
        assert ((cuts[y] <= z) & (z <= cuts[y + 1])).all()
        steps = (x + 3) * 255 / 6
        np.testing.assert_allclose(steps, np.rint(steps), atol=1e-9)
    assert not np.array_equal(data.train_x, data.val_x)


def test_peaks_draws_with_replacement() -> None:
    data = load(DataOptions(name="peaks", train=5 * 3000), seed=0)
    assert np.bincount(data.train_y).tolist() == [3000] * 5  # more than the 1829 and 1798 points that there are
    assert len(np.unique(data.train_x[data.train_y == 0], axis=0)) < 1829


def test_ellipses_are_touching_rings_filled_evenly_in_radius() -> None:
    data = load(DataOptions(name="ellipses", train=8000), seed=0)
    x, y = data.train_x, data.train_y
    r = np.hypot(x[:, 0], x[:, 1] / 0.4)
    assert np.array_equal(np.floor(r).astype(int), y)
    for c in range(2):
        # Standard error of the mean of 4000 uniform numbers is 0.0046, of cos φ 0.011.
        assert abs(r[y == c].mean() - (c + 0.5)) < 0.02
        assert np.abs((x[y == c] / r[y == c, None]).mean(axis=0)).max() < 0.05


def test_ellipses_has_the_slides_numbers_of_points() -> None:
    data = load(DataOptions(name="ellipses"), seed=0)
    assert (len(data.train_y), len(data.val_y)) == (1000, 2000)
    assert np.bincount(data.train_y).tolist() == [500, 500]


@pytest.mark.parametrize("seed", [0, 1])
def test_swissroll_is_deterministic_with_the_published_norms(seed: int) -> None:
    data = load(DataOptions(name="swissroll"), seed=seed)
    assert data.train_x.shape == data.val_x.shape == (513, 2)
    assert np.linalg.norm(data.train_x) == pytest.approx(15.2514586905, abs=1e-10)
    assert np.linalg.norm(data.val_x) == pytest.approx(15.2593247618, abs=1e-10)
    assert np.bincount(data.train_y).tolist() == [257, 256]
    assert np.array_equal(data.train_y, np.sort(data.train_y))


def test_a_part_of_swissroll_is_made_of_its_points() -> None:
    whole = load(DataOptions(name="swissroll"), seed=0)
    part = load(DataOptions(name="swissroll", train=100, validation=50), seed=0)
    assert np.bincount(part.train_y).tolist() == [50, 50]
    assert {tuple(p) for p in part.train_x} < {tuple(p) for p in whole.train_x}
    assert {tuple(p) for p in part.val_x} < {tuple(p) for p in whole.val_x}


def test_digits_are_the_images_of_scikit_learn_between_0_and_1() -> None:
    from sklearn.datasets import load_digits

    data = load(DataOptions(name="digits"), seed=0)
    every = np.concatenate((data.train_x, data.val_x))
    assert every.shape == (1797, 64)
    assert (every.min(), every.max()) == (0, 1)
    assert np.array_equal(np.sort(every * 16, axis=0), np.sort(load_digits().data, axis=0))
    share = np.bincount(data.val_y) / np.bincount(np.concatenate((data.train_y, data.val_y)))
    assert np.abs(share - 0.2).max() < 0.02
    raw = load_digits().data[:9]
    assert np.array_equal(data.normalized(raw), raw / 16)


# --- options --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("train", {"train": 0}),
        ("train", {"train": -5}),
        ("train", {"train": 2.5}),
        ("train", {"train": True}),
        ("validation", {"validation": 0}),
        ("validation", {"validation": "many"}),
        ("classes", {"name": "file", "path": "a.npz", "classes": 1}),
        ("classes", {"name": "file", "path": "a.npz", "classes": 1_000_001}),
        ("validation_fraction", {"validation_fraction": 0.0}),
        ("validation_fraction", {"validation_fraction": 1.0}),
        ("validation_fraction", {"validation_fraction": float("nan")}),
        ("validation_fraction", {"validation_fraction": "half"}),
        ("path", {"name": "file"}),
        ("path", {"name": "peaks", "path": "a.npz"}),
        ("features", {"name": "digits", "features": "images"}),
        ("labels", {"name": "mnist", "labels": "c"}),
        ("classes", {"name": "peaks", "classes": 5}),
    ],
)
def test_options_refuse_impossible_values(key: str, options: dict[str, Any]) -> None:
    refused(key, "given", lambda: DataOptions(**options))


@pytest.mark.parametrize(
    ("key", "options"),
    [
        ("name", {"name": "cifar"}),
        ("train", {"name": "peaks", "train": 4}),
        ("validation", {"name": "ellipses", "validation": 1}),
        ("train", {"name": "peaks", "train": 10**13}),
        ("validation", {"name": "ellipses", "validation": 10**13}),
        ("train", {"name": "swissroll", "train": 514}),
        ("validation", {"name": "swissroll", "validation": 514}),
        ("train, data.validation", {"name": "digits", "train": 1797}),
        ("train, data.validation", {"name": "digits", "train": 1000, "validation": 798}),
        ("train, data.validation", {"name": "digits", "validation": 1797}),
    ],
)
def test_load_refuses_what_a_set_cannot_give(key: str, options: dict[str, Any]) -> None:
    refused(key, "given", lambda: load(DataOptions(**options), seed=0))


@pytest.mark.parametrize("seed", [-1, 1.5, True])
def test_load_refuses_an_impossible_seed(seed: Any) -> None:
    with pytest.raises(InputError, match=r"^run\.seed: .* allowed"):
        load(DataOptions(name="peaks"), seed=seed)
