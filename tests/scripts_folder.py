"""The scripts of the repository as modules, for their tests."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SCRIPTS = Path(__file__).parent.parent / "scripts"


@contextmanager
def script(name: str) -> Iterator[Any]:
    """A script of this name; inside, it finds those beside it."""
    sys.path.insert(0, str(SCRIPTS))
    try:
        yield importlib.import_module(name)
    finally:
        sys.path.remove(str(SCRIPTS))
