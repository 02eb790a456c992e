"""Command lines by argparse: whatever is wrong with them is one line, ``--key: VALUE given, ALLOWED allowed``.

There are no abbreviations, an option is given once, and the type of an argument is a `Form`, which says in words what
it allows. Only ``lpnet.train`` and ``lpnet.predict`` read theirs in another way (see `lpnet.commandline`).
"""

import argparse
import difflib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from lpnet.errors import InputError, shortened, shown

_GIVEN = r"argument (?P<key>[^:]+): (?P<fault>.*)"
_OWN_KEY = r"[\w.-]+: "


@dataclass(frozen=True)
class Form:
    """A type of arguments.

    Attributes:
        read: a value from its text; raises a ValueError where it is none, or an `InputError` that says why.
        allowed: which texts there are, in words.
    """

    read: Callable[[str], Any]
    allowed: str

    def __call__(self, text: str) -> Any:
        """The value, or argparse's own error, which argparse does not put in words of its own."""
        try:
            return self.read(text)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        except (ValueError, OverflowError):
            raise argparse.ArgumentTypeError(f"{_shown(text)} given, {self.allowed} allowed") from None


def whole(least: int = 0, most: float = math.inf) -> Form:
    """Whole numbers."""
    return Form(_within(int, least, most), f"a whole number of {_range(least, most)}")


def number(least: float = -math.inf, most: float = math.inf) -> Form:
    """Finite numbers, of at least and at most so much."""
    words = "" if least == -math.inf and most == math.inf else f" of {_range(least, most)}"
    return Form(_within(float, least, most), f"a finite number{words}")


def above_0(below: float = math.inf) -> Form:
    """Finite numbers above 0, and below so much."""
    words = "a finite number above 0" if below == math.inf else f"a number above 0 and below {below:g}"
    return Form(_within(float, math.nextafter(0.0, 1.0), math.nextafter(below, 0.0)), words)


def one_of(names: Sequence[str]) -> Form:
    """One of some names."""

    def read(text: str) -> str:
        if text not in names:
            raise ValueError
        return text

    return Form(read, f"one of {', '.join(names)}")


def _within(kind: Callable[[str], Any], least: float, most: float) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        value = kind(text)
        if not (least <= value <= most and math.isfinite(value)):
            raise ValueError
        return value

    return read


def _range(least: float, most: float) -> str:
    if least == -math.inf:
        return f"at most {most:g}"
    if most == math.inf:
        return f"at least {least:g}"
    return f"{least:g} to {most}" if isinstance(most, int) else f"{least:g} to {most:.15g}"


def _shown(text: str) -> str:
    """Numbers as they are given, other texts in quotation marks."""
    try:
        float(text)
    except ValueError:
        return shown(text)
    return shortened(text)


class _Once(argparse.Action):
    """Stores the value of an option, which may be given once."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        assert isinstance(parser, Parser)
        if option is not None and self.dest in parser.given:
            raise argparse.ArgumentError(self, "given twice, once allowed")
        parser.given.add(self.dest)
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """A parser whose errors are of type `InputError`.

    Attributes:
        given: names of the options (and arguments) that the command line gave a value.
        reads: it has been used; of the parsers of several commands one is.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})
        self.given: set[str] = set()
        self.reads = False
        for name in (None, "store"):
            self.register("action", name, _Once)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does."""
        self.given.clear()
        self.reads = True
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raise what argparse found wrong."""
        raise InputError(self._said(message))

    def _said(self, message: str) -> str:
        if found := re.fullmatch(_GIVEN, message, re.DOTALL):
            return self._said_of(found["key"], found["fault"])
        if unknown := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
            return self._unknown(unknown[1].split(" ")[0])
        if missing := re.fullmatch(r"the following arguments are required: (.*)", message):
            return f"{missing[1]}: nothing given, {self._allowed(missing[1])} needed"
        return message

    def _said_of(self, key: str, fault: str) -> str:
        if fault.startswith("expected"):
            return f"{key}: nothing given, {self._allowed(key)} needed"
        if value := re.fullmatch(r"ignored explicit argument (.*)", fault, re.DOTALL):
            return f"{key}: {value[1]} given, no value allowed"
        if choice := re.fullmatch(r"invalid choice: (.*) \(choose from (.*)\)", fault, re.DOTALL):
            return f"{key}: {choice[1]} given, one of {choice[2].replace(chr(39), '')} allowed"
        return fault if re.match(_OWN_KEY, fault) else f"{key}: {fault}"

    def _unknown(self, argument: str) -> str:
        key = argument.partition("=")[0]
        known = list(self._options())
        close = difflib.get_close_matches(key, known, n=1, cutoff=0.75)
        what = "option" if key.startswith("-") else "argument"
        return f"{key}: unknown {what}, " + (f"did you mean {close[0]}?" if close else f"allowed: {', '.join(known)}")

    def _options(self) -> Iterator[str]:
        """All options, with those of the command that was given."""
        found: dict[str, None] = {}
        for action in self._actions:
            found.update(dict.fromkeys(action.option_strings[-1:]))
            if isinstance(action.choices, dict):  # the commands
                for parser in (one for one in action.choices.values() if one.reads):
                    found.update(dict.fromkeys(parser._options()))
        return iter(found)

    def _allowed(self, key: str) -> str:
        """What an argument of this name allows."""
        for action in self._actions:
            names = {*action.option_strings, action.metavar, action.dest, "/".join(action.option_strings)}
            if key in names:
                own = action.type.allowed if isinstance(action.type, Form) else "a value"
                return f"one of {', '.join(action.choices)}" if action.choices else own
        return "a value"
