"""All experiments, in the order of the gallery. A new one is a module and a row."""

from lpnet.experiments.base import Experiment

_ROWS = (
    (1, "orders", "A residual network is forward Euler; orders of the steppers"),
    (7, "surface", "The loss surface, rough with few layers and smooth with many"),
    (8, "flow", "Stability of the flow"),
    (9, "spectra", "Antisymmetric and Hamiltonian layers"),
    (12, "limits", "Limits of reversibility"),
)

REGISTRY: dict[str, Experiment] = {name: Experiment(number, name, title) for number, name, title in _ROWS}
