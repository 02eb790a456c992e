"""What an experiment is: a function of its context that returns numbers, words and a way to draw them."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from matplotlib.figure import Figure

from lpnet.data.base import generator
from lpnet.slab import Comm

Value = TypeVar("Value")


@dataclass(frozen=True)
class Context:
    """What an experiment is given.

    Args:
        comm: the ranks; every rank runs the experiment.
        quick: a small version that shows the same in a few seconds.
        seed: of everything random.
    """

    comm: Comm
    quick: bool = False
    seed: int = 0

    def pick(self, full: Value, quick: Value) -> Value:
        """A setting of the whole experiment, or of its quick version."""
        return quick if self.quick else full

    def rng(self, tag: str) -> np.random.Generator:
        """Random numbers that depend on seed and tag alone."""
        return generator(self.seed, f"experiments/{tag}")


@dataclass(frozen=True)
class Result:
    """What an experiment found.

    Args:
        numbers: for the JSON file: texts, numbers, arrays, and dicts and lists of them.
        settings: the same for what was chosen: sizes, methods, weights.
        see: one paragraph for the reader, with the numbers that the picture shows.
        draw: makes the figure; called on rank 0 alone.
    """

    numbers: dict[str, Any]
    see: str
    draw: Callable[[], Figure]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """One row of the registry.

    Args:
        number: in the gallery, from 1 on.
        name: of its module, its command and its files.
        title: what it is about.
    """

    number: int
    name: str
    title: str

    def run(self, context: Context) -> Result:
        """Run it; collective."""
        module = importlib.import_module(f"lpnet.experiments.{self.name}")
        found: Result = module.run(context)
        return found
