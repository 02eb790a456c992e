"""The errors of lpnet that a caller may want to catch.

Everything else is a plain ``ValueError`` or ``TypeError``. On the command line an `InputError` becomes
one line on rank 0 and exit code 2 on every rank.
"""


import sys
import warnings


def warn(text: str) -> None:
    """A warning that points at the line outside of lpnet and torch which has brought it about."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("lpnet", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(f"lpnet: {text}", stacklevel=level)


class InputError(ValueError):
    """What the user gave is not usable; the message says what was given and what is allowed."""


class NonFiniteError(RuntimeError):
    """A loss, state or gradient stopped being finite."""


class OutputError(RuntimeError):
    """Results cannot be written: the disk is full, a folder is read-only; all ranks have it."""


class Stopped(Exception):
    """A run was asked to stop, and has, behind a checkpoint; all ranks have it."""
