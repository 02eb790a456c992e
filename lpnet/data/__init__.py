"""Data sets: `load(DataOptions(name=...), seed)` gives the training and validation examples of any of them.

A new data set is a function ``(options, seed) -> DataSet`` in `REGISTRY`, and its name in `DataOptions`.
"""

from collections.abc import Callable

from lpnet.data.base import DataOptions, DataSet, bad, fitting, standardized
from lpnet.data.files import file, read_examples
from lpnet.data.images import digits, mnist
from lpnet.data.synthetic import ellipses, peaks, swissroll
from lpnet.errors import InputError

__all__ = ["REGISTRY", "DataOptions", "DataSet", "load", "read_examples"]

REGISTRY: dict[str, Callable[[DataOptions, int], DataSet]] = {
    "peaks": peaks,
    "ellipses": ellipses,
    "swissroll": swissroll,
    "digits": digits,
    "mnist": mnist,
    "file": file,
}


def load(options: DataOptions, seed: int = 0) -> DataSet:
    """The examples that the options ask for; the same on every rank, for the same seed.

    Args:
        options: which data set, and how much of it.
        seed: seed of all draws and splits, a whole number from 0 on.

    Returns:
        The data set: float64 features (examples, features) and int64 labels (examples,), on training and validation.

    Raises:
        InputError: the options or the file that they name cannot be used, or the examples do not fit into memory.
    """
    if options.name not in REGISTRY:
        raise bad("name", repr(options.name), f"one of {', '.join(REGISTRY)}")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"run.seed: {seed!r} given, a whole number of at least 0 allowed")
    normalize = options.name == "file" if options.normalize is None else options.normalize
    with fitting("name", repr(options.name)):
        data = REGISTRY[options.name](options, seed)
        return standardized(data) if normalize else data
