"""Standard output and standard error, which may refuse what a command says: a pipe whose reader is gone, a full disk.

Messages are lost then, and nothing else: inside `lenient` an `OSError` of these two streams (and no other error) ends
no command, and changes no exit code. Results go into files, which do say that they cannot be written; a text that is
a result is written by `tell`.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast


class Lenient:
    """A stream that takes all that it is given, whether the one behind it does or not.

    Args:
        stream: the one behind it; None: there is none, since it was closed when Python began.

    Attributes:
        refused: what the stream behind it said last, when it did not take something; None: it took all.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.refused: OSError | None = None

    def write(self, text: str) -> int:
        if self.stream is not None:
            try:
                self.stream.write(text)
            except OSError as error:
                self.refused = error
        return len(text)

    def flush(self) -> None:
        if self.stream is not None:
            try:
                self.stream.flush()
            except OSError as error:
                self.refused = error

    def isatty(self) -> bool:
        return self.stream is not None and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lenient() -> Iterator[None]:
    """Inside, what standard output and standard error do not take is lost, and no error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, Lenient(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def tell(text: str) -> None:
    """Write a text that is a result to standard output; a reader who is gone has had enough of it.

    Raises:
        OSError: it cannot be written.
    """
    stream = sys.stdout.stream if isinstance(sys.stdout, Lenient) else sys.stdout
    with suppress(BrokenPipeError):
        print(text, file=stream, flush=stream is not None)


def settle() -> None:
    """The process ends: Python then writes what its streams still hold, with a code of its own if it cannot."""
    for stream in (sys.stdout, sys.stderr):
        tried = Lenient(stream)
        tried.flush()
        if tried.refused is not None:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
