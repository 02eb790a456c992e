"""The presets of `lpnet.train`: small problems that train well in a minute on two cores, with all their numbers.

A preset is a layer of the configuration over the defaults (see `lpnet.commandline`): sections, keys, values. The d/dt
regulariser keeps the weights smooth in the layer index, and the intervals H = mT/N are short against the dynamics that
training finds: without the two (ellipses with T = 10, m = 16, ddt 1e-5) a cycle hardly reduces the residual.
"""

from typing import Any


def _mgrit(coarsening: int) -> dict[str, Any]:
    """Both directions by the same solver; as many passes as belong to stepper and samples."""
    options: dict[str, Any] = {
        "kind": "mgrit",
        "coarsening": coarsening,
        "levels": 2,
        "cycles": 1,
        "relaxation": "F",
        "coarse": "matched",
        "samples": 1,
        "passes": None,
        "coarse_weights": "mean",
        "initial": "coarse",
        "cycle_shape": "V",
        "tol": None,
    }
    return {"auto": False, "forward": options, "adjoint": options}


_CONTROL: dict[str, Any] = {"gradient_tol": None, "every": 50, "plan_ranks": 32}
_ONESHOT: dict[str, Any] = {"warm": "auto", "limit_mib": 1024.0, "scratch": None, "tol": None}
_MULTILEVEL: dict[str, Any] = {"levels": 1, "shares": None}


PRESETS: dict[str, dict[str, Any]] = {
    "peaks": {
        "data": {"name": "peaks", "train": 5000, "validation": 2000},
        "trunk": {
            "layers": 256, "width": 8, "T": 5.0, "dynamics": "dense", "stepper": "euler",
            "activation": "tanh", "init": "constant", "opening": "linear",
        },
        "solver": _mgrit(8),
        "optimizer": {"name": "adam", "lr": 2e-2},
        "schedule": {"name": "cosine", "warmup": 20, "final": 0.0},
        "regularizer": {"tikhonov": 1e-7, "ddt": 1e-4, "classifier": 1e-7},
        "training": {"method": "gradient", "steps": 500, "batch": 500, "validate_every": 50},
        "control": _CONTROL,
        "oneshot": _ONESHOT,
        "multilevel": _MULTILEVEL,
    },
    "ellipses": {
        "data": {"name": "ellipses", "train": 1000, "validation": 2000},
        "trunk": {
            "layers": 256, "width": 4, "T": 5.0, "dynamics": "hamiltonian", "stepper": "verlet", "start": "half",
            "activation": "tanh", "init": "constant", "opening": "linear",
        },
        "solver": _mgrit(8),
        "optimizer": {"name": "adam", "lr": 2e-2},
        "schedule": {"name": "cosine", "warmup": 20, "final": 0.0},
        "regularizer": {"tikhonov": 1e-7, "ddt": 3e-4, "classifier": 1e-7},
        "training": {"method": "gradient", "steps": 300, "batch": None, "validate_every": 50},
        "control": _CONTROL,
        "oneshot": _ONESHOT,
        "multilevel": _MULTILEVEL,
    },
    "swissroll": {
        "data": {"name": "swissroll", "train": 513, "validation": 513},
        "trunk": {
            "layers": 256, "width": 8, "T": 5.0, "dynamics": "antisymmetric", "stepper": "euler", "gamma": 1e-4,
            "activation": "tanh", "init": "constant", "opening": "linear",
        },
        "solver": _mgrit(8),
        "optimizer": {"name": "adam", "lr": 1e-2},
        "schedule": {"name": "cosine", "warmup": 20, "final": 0.0},
        "regularizer": {"tikhonov": 1e-7, "ddt": 1e-3, "classifier": 1e-7},
        "training": {"method": "gradient", "steps": 400, "batch": None, "validate_every": 50},
        "control": _CONTROL,
        "oneshot": _ONESHOT,
        "multilevel": _MULTILEVEL,
    },
    "digits": {
        "data": {"name": "digits", "validation_fraction": 0.2},
        "trunk": {
            "layers": 128, "width": 64, "T": 2.0, "dynamics": "dense", "stepper": "euler",
            "activation": "tanh", "init": "constant", "opening": "linear",
        },
        "solver": _mgrit(16),
        "optimizer": {"name": "adam", "lr": 2e-3},
        "schedule": {"name": "cosine", "warmup": 20, "final": 0.0},
        "regularizer": {"tikhonov": 1e-5, "ddt": 1e-4, "classifier": 1e-5},
        "training": {"method": "gradient", "epochs": 20, "batch": 32, "validate_every": 100},
        "control": _CONTROL,
        "oneshot": _ONESHOT,
        "multilevel": _MULTILEVEL,
    },
}  # fmt: skip
