"""What a rank is doing, for whoever observes it: phases of solves and steps, messages, residuals.

Algorithms say where a phase begins and ends, and nothing else; observers hang on the communicator of a rank, which
all that this rank works with has at hand. Without one a phase costs one look at an attribute.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Observer(Protocol):
    """Who is told what one rank does.

    Attributes:
        wants_numbers: whether it wants numbers; what they cost is spent only then.
    """

    wants_numbers: bool

    def phase(self, name: str, level: int | None = None) -> AbstractContextManager[None]:
        """Lasts as long as the phase; phases are nested."""

    def sent(self, to: int, size: int) -> None:
        """A message of so many bytes is being sent."""

    def received(self, source: int) -> None:
        """The next message of this rank is there; they come in the order in which they were sent."""

    def counted(self, name: str, value: float) -> None:
        """A number that changes with time."""


class Observers:
    """Several that observe the same rank."""

    def __init__(self, *members: Observer) -> None:
        self.members = members
        self.wants_numbers = any(member.wants_numbers for member in members)

    def phase(self, name: str, level: int | None = None) -> AbstractContextManager[None]:
        return _Each([member.phase(name, level) for member in self.members])

    def sent(self, to: int, size: int) -> None:
        for member in self.members:
            member.sent(to, size)

    def received(self, source: int) -> None:
        for member in self.members:
            member.received(source)

    def counted(self, name: str, value: float) -> None:
        for member in self.members:
            member.counted(name, value)


class _Each:
    """A phase of each of some observers."""

    __slots__ = ("parts",)

    def __init__(self, parts: list[AbstractContextManager[None]]) -> None:
        self.parts = parts

    def __enter__(self) -> None:
        for part in self.parts:
            part.__enter__()

    def __exit__(self, *error: Any) -> None:
        for part in self.parts[::-1]:
            part.__exit__(*error)


def observers(comm: Any) -> tuple[Observer, ...]:
    """Those of the rank that this communicator belongs to."""
    observer: Observer | None = getattr(comm, "observer", None)
    if observer is None:
        return ()
    return observer.members if isinstance(observer, Observers) else (observer,)


def observe(comm: Any, observer: Observer) -> None:
    """One more observer."""
    _set(comm, (*observers(comm), observer))


def leave(comm: Any, observer: Observer | None) -> None:
    """One observer less, if it is there."""
    _set(comm, tuple(one for one in observers(comm) if one is not observer))


def _set(comm: Any, members: tuple[Observer, ...]) -> None:
    comm.observer = Observers(*members) if len(members) > 1 else next(iter(members), None)


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
    """A number that changes with time, and is asked for if there is an observer that wants numbers."""
    observer: Observer | None = getattr(comm, "observer", None)
    if observer is not None and observer.wants_numbers:
        observer.counted(name, value())


def note(comm: Any, name: str, value: float) -> None:
    """A number that changes with time, and costs nothing: all observers are told."""
    observer: Observer | None = getattr(comm, "observer", None)
    if observer is not None:
        observer.counted(name, float(value))


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
