"""The errors of lpnet that a caller may want to catch.

Everything else is a plain ``ValueError`` or ``TypeError``. On the command line an `InputError` becomes
one line on rank 0 and exit code 2 on every rank.
"""


class InputError(ValueError):
    """What the user gave is not usable; the message says what was given and what is allowed."""


class NonFiniteError(RuntimeError):
    """A loss, state or gradient stopped being finite."""
