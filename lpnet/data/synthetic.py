"""Data sets in the plane that are drawn or computed: peaks, ellipses, swissroll.

    peaks       z(x, y) = 3(1−x)² e^(−x²−(y+1)²) − 10(x/5 − x³ − y⁵) e^(−x²−y²) − ⅓ e^(−(x+1)²−y²) on a grid of 256²
                points of [−3, 3]²; the classes are five bands of equal height between min z and max z
    ellipses    (r cos φ, 0.4 r sin φ), r in (0, 1) for class 0 and in (1, 2) for class 1
    swissroll   (r cos θ, r sin θ), θ in [0, 4π], r from 0 to 1 for class 0 and from 0.2 to 1.2 for class 1

Source: Haber and Ruthotto, Stable architectures for deep neural networks (2017), and the codes published with it.
"""

from collections.abc import Callable

import numpy as np

from lpnet import room
from lpnet.data.base import DataOptions, DataSet, Floats, Ints, bad, generator, part_of
from lpnet.errors import shown

PEAKS_GRID = 256
PEAKS_CLASSES = 5
SWISSROLL_NODES = 513
DRAWN = 56.0
"""Bytes of an example that is drawn: point, label, place in the order, and point and label once more in that order."""

Draw = Callable[[int, np.random.Generator], Floats]


def peaks_function(x: Floats, y: Floats) -> Floats:
    """The sum of Gaussian hills z(x, y) of the module's head, elementwise."""
    hill = 3 * (1 - x) ** 2 * np.exp(-(x**2) - (y + 1) ** 2)
    ring = 10 * (x / 5 - x**3 - y**5) * np.exp(-(x**2) - y**2)
    return hill - ring - np.exp(-((x + 1) ** 2) - y**2) / 3


def peaks_grid() -> tuple[Floats, Ints, Floats]:
    """All grid points of peaks.

    Returns:
        points (65536, 2), their classes (65536,), and the cuts (6,): min z, the four cuts between bands, max z.
    """
    axis = np.linspace(-3.0, 3.0, PEAKS_GRID)
    x, y = np.meshgrid(axis, axis)
    z = peaks_function(x, y).ravel()
    cuts = np.linspace(z.min(), z.max(), PEAKS_CLASSES + 1)
    return np.column_stack((x.ravel(), y.ravel())), np.digitize(z, cuts[1:-1]).astype(np.int64), cuts


def _drawn(draws: list[Draw], number: int, rng: np.random.Generator) -> tuple[Floats, Ints]:
    """As many points of each class (the first classes get the remainder, one each), in random order."""
    counts = [number // len(draws) + (c < number % len(draws)) for c in range(len(draws))]
    x = np.concatenate([draw(n, rng) for draw, n in zip(draws, counts, strict=True)])
    y = np.repeat(np.arange(len(draws), dtype=np.int64), counts)
    order = rng.permutation(number)
    return x[order], y[order]


def _random_set(options: DataOptions, seed: int, draws: list[Draw], train: int, validation: int) -> DataSet:
    """Two independent draws; `train` and `validation` are the numbers of points where the options give none."""
    sets = {}
    for key, default in (("train", train), ("validation", validation)):
        number = getattr(options, key) or default
        if number < len(draws):
            raise bad(key, number, f"with name {options.name}, at least {len(draws)} (one for each class)")
        room.require(f"data.{key}", shown(number), DRAWN * number, "examples")
        sets[key] = _drawn(draws, number, generator(seed, f"{options.name}/{key}"))
    return DataSet(options.name, *sets["train"], *sets["validation"], classes=len(draws))


def peaks(options: DataOptions, seed: int) -> DataSet:
    """The same number of grid points of each of the five bands, drawn with replacement."""
    points, band, _ = peaks_grid()

    def of_band(members: Floats) -> Draw:
        return lambda n, rng: rng.choice(members, n)

    data = _random_set(options, seed, [of_band(points[band == c]) for c in range(PEAKS_CLASSES)], 5000, 2000)
    data.bounds = ((-3.0, 3.0), (-3.0, 3.0))
    return data


def ellipses(options: DataOptions, seed: int) -> DataSet:
    """An ellipse, and the elliptic ring that touches it; no noise."""

    def between(inner: float, outer: float) -> Draw:
        def draw(n: int, rng: np.random.Generator) -> Floats:
            r, phi = rng.uniform(inner, outer, n), rng.uniform(0.0, 2 * np.pi, n)
            return np.column_stack((r * np.cos(phi), 0.4 * r * np.sin(phi)))

        return draw

    data = _random_set(options, seed, [between(0.0, 1.0), between(1.0, 2.0)], 1000, 2000)
    data.bounds = ((-2.2, 2.2), (-1.0, 1.0))
    return data


def swissroll(options: DataOptions, seed: int) -> DataSet:
    """Two interleaved spirals of 513 nodes each; every other node is for validation.

    Deterministic, unless fewer than the 513 training and 513 validation examples are asked for.
    """
    theta = np.linspace(0.0, 4 * np.pi, SWISSROLL_NODES)
    r = np.concatenate((np.linspace(0.0, 1.0, SWISSROLL_NODES), np.linspace(0.2, 1.2, SWISSROLL_NODES)))
    x = r[:, None] * np.tile(np.column_stack((np.cos(theta), np.sin(theta))), (2, 1))
    y = np.repeat(np.arange(2, dtype=np.int64), SWISSROLL_NODES)
    t = 2 * part_of("train", y[::2], options.train, generator(seed, "swissroll/train"))
    v = 2 * part_of("validation", y[1::2], options.validation, generator(seed, "swissroll/validation")) + 1
    return DataSet("swissroll", x[t], y[t], x[v], y[v], classes=2, bounds=((-1.4, 1.4), (-1.4, 1.4)))
