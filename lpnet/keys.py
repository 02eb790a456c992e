"""Keys of the configuration, and errors of jsonargparse about them as one line in the form of all others."""

import argparse
import dataclasses
import difflib
import re
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from jsonargparse import ArgumentError

from lpnet.config import Config
from lpnet.errors import InputError, shortened, shown
from lpnet.fabrics import FABRICS
from lpnet.presets import PRESETS

Parsed = TypeVar("Parsed")

DEFAULT_PRESET = "peaks"
FLAGS = {
    "config": "a YAML file",
    "resume": "the folder of a run",
    "ranks": "a whole number",
    "fabric": f"one of {', '.join(FABRICS)}",
}
"""What the options allow that are no keys."""


def leaves(kind: Any = Config, prefix: str = "") -> dict[str, Any]:
    """All keys of the sections, "trunk.layers" and so on, with their types."""
    found: dict[str, Any] = {}
    for key, hint in get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            found |= leaves(hint, f"{prefix}{key}.")
        elif prefix:
            found[prefix + key] = hint
    return found


def sections() -> set[str]:
    """Names of all sections."""
    return {key.rpartition(".")[0] for key in leaves()} | {"solver"}


def one_line(parse: Callable[[], Parsed]) -> Parsed:
    """Call jsonargparse, and turn its errors into one line in the form of all others."""
    try:
        return parse()
    except (ArgumentError, argparse.ArgumentError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise InputError(_said(str(error))) from None
    except RecursionError:
        raise InputError("arguments: values without end given, plain ones allowed") from None


def _said(message: str) -> str:
    """What an error of jsonargparse says, as key, value given, values allowed."""
    wrong = re.search(r'Parser key "([^"]+)":', message)
    if wrong and wrong[1] in leaves():
        given = re.search(r"Got value: (.*)|Given value: (.*)", message)
        value = shortened(str(given[1] or given[2])) if given else "an unusable value"
        return f"{wrong[1]}: {value} given, {_words(leaves()[wrong[1]])} allowed"
    if wrong and wrong[1] == "preset":
        return f"preset: no name given, one of {', '.join(PRESETS)} allowed"
    if wrong and wrong[1] in sections():
        return f"{wrong[1]}: no mapping of its keys given, --{wrong[1]}.KEY VALUE allowed"
    if words := re.search(r"unrecognized arguments: (.*)", message, re.DOTALL):
        return unknown_key(next((word for word in words[1].split(" ") if word), "''"))
    for pattern in (r"Option '(.*)' is not accepted", r'Parser key "(.*)":\s'):
        if unknown := re.search(pattern, message):
            return unknown_key(unknown[1])
    if unknown := re.search(r"Group '(.*)' does not accept option '(.*)'", message):
        return unknown_key(f"{unknown[1]}.{unknown[2]}")
    if missing := re.search(r"argument (?:-\w/)?--(\S+): expected one argument", message):
        hint, flag = leaves().get(missing[1]), f"--{missing[1]}" if missing[1] in FLAGS else missing[1]
        return f"{flag}: nothing given, {_words(hint) if hint else FLAGS.get(missing[1], 'a value')} needed"
    if flag := re.search(r"argument (?:-\w/)?(--\S+): ignored explicit argument (.*)", message):
        return f"{flag[1]}: {shortened(flag[2])} given, no value allowed"
    words_of_its_own = shortened(" ".join(message.split()))
    return f"arguments: some given that cannot be used ({words_of_its_own}), keys of the configuration allowed"


def require_known(values: Mapping[Any, Any], prefix: str = "") -> None:
    """Require that all keys of nested mappings are keys of the configuration.

    Raises:
        InputError: one is not.
    """
    for key, value in values.items():
        if not isinstance(key, str):
            raise InputError(f"{prefix}{shown(key)}: no text given as a key, texts allowed")
        name = prefix + key
        if name in sections() and isinstance(value, Mapping):
            require_known(value, f"{name}.")
        elif name not in sections() and name not in leaves() and name != "preset":
            raise InputError(unknown_key(name))


def unknown_key(argument: str) -> str:
    """What is said of an argument or key that there is not, with a hint where one is near."""
    key = argument.lstrip("-").partition("=")[0]
    if not key:
        return f"{argument}: unknown, options --section.key allowed"
    if key == "preset":
        return f"{argument}: unknown key; a preset without it allowed, as in lpnet.train {DEFAULT_PRESET}"
    if not argument.startswith("-") and key not in leaves() and "." not in key and key not in sections():
        known = f"one preset and options --section.key allowed (sections: {', '.join(sorted(sections()))})"
        return f"{argument}: unknown, {known}"
    close = difflib.get_close_matches(key, leaves(), n=1, cutoff=0.75)
    section = key.rpartition(".")[0]
    own = [leaf for leaf in leaves() if leaf.rpartition(".")[0] == section] or sorted(sections())
    return f"{key}: unknown key, " + (f"did you mean {close[0]}?" if close else f"allowed: {', '.join(own)}")


def _words(hint: Any) -> str:
    """A type in words."""
    if get_origin(hint) is Literal:
        return "one of " + ", ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_words(part) for part in get_args(hint))
    if get_origin(hint) is tuple:
        return "a list of numbers" if get_args(hint)[-1] is Ellipsis else f"a list of {len(get_args(hint))} numbers"
    plain = {int: "a whole number", float: "a finite number", bool: "true or false", str: "a text", type(None): "null"}
    return plain.get(hint, str(hint))
