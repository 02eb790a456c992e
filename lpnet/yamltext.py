"""YAML of a user: a text that is read is short, flat and means what it seems to mean.

A key that is given twice, of which YAML would drop one, is refused, and so is what would not come to an end: a file
without end, nesting without end, references that stand for more and more text.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from yaml.events import CollectionEndEvent, CollectionStartEvent
from yaml.nodes import CollectionNode, MappingNode, Node

from lpnet.errors import InputError, shown

_NO_VALUE = (ValueError, TypeError, LookupError, AttributeError, OverflowError)
"""What PyYAML raises for ``!!int ''``, ``!!timestamp x``, ``2001-13-45``, numbers of 5000 digits, and the like."""

LONGEST = 65_536
"""Bytes of a file,"""
DEEPEST = 20
"""collections within collections,"""
LARGEST = 10_000
"""and nodes, each reference counted as what it stands for; a whole configuration has 3000 bytes, 4 and 150."""


class ValueWithoutSense(yaml.YAMLError):
    """YAML with a value that is not what its tag says."""


def read(path: str, key: str) -> tuple[str, Mapping[Any, Any]]:
    """The text of a file that holds a mapping, and this mapping.

    Args:
        path: its name.
        key: the option that names it.

    Raises:
        InputError: it cannot be read, or is no such text.
    """
    try:
        with Path(os.path.expanduser(path)).open("rb") as file:
            text = file.read(LONGEST + 1).decode("utf-8")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        raise InputError(f"{key}: {shown(path)} given ({reason}), a readable YAML file allowed") from None
    if len(text.encode()) > LONGEST:
        raise InputError(f"{key}: {shown(path)} given, which is longer than the {LONGEST} bytes that are allowed")
    try:
        content = require_plain(text)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except yaml.YAMLError as error:
        why = " ".join(str(error).split())
        raise InputError(f"{key}: {shown(path)} given, which is not YAML ({why}); a YAML file allowed") from None
    if not isinstance(content, Mapping):
        given = f"{shown(path)} given, no mapping"
        raise InputError(f"{key}: {given}; lines like 'trunk:', '  layers: 64' allowed")
    return text, content


def require_plain(text: str) -> Any:
    """What a text says; refused are those without end in depth or size, and keys that are given twice.

    Raises:
        InputError: it is.
        yaml.YAMLError: it is not YAML.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if depth > DEEPEST:
            raise InputError(f"YAML: more than {DEEPEST} collections within each other given, fewer allowed")
    size = _size(yaml.compose(text, Loader=yaml.SafeLoader), {})
    if size > LARGEST:
        raise InputError(f"YAML: {size} values given, at most {LARGEST} allowed (each reference is what it stands for)")
    try:
        return yaml.safe_load(text)
    except _NO_VALUE as error:
        raise ValueWithoutSense(f"a value that is not what its tag says ({type(error).__name__}: {error})") from None


def _size(node: Node | None, known: dict[int, int]) -> int:
    """Nodes that there are if all references are written out."""
    if not isinstance(node, CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = LARGEST + 1  # where it is met within itself
        parts = node.value
        if isinstance(node, MappingNode):
            _require_once([one.value for one, _ in parts if isinstance(one.value, str)])
            parts = [part for pair in parts for part in pair]
        known[id(node)] = 1 + sum(_size(part, known) for part in parts)
    return known[id(node)]


def _require_once(keys: list[str]) -> None:
    twice = next((key for i, key in enumerate(keys) if key in keys[:i]), None)
    if twice is not None:
        raise InputError(f"{twice}: given twice in one mapping, once allowed")
