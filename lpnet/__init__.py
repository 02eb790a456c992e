"""lpnet: very deep residual networks, seen as discretised ODEs, trained in parallel over their layers.

Importing lpnet initialises no MPI; the first `LayerParallel` under an MPI launcher does.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from lpnet import checkpoint, dynamics, launch, multilevel, optim, regularizers, steppers, trace, uncaught
from lpnet.check import CheckReport, check
from lpnet.control import Adaptive
from lpnet.controls import Controls
from lpnet.errors import InputError, NonFiniteError
from lpnet.module import LayerParallel
from lpnet.oneshot import OneShot
from lpnet.options import MGRIT, Serial
from lpnet.plan import Plan, plan
from lpnet.recall import WarmStates
from lpnet.residuals import Info
from lpnet.sharded import clip_grad_norm_, exact, grad_norm, synchronize
from lpnet.version import __version__

uncaught.install(launch.BAD_INPUT, launch.FAILED)

if TYPE_CHECKING:
    from lpnet.network import Network


def load(path: str | Path, comm: Any = None, device: str = "cpu") -> "Network":
    """The trained network of a ``model.h5``, on any number of ranks; collective.

    Args:
        path: the file, as `lpnet.train` writes it.
        comm: an mpi4py communicator, a `slab.Comm`, or None: the world under an MPI launcher, else serial.
        device: where its tensors are to be.

    Returns:
        A module (batch, features) -> (batch, classes) with `normalized(raw)` and `as_sequential()`.

    Raises:
        InputError: the file cannot be read, is damaged, or was written by something else.
    """
    from lpnet import modelfile  # brings h5py and the whole command line, which the engine does not need

    return modelfile.load(path, comm, device)


__all__ = [
    "MGRIT",
    "Adaptive",
    "CheckReport",
    "Controls",
    "Info",
    "InputError",
    "LayerParallel",
    "NonFiniteError",
    "OneShot",
    "Plan",
    "Serial",
    "WarmStates",
    "__version__",
    "check",
    "checkpoint",
    "clip_grad_norm_",
    "dynamics",
    "exact",
    "grad_norm",
    "load",
    "multilevel",
    "optim",
    "plan",
    "regularizers",
    "steppers",
    "synchronize",
    "trace",
]
