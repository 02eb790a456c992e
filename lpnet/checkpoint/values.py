"""Values of Python as JSON and back: tuples, and mappings with any keys, are marked as such."""

from collections import Counter
from typing import Any

from torch import Tensor

from lpnet.errors import InputError

_SINGLE = (bool, int, float, str, type(None))


def encoded(value: Any, of: str) -> Any:
    """A value as JSON has it; `of`: whose it is, for errors.

    Raises:
        InputError: it has something in it that is none of these.
    """
    if isinstance(value, Tensor) and not value.ndim:
        value = value.item()
    if isinstance(value, list):
        return [encoded(one, of) for one in value]
    if isinstance(value, tuple):
        return {"tuple": [encoded(one, of) for one in value]}
    if isinstance(value, dict):
        kind = "counter" if isinstance(value, Counter) else "mapping"
        return {kind: [[encoded(key, of), encoded(one, of)] for key, one in value.items()]}
    if type(value) not in _SINGLE:
        raise InputError(f"{of} that keeps a {type(value).__name__} given, numbers, texts, lists and mappings allowed")
    return value


def decoded(value: Any) -> Any:
    """The inverse of `encoded`.

    Raises:
        ValueError: it is none of its results.
    """
    if isinstance(value, list):
        return [decoded(one) for one in value]
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "tuple":
        return tuple(decoded(inside))
    if kind not in ("counter", "mapping"):
        raise ValueError(f"a {kind!r}")
    return (Counter if kind == "counter" else dict)({decoded(key): decoded(one) for key, one in inside})
