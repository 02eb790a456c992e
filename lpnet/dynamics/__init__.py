"""Dynamics: what one layer computes. A new built-in one is one class, added to `REGISTRY`; tests run over it."""

from lpnet.dynamics.base import Dynamics
from lpnet.dynamics.dense import Antisymmetric, Dense, TwoLayer
from lpnet.dynamics.hamiltonian import Hamiltonian

REGISTRY: dict[str, type[Dynamics]] = {
    "dense": Dense,
    "two_layer": TwoLayer,
    "antisymmetric": Antisymmetric,
    "hamiltonian": Hamiltonian,
}

__all__ = ["REGISTRY", "Antisymmetric", "Dense", "Dynamics", "Hamiltonian", "TwoLayer"]
