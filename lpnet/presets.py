"""The presets of `lpnet.train`: small problems that train well in two minutes on two cores, with all their numbers.

A preset is a layer of the configuration over the defaults (see `lpnet.commandline`): sections, keys, values.
"""

from typing import Any

_MGRIT: dict[str, Any] = {
    "kind": "mgrit",
    "coarsening": 16,
    "levels": 2,
    "cycles": 1,
    "relaxation": "F",
    "coarse": "matched",
    "samples": 1,
    "passes": 2,
    "coarse_weights": "mean",
    "initial": "coarse",
    "cycle_shape": "V",
    "tol": None,
}

PRESETS: dict[str, dict[str, Any]] = {
    "peaks": {
        "data": {"name": "peaks", "train": 5000, "validation": 2000},
        "trunk": {
            "layers": 128, "width": 8, "T": 5.0, "dynamics": "dense", "stepper": "euler",
            "activation": "tanh", "init": "constant", "opening": "linear",
        },
        "solver": {"forward": _MGRIT, "adjoint": _MGRIT},
        "optimizer": {"name": "adam", "lr": 2e-2},
        "schedule": {"name": "cosine", "warmup": 20, "final": 0.0},
        "regularizer": {"tikhonov": 1e-7, "ddt": 1e-5, "classifier": 1e-7},
        "training": {"method": "gradient", "steps": 500, "batch": 500, "validate_every": 50},
    },
    "ellipses": {
        "data": {"name": "ellipses", "train": 1000, "validation": 2000},
        "trunk": {
            "layers": 128, "width": 4, "T": 10.0, "dynamics": "hamiltonian", "stepper": "verlet", "start": "half",
            "activation": "tanh", "init": "constant", "opening": "linear",
        },
        "solver": {"forward": _MGRIT | {"passes": None}, "adjoint": _MGRIT | {"passes": None}},
        "optimizer": {"name": "adam", "lr": 2e-2},
        "schedule": {"name": "cosine", "warmup": 20, "final": 0.0},
        "regularizer": {"tikhonov": 1e-7, "ddt": 1e-5, "classifier": 1e-7},
        "training": {"method": "gradient", "steps": 300, "batch": None, "validate_every": 50},
    },
    "swissroll": {
        "data": {"name": "swissroll", "train": 513, "validation": 513},
        "trunk": {
            "layers": 128, "width": 8, "T": 10.0, "dynamics": "antisymmetric", "stepper": "euler", "gamma": 1e-4,
            "activation": "tanh", "init": "constant", "opening": "linear",
        },
        "solver": {"forward": _MGRIT, "adjoint": _MGRIT},
        "optimizer": {"name": "adam", "lr": 2e-2},
        "schedule": {"name": "cosine", "warmup": 20, "final": 0.0},
        "regularizer": {"tikhonov": 1e-7, "ddt": 1e-5, "classifier": 1e-7},
        "training": {"method": "gradient", "steps": 500, "batch": None, "validate_every": 50},
    },
    "digits": {
        "data": {"name": "digits", "validation_fraction": 0.2},
        "trunk": {
            "layers": 128, "width": 32, "T": 2.0, "dynamics": "dense", "stepper": "euler",
            "activation": "tanh", "init": "constant", "opening": "linear",
        },
        "solver": {"forward": _MGRIT, "adjoint": _MGRIT},
        "optimizer": {"name": "adam", "lr": 3e-3},
        "schedule": {"name": "cosine", "warmup": 20, "final": 0.0},
        "regularizer": {"tikhonov": 1e-5, "ddt": 1e-4, "classifier": 1e-5},
        "training": {"method": "gradient", "epochs": 40, "batch": 128, "validate_every": 50},
    },
}  # fmt: skip
