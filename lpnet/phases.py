"""What a rank is doing, for whoever observes it: phases of solves and steps, messages, residuals.

Algorithms say where a phase begins and ends, and nothing else; an observer hangs on the communicator of a rank, which
all that this rank works with has at hand. Without one a phase costs one look at an attribute.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Observer(Protocol):
    """Who is told what one rank does."""

    def phase(self, name: str, level: int | None = None) -> AbstractContextManager[None]:
        """Lasts as long as the phase; phases are nested."""

    def sent(self, to: int, size: int) -> None:
        """A message of so many bytes is being sent."""

    def received(self, source: int) -> None:
        """The next message of this rank is there; they come in the order in which they were sent."""

    def counted(self, name: str, value: float) -> None:
        """A number that changes with time."""


class _Unobserved:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


_UNOBSERVED = _Unobserved()


def phase(comm: Any, name: str | None, level: int | None = None) -> AbstractContextManager[None]:
    """A phase of the rank that this communicator belongs to; None: nothing to tell."""
    observer: Observer | None = getattr(comm, "observer", None)
    return _UNOBSERVED if observer is None or name is None else observer.phase(name, level)


def tell(comm: Any, name: str, value: Callable[[], float]) -> None:
    """A number that changes with time, and is asked for if there is an observer."""
    observer: Observer | None = getattr(comm, "observer", None)
    if observer is not None:
        observer.counted(name, value())


def phased(
    name: str, level: bool = False
) -> Callable[[Callable[Concatenate[Any, P], R]], Callable[Concatenate[Any, P], R]]:
    """Each call of a method of something that has a `comm` is a phase; `level`: its first argument is that."""

    def decorate(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
        @wraps(method)
        def observed(self: Any, *given: P.args, **named: P.kwargs) -> R:
            observer = getattr(self.comm, "observer", None)
            if observer is None:
                return method(self, *given, **named)
            with observer.phase(name, given[0] if level else None):
                return method(self, *given, **named)

        return observed

    return decorate
