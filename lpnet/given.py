"""Checks of what a trunk is given, beside those that its parts make themselves."""

import math
from numbers import Integral, Real
from typing import Any

from lpnet.control import Adaptive
from lpnet.errors import InputError, counted, warn
from lpnet.hierarchy import bounds
from lpnet.options import MGRIT, SolverOptions
from lpnet.slab import Comm


def check(layers: Any, T: Any, seed: Any, init: str) -> None:
    """Raise `InputError` for numbers of a trunk that are not allowed."""
    if isinstance(layers, bool) or not isinstance(layers, Integral) or layers < 1:
        raise InputError(f"layers: {layers!r} given, a whole number of at least 1 allowed")
    if isinstance(T, bool) or not isinstance(T, Real) or not math.isfinite(T) or T <= 0:
        raise InputError(f"T: {T!r} given, a positive finite number allowed")
    if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
        raise InputError(f"seed: {seed!r} given, a whole number of at least 0 allowed")
    if init not in ("constant", "random"):
        raise InputError(f"init: {init!r} given, one of constant, random allowed")


def check_solvers(forward: Any, adjoint: Any, control: Any) -> None:
    """Raise `InputError` for what are no solvers, or no error control."""
    for key, options in (("forward", forward), ("adjoint", adjoint)):
        if not isinstance(options, SolverOptions):
            raise InputError(f"{key}: {options!r} given, an lpnet.MGRIT(), an lpnet.Serial() or None allowed")
    if control is not None and not isinstance(control, Adaptive):
        raise InputError(f"control: {control!r} given, an lpnet.Adaptive or None allowed")


def warn_idle(layers: int, comm: Comm, *solvers: SolverOptions) -> None:
    """One warning, on rank 0, where there are more ranks than intervals (or layers)."""
    least, what, of = layers, "layer", ""
    for solver in solvers:
        levels = bounds(layers, solver) if isinstance(solver, MGRIT) else []
        if len(levels) > 1 and len(levels[1]) - 1 < least:
            least, what, of = len(levels[1]) - 1, "interval", f" of {counted(levels[1][1], 'layer')}"
    if comm.rank == 0 and comm.size > least:
        idle = comm.size - least
        idling = f"{counted(idle, 'rank')} idle{'s' * (idle == 1)}"
        warn(f"{comm.size} ranks, but only {counted(least, what)}{of}: {idling} on that level")
