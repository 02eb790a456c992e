"""All experiments, in the order of the gallery. A new one is a module and a row."""

from lpnet.experiments.base import Experiment

_ROWS = (
    (1, "orders", "A residual network is forward Euler; orders of the steppers"),
)

REGISTRY: dict[str, Experiment] = {name: Experiment(number, name, title) for number, name, title in _ROWS}
