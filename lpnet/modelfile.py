"""``model.h5``: a trained network in HDF5, readable on any number of ranks and without MPI. Nothing is pickled.

/                  attributes: format, schema, lpnet (version), config (JSON), features, classes, layers
/trunk/NAME        weights of all layers, (N, ...): the first axis is the layer; or control points, (C, ...)
/opening/NAME      weights of the opening layer (no such group without weights)
/classifier/NAME   weights of the classifier
/examples/shift    what is subtracted from raw features, (features,) or (1,)
/examples/scale    what they are then divided by

All data sets have check sums (Fletcher's, of HDF5), and so has all else in the file: damage is found by reading it.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lpnet import devices, folders
from lpnet.checkpoint.target import written_hdf5
from lpnet.commandline import from_mapping
from lpnet.config import Config, as_dict
from lpnet.errors import InputError
from lpnet.launch import together, written
from lpnet.network import Examples, Network, build
from lpnet.slab import Comm, as_comm
from lpnet.version import __version__

FORMAT, SCHEMA = "lpnet-model", 1

_PARTS = ("opening", "trunk", "classifier")


@dataclass(frozen=True)
class Stored:
    """What is in a model file: the configuration, what the examples were like, and weights "part.name" -> tensor."""

    config: Config
    examples: Examples
    weights: dict[str, Tensor]


def save(path: str | Path, net: Network) -> None:
    """Write the network on rank 0, all at once or not at all; collective.

    Args:
        path: the file, replaced if it exists.
        net: weights, configuration and what its examples are like.

    Raises:
        OutputError: the disk refuses; on all ranks.
    """
    layers, path = net.trunk.gather_state_dict(), Path(path)
    with written(net.trunk.comm, path):
        if net.trunk.comm.rank == 0:
            with folders.replaced(path) as part, written_hdf5(part) as file:
                _write(file, net, layers)


def _write(file: h5py.File, net: Network, layers: dict[str, Tensor]) -> None:
    # Texts are of fixed length: those of any length are in a heap of HDF5, which has no check sum.
    file.attrs.update(
        {
            "format": np.bytes_(FORMAT),
            "schema": SCHEMA,
            "lpnet": np.bytes_(__version__),
            "config": np.bytes_(json.dumps(as_dict(net.config), allow_nan=False)),
            "features": net.examples.features,
            "classes": net.examples.classes,
            "layers": net.trunk.layers,
        }
    )
    axis = net.trunk.grid.axis
    own = {"opening": net.opening.state_dict(), "trunk": layers, "classifier": net.classifier.state_dict()}
    for part, weights in own.items():
        for name, value in weights.items():
            _put(file, f"{part}/{name}", value.cpu().numpy())
            if part == "trunk":
                file[f"{part}/{name}"].dims[0].label = axis
    many = net.trunk.layers if net.trunk.controls is None else net.trunk.controls.points
    file["trunk"].attrs["axes"] = f"the first axis of each data set is the {axis}, 0 to {many - 1}"
    _put(file, "examples/shift", net.examples.shift)
    _put(file, "examples/scale", net.examples.scale)


def _put(file: h5py.File, name: str, value: NDArray[Any]) -> None:
    """A data set with check sums, which HDF5 has for its chunks."""
    file.create_dataset(name, data=value, fletcher32=True)


def load(path: str | Path, comm: Any = None, device: str = "cpu") -> Network:
    """The network of a model file, on any number of ranks; collective.

    Args:
        path: ``model.h5`` of a run.
        comm: an mpi4py communicator, or None: the world under an MPI launcher, else serial.
        device: where to put it; "cuda" is a GPU for each rank of a node, "auto" a GPU if there is one.

    Returns:
        The network: normalised features (n, features) to logits (n, classes); `Network.normalized` takes raw ones.
        It propagates with the solvers that it was trained with; within ``lpnet.exact(net)`` exactly.

    Raises:
        InputError: the file is missing, damaged, or none of lpnet's.
    """
    ranks = as_comm(comm)
    with together(ranks):
        own = str(devices.own(device, ranks))
        stored = read(path, own)
    return restore(stored, ranks, own)


def restore(stored: Stored, comm: Comm, device: str = "cpu") -> Network:
    """The network of what was read; collective."""
    net = build(stored.config, stored.examples, comm, device)
    net.load_state_dict(stored.weights)
    return net


def read(path: str | Path, device: str = "cpu") -> Stored:
    """What is in a model file, checked; local to this rank.

    Raises:
        InputError: the file is missing, damaged, or none of lpnet's.
    """
    path = Path(os.path.expanduser(path))
    try:
        if path.exists() and not path.is_file():
            raise InputError("no regular file")  # nobody may ever write into a pipe
        with h5py.File(path, "r") as file:
            stored = _read(file, device)
            _check(stored)
            return stored
    except FileNotFoundError:
        raise _unusable(path, "it does not exist") from None
    except InputError as error:
        raise _unusable(path, str(error)) from None
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError, MemoryError) as error:
        # What h5py, json and numpy raise on damaged or foreign files.
        raise _unusable(path, " ".join(str(error).split())) from error


def _unusable(path: Path, why: str) -> InputError:
    return InputError(f"model: {str(path)!r} given ({why}), a model.h5 that lpnet.train wrote allowed")


def _read(file: h5py.File, device: str) -> Stored:
    if file.attrs.get("format") not in (FORMAT, FORMAT.encode()):  # str in early files
        raise InputError("not a model of lpnet")
    if int(file.attrs["schema"]) > SCHEMA:
        raise InputError(f"written by a newer lpnet than {__version__}")
    values = json.loads(file.attrs["config"])
    values["run"]["device"] = "cpu" if device == "cpu" else device.partition(":")[0]  # not that of the training run
    shift, scale = (np.asarray(file[f"examples/{key}"][()], dtype=np.float64) for key in ("shift", "scale"))
    examples = Examples(int(file.attrs["features"]), int(file.attrs["classes"]), shift, scale)
    weights = {}
    for part in _PARTS:
        for name in file.get(part, {}):
            weights[f"{part}.{name}"] = torch.from_numpy(np.asarray(file[part][name][()]))
    return Stored(from_mapping(values), examples, weights)


def _check(stored: Stored) -> None:
    """Require what a network of this configuration has: names, shapes and types of weights, finite values."""
    if min(stored.examples.features, stored.examples.classes) < 1:
        raise InputError("features and classes are not whole numbers of at least 1")
    shift, scale = stored.examples.shift, stored.examples.scale
    fitting = all(a.shape in ((1,), (stored.examples.features,)) and np.isfinite(a).all() for a in (shift, scale))
    if not fitting or not scale.all():
        raise InputError("examples/shift and examples/scale are not those of its features")
    net = build(stored.config, stored.examples, Comm())
    wanted = net.state_dict()
    if set(wanted) != set(stored.weights):
        raise InputError(f"weights {', '.join(sorted(set(wanted) ^ set(stored.weights)))} missing or unknown")
    for name, value in stored.weights.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            shape, dtype = tuple(wanted[name].shape), wanted[name].dtype
            raise InputError(f"{name} is {value.dtype} {tuple(value.shape)}, {dtype} {shape} needed")
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{name} has values that are not finite")
