"""Laws of the history: the file has whole lines, and what a checkpoint says of it is not believed."""

import json
import random
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lpnet import history
from lpnet.errors import InputError
from lpnet.history import History, unpacked


def lines(steps: int) -> bytes:
    return b"".join(b'{"step": %d}\n' % step for step in range(1, steps + 1))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda packed: packed[: len(packed) // 2], "the history"),
        (lambda packed: packed[:100] + bytes([packed[100] ^ 255]) + packed[101:], "the history"),
        (lambda packed: b"", "the history has 0 steps where 2000 should be"),
        (lambda packed: zlib.compress(lines(2001)), "the history has more than the 2000 steps that should be"),
        (lambda packed: zlib.compress(lines(1999)), "the history has 1999 steps where 2000 should be"),
        (lambda packed: zlib.compress(b'{"step": 1}\n{"step": 3}\n'), "has step 3 where step 2 should be"),
        (lambda packed: zlib.compress(b"[" * 10**6), "no record of step 1|ends within a line"),
        (lambda packed: zlib.compress(b"[" * 10**7), "a line of more than 1048576 bytes"),
        (lambda packed: zlib.compress(b"[" * 10**5 + b"\n"), "no record of step 1"),
    ],
)
def test_histories_are_not_believed(change: Callable[[bytes], bytes], said: str, tmp_path: Path) -> None:
    log = tmp_path / "metrics.jsonl"
    one = History(log)
    for step in range(1, 2001):
        one.add(json.dumps({"step": step, "loss": 1 / step}))
    packed, raw = one.packed(), log.read_bytes()
    one.close()
    assert len(packed) < len(raw) / 2
    History(log, unpacked(packed, 2000)).close()
    assert log.read_bytes() == raw
    with pytest.raises(InputError, match=said):
        History(log, unpacked(change(packed), 2000))
    assert log.read_bytes() == raw


def test_a_history_is_unpacked_in_the_time_that_it_is_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the unpacker is fed with, again and again, is a few times what there is."""
    fed, real, rng = [0], zlib.decompressobj, random.Random(0)

    class Counting:
        def __init__(self) -> None:
            self.real = real()

        def __getattr__(self, name: str) -> Any:
            return getattr(self.real, name)

        def decompress(self, given: bytes, most: int) -> bytes:
            fed[0] += len(given)
            return self.real.decompress(given, most)

    records = [json.dumps({"step": step, "found": [rng.random() for _ in range(100)]}) for step in range(1, 2001)]
    packed = zlib.compress("".join(f"{record}\n" for record in records).encode())
    assert len(packed) > 20 * 2**15
    monkeypatch.setattr(history.zlib, "decompressobj", Counting)
    assert list(unpacked(packed, 2000)) == records
    assert len(packed) <= fed[0] < 5 * len(packed)


def test_what_is_forged_ends_with_the_steps_that_should_be() -> None:
    found = unpacked(zlib.compress(lines(100)), 3)
    assert [next(found) for _ in range(3)] == lines(3).decode().splitlines()
    with pytest.raises(InputError, match="more than the 3 steps"):
        next(found)
