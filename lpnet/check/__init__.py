"""`lpnet.check`: does a module work as the dynamics of a layer, and what is to be expected of it?

    report = lpnet.check(MyLayer(), lpnet.steppers.RK4(), features=8)
    print(report)
"""

import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

from lpnet.check import layer, steps
from lpnet.check.order import order
from lpnet.check.report import CheckReport, Finding
from lpnet.check.subject import Subject
from lpnet.errors import InputError
from lpnet.stack import require_terms
from lpnet.steppers import REGISTRY, Stepper

__all__ = ["CheckReport", "Finding", "check"]


def check(
    dynamics: Any,
    stepper: Stepper | None = None,
    features: int | tuple[int, ...] | None = None,
    h: float | None = None,
    batch: int = 4,
    seed: int = 0,
) -> CheckReport:
    """Examine one layer, by itself and with a stepper, and say in words what was found; nothing is raised for it.

    Looked at are: shapes and types; that evaluations repeat themselves, leave input and buffers alone and treat
    examples apart; the gradient by finite differences and the adjoint by a dot product; the eigenvalues of the Jacobian
    and the steps that are stable on them; reversal; the gradient of a short trunk; the orders of fine and coarse steps.

    Args:
        dynamics: a module of one layer, built in or your own; a copy is examined, in float64.
        stepper: how it is to be stepped; None: the first of `lpnet.steppers` that fits.
        features: shape of one example; None: its ``width``, or the inputs of its first linear layer.
        h: the step T/N that is planned; None: one that is small against the dynamics.
        batch: number of examples to try it on.
        seed: of the states and directions.

    Returns:
        A report, whose ``str`` is a page to read, with `ok` and the outcome of each test.

    Raises:
        InputError: no module, or an argument that is not allowed.
    """
    _check_arguments(stepper, h, batch, seed)
    subject = Subject(dynamics, features, batch, seed)
    chosen = stepper or next((one() for one in REGISTRY.values() if set(one.terms) == set(subject.terms)), None)
    found = [layer.shape(subject)]
    if found[0].status != "failed":
        found += _guarded("purity", lambda: layer.purity(subject))
    if not {f.name for f in found if f.status == "failed"} & {"shape", "deterministic", "input"}:
        found += _guarded("examples", lambda: [layer.examples(subject)])
        found += _guarded("derivatives", lambda: layer.derivatives(subject))
        found += _guarded("stepper", lambda: _steps(subject, chosen, h))
    return CheckReport(subject.name, type(chosen).__name__ if chosen else "none", tuple(found))


def _guarded(name: str, test: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """The findings of a test, or what the user's code raised in it."""
    try:
        return list(test())
    except InputError as error:
        return [Finding(name, "failed", str(error))]
    except Exception as error:  # of the layer: that is what was found
        return [Finding(name, "failed", f"raises {type(error).__name__}: {error}")]


def _steps(subject: Subject, stepper: Stepper | None, h: float | None) -> list[Finding]:
    """What is found with a stepper."""
    if stepper is None:
        needed = " and ".join(f"{term}()" for term in subject.terms)
        text = f"no stepper of lpnet takes {needed}; give forward(), or kick() and drift()"
        return [Finding("stepper", "failed", text)]
    require_terms(subject.module, stepper)
    small = h if h is not None else steps.small(subject)
    found = [order(stepper), *steps.spectrum(subject, stepper, h), steps.reversal(subject, stepper, small)]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "lpnet")  # of unstable trunks, which the report speaks of
        return [*found, steps.trunk(subject, stepper, small), steps.coarse(subject, stepper, small)]


def _check_arguments(stepper: Any, h: Any, batch: Any, seed: Any) -> None:
    if stepper is not None and not isinstance(stepper, Stepper):
        raise InputError(f"stepper: {stepper!r} given, one of lpnet.steppers or None allowed")
    if h is not None and not (isinstance(h, int | float) and math.isfinite(h) and h > 0):
        raise InputError(f"h: {h!r} given, a finite number above 0 allowed")
    for key, value, least in (("batch", batch, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{key}: {value!r} given, a whole number of at least {least} allowed")
