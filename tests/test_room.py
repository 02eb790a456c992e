"""Memory: what the machine and its control groups allow, and what is refused because of it."""

from pathlib import Path

import pytest
from test_cores import groups

from lpnet import room
from lpnet.commandline import parse
from lpnet.errors import InputError
from lpnet.network import Examples, require_room
from lpnet.slab import Comm


@pytest.mark.parametrize(
    ("line", "files", "expected"),
    [
        ("0::/a", {"a/memory.max": "1048576"}, 2**20),
        ("0::/a/b", {"a/b/memory.max": "max", "a/memory.max": "2097152"}, 2**21),  # of a group above
        ("5:memory:/x", {"memory/x/memory.limit_in_bytes": "1048576"}, 2**20),
        ("5:cpu:/x", {"memory/x/memory.limit_in_bytes": "1048576"}, None),
        ("0::/", {}, None),
    ],
)
def test_the_least_limit_counts(tmp_path: Path, line: str, files: dict[str, str], expected: int | None) -> None:
    mount, own = groups(tmp_path, line, files)
    machine = room.most("cpu", tmp_path, tmp_path / "nothing")
    assert machine > 2**21
    assert room.most("cpu", mount, own) == (machine if expected is None else expected)


def test_what_does_not_fit_is_refused_and_what_does_is_not() -> None:
    room.require("trunk.width", 3, room.most(), "weights")
    with pytest.raises(InputError, match=r"^trunk\.width: 3 given, weights of at least .* GiB .* allowed$"):
        room.require("trunk.width", 3, 2 * room.most(), "weights")


def test_a_classifier_counts_with_its_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse(["--trunk.layers=2", "--trunk.width=3"])
    for there in (0, 1):
        monkeypatch.setattr(room, "most", lambda *_, there=there: 24.0 * 3 * 1000 - 1 + there)
        if there:
            require_room(config, Examples(2, 1000), Comm())
        else:
            with pytest.raises(InputError, match=r"^trunk\.width, data\.classes: 3 and 1000 given, a classifier of"):
                require_room(config, Examples(2, 1000), Comm())
