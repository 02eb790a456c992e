"""The errors of lpnet that a caller may want to catch.

Everything else is a plain ``ValueError`` or ``TypeError``. On the command line an `InputError` becomes
one line on rank 0 and exit code 2 on every rank.
"""

import sys
import warnings

LONGEST = 300
"""Characters of a value that a message shows, at most."""


def warn(text: str) -> None:
    """A warning that points at the line outside of lpnet and torch which has brought it about."""
    frame, level = sys._getframe(1), 2
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in ("lpnet", "torch"):
        frame, level = frame.f_back, level + 1
    warnings.warn(f"lpnet: {text}", stacklevel=level)


def shown(given: object) -> str:
    """A value as messages show it."""
    try:
        return shortened(repr(given))
    except ValueError:  # Python does not write out integers of more than 4300 digits
        return f"a {type(given).__name__} of thousands of digits"


def counted(number: int, what: str) -> str:
    """A number of things, as one says it: "1 layer", "2 layers"."""
    return f"{number} {what}{'s' * (number != 1)}"


def shortened(text: str) -> str:
    """The first characters of a text that is too long to be read."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def utf8(text: str) -> str:
    """A text with the name of a file in it that need not be UTF-8: what is not, as escapes."""
    return text.encode(errors="backslashreplace").decode()


class InputError(ValueError):
    """What the user gave is not usable; the message says what was given and what is allowed.

    The message is one line that a terminal only shows, whatever is in a name or a key that it repeats: line breaks,
    control characters and bytes that are no text are written as escapes.
    """

    def __init__(self, message: object = "") -> None:
        super().__init__("".join(map(_visible, str(message))))


def _visible(character: str) -> str:
    if character.isprintable() or character == " ":
        return character
    return character.encode("unicode_escape", "surrogatepass").decode("ascii")


class NonFiniteError(RuntimeError):
    """A loss, state or gradient stopped being finite."""


class OutputError(RuntimeError):
    """Results cannot be written: the disk is full, a folder is read-only; all ranks have it."""


class Stopped(Exception):
    """A run was asked to stop, and has, behind a checkpoint; all ranks have it."""
