"""Dynamics: what one layer computes. A new built-in one is one class, added to `REGISTRY`; tests run over it."""

from lpnet.dynamics.base import Dynamics, described
from lpnet.dynamics.dense import Antisymmetric, Dense, TwoLayer
from lpnet.dynamics.hamiltonian import Hamiltonian
from lpnet.dynamics.symmetric import DoubleSymmetric, SecondOrder

REGISTRY: dict[str, type[Dynamics]] = {
    "dense": Dense,
    "two_layer": TwoLayer,
    "antisymmetric": Antisymmetric,
    "hamiltonian": Hamiltonian,
    "double_symmetric": DoubleSymmetric,
    "second_order": SecondOrder,
}

__all__ = [
    "REGISTRY",
    "Antisymmetric",
    "Dense",
    "DoubleSymmetric",
    "Dynamics",
    "Hamiltonian",
    "SecondOrder",
    "TwoLayer",
    "described",
]
