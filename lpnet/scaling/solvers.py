"""Solvers of a study as text.

    exact            the exact chain, with the number of micro-batches that is best by the cost model
    exact=4          the exact chain with 4 micro-batches
    auto             the fastest MGRIT by the cost model whose gradient error is allowed
    coarsening=16x4,levels=3,cycles=1+0    MGRIT; forward and adjoint cycles, the other options as in lpnet.MGRIT
    NAME:…           any of them, as the series NAME
"""

from dataclasses import dataclass, fields, replace
from typing import Any

from lpnet.errors import InputError, shortened, shown
from lpnet.options import MGRIT, Serial, SolverOptions

AUTO, EXACT = "auto", "exact"
_WHOLE = ("levels", "samples", "passes", "micro_batches")
_WORDS = ("relaxation", "coarse", "coarse_weights", "initial", "cycle_shape")
_KEYS = ("coarsening", "cycles", *_WHOLE, *_WORDS)


@dataclass(frozen=True)
class Pair:
    """Solvers of one step."""

    forward: SolverOptions
    adjoint: SolverOptions

    def __str__(self) -> str:
        return _text(self.forward, self.adjoint)


@dataclass(frozen=True)
class Wanted:
    """One `--solver`: the name of its series and a pair, or "auto" or "exact", which depend on the ranks."""

    series: str
    solver: Pair | str

    def __str__(self) -> str:
        return f"{self.series}:{self.solver}"


def parse(given: str) -> Wanted:
    """A solver from its text.

    Raises:
        InputError: it is none.
    """
    name, colon, text = given.rpartition(":")
    solver: Pair | str = text
    if text not in (AUTO, EXACT):
        solver = _exact(text) if text.startswith(f"{EXACT}=") else _mgrit(text)
    if colon and not name:
        raise InputError(f"solver: {shown(given)} given, a name before the colon allowed")
    return Wanted(name or text, solver)


def _exact(text: str) -> Pair:
    one = Serial(_number("micro_batches", text.partition("=")[2]))
    return Pair(one, one)


def _mgrit(text: str) -> Pair:
    options: dict[str, Any] = {}
    cycles: list[int] = [1]
    seen: set[str] = set()
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or key not in _KEYS:
            allowed = f"auto, exact, exact=Q, or KEY=VALUE,… with the keys {', '.join(_KEYS)}"
            raise InputError(f"solver: {shown(part or text)} given, {allowed} allowed")
        if key in seen:
            raise InputError(f"{key}: given twice in {shown(text)}, once allowed")
        seen.add(key)
        if key == "cycles":
            cycles = [_number(key, word) for word in value.split("+")]
            if len(cycles) > 2:
                raise InputError(f"cycles: {value} given, one number or two (forward+adjoint) allowed")
        elif key == "coarsening":
            factors = tuple(_number(key, word) for word in value.split("x"))
            options[key] = factors if len(factors) > 1 else factors[0]
            options.setdefault("levels", 1 + len(factors))
        else:
            options[key] = _number(key, value) if key in _WHOLE else value
    initial = options.get("initial", "coarse")
    if initial not in ("coarse", "nested", "constant"):  # a study repeats one solve, from which others would start
        raise InputError(f"initial: {shown(initial)} given, one of coarse, nested, constant allowed")
    return Pair(MGRIT(**options, cycles=cycles[0]), MGRIT(**options, cycles=cycles[-1]))


def _number(key: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{key}: {shortened(text)} given, a whole number allowed") from None


def _text(forward: SolverOptions, adjoint: SolverOptions) -> str:
    if isinstance(forward, Serial):
        return f"{EXACT}={forward.micro_batches}"
    assert isinstance(adjoint, MGRIT)
    m = forward.coarsening
    words = [f"coarsening={'x'.join(map(str, m)) if isinstance(m, tuple) else m}", f"levels={forward.levels}"]
    both = (forward.cycles, adjoint.cycles)
    words.append(f"cycles={both[0]}" if both[0] == both[1] else f"cycles={both[0]}+{both[1]}")
    usual = MGRIT()
    rest = [one.name for one in fields(MGRIT) if one.name in (*_WHOLE[1:], *_WORDS)]
    words += [f"{name}={getattr(forward, name)}" for name in rest if getattr(forward, name) != getattr(usual, name)]
    return ",".join(words)


def in_parts(pair: Pair, parts: int) -> Pair:
    """The same with so many micro-batches."""
    return Pair(replace(pair.forward, micro_batches=parts), replace(pair.adjoint, micro_batches=parts))
