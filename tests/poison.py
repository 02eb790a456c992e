"""Losses that are not finite, when a test wants them."""

import math
from typing import Any

import pytest

from lpnet.training import loop


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """The first evaluations of these steps find that the loss is not finite."""
    left, real = list(steps), loop._evaluated

    def evaluated(*arguments: Any) -> Any:
        record, progress = real(*arguments)
        if left and record["step"] == left[0]:
            left.pop(0)
            record["loss"] = math.nan
        return record, progress

    monkeypatch.setattr(loop, "_evaluated", evaluated)
