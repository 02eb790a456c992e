"""lpnet: very deep residual networks, seen as discretised ODEs, trained in parallel over their layers.

Importing lpnet initialises no MPI; the first `LayerParallel` under an MPI launcher does.
"""

from lpnet import dynamics, regularizers, steppers
from lpnet.errors import InputError, NonFiniteError
from lpnet.mgrit import Info
from lpnet.module import LayerParallel
from lpnet.options import MGRIT, Serial
from lpnet.sharded import clip_grad_norm_, exact, grad_norm, synchronize
from lpnet.version import __version__

__all__ = [
    "MGRIT",
    "Info",
    "InputError",
    "LayerParallel",
    "NonFiniteError",
    "Serial",
    "__version__",
    "clip_grad_norm_",
    "dynamics",
    "exact",
    "grad_norm",
    "regularizers",
    "steppers",
    "synchronize",
]
