"""Whether a rank makes progress, and where it is.

Every phase that begins or ends is a beat (see `lpnet.phases`): a rank that computes has them all the time, one that
waits for a message has none. A beat is a number that is counted up, so that it costs next to nothing; whoever wants to
know how old the last one is looks at that number from time to time.
"""

import sys
import threading
import traceback
from pathlib import Path
from types import FrameType

from lpnet.orphan import THREADS

CALLS = 24
"""How many calls of a stack are shown."""

_PACKAGE = str(Path(__file__).parent.parent)


class Beat:
    """Observes one rank.

    Attributes:
        count: beats up to now.
        step: of the training that is being done, 0 before the first.
    """

    wants_numbers = False

    def __init__(self) -> None:
        self.count = self.step = 0
        self._open: list[tuple[str, int | None]] = []

    def phase(self, name: str, level: int | None = None) -> "Beat":
        self._open.append((name, level))
        self.count += 1
        return self

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._open.pop()
        self.count += 1

    def sent(self, to: int, size: int) -> None:
        self.count += 1

    def received(self, source: int) -> None:
        self.count += 1

    def counted(self, name: str, value: float) -> None:
        if name == "step":
            self.step = int(value)
        self.count += 1

    def doing(self) -> str:
        """The step, and the phases that are open, from the outer to the inner ones."""
        names = [name if level is None else f"{name} (level {level})" for name, level in list(self._open)]
        step = f"step {self.step}" if self.step else "before the first step"
        return f"{step}, {' > '.join(names)}" if names else step


def stacks() -> str:
    """What the main thread is executing, and other threads that execute code of lpnet, such as those of autograd."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    main = threading.main_thread().ident
    found = []
    for ident, frame in sorted(sys._current_frames().items(), key=lambda one: one[0] != main):
        name = names.get(ident, "")
        if ident == main or (not name.startswith(THREADS) and _in_package(frame)):
            head = "" if ident == main else f"  thread {name}:\n"
            found.append(head + "".join(_innermost(frame)))
    return "".join(found)


def _innermost(frame: FrameType) -> list[str]:
    """Lines on the innermost calls, from the outer to the inner ones, without those of the import system."""
    calls = [one for one in traceback.extract_stack(frame) if not one.filename.startswith("<frozen")]
    return traceback.format_list(calls[-CALLS:])


def _in_package(frame: FrameType) -> bool:
    return any(one.f_code.co_filename.startswith(_PACKAGE) for one, _ in traceback.walk_stack(frame))
