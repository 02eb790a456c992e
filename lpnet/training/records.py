"""What a run tells of itself: a record of each step, and totals over all of them."""

from typing import Any, Protocol

from lpnet import cost
from lpnet.network import Network
from lpnet.oneshot import Progress

Record = dict[str, Any]

TOTALS: Record = {
    "serial_steps": 0,
    "largest_gradient_error": 0.0,
    "largest_gradient_error_used": 0.0,
    "layer_evaluations": 0,
}


class Log(Protocol):
    """What the loop tells of itself."""

    def step(self, record: Record) -> None:
        """One step is done."""

    def warn(self, message: str) -> None:
        """Something that the user should know."""


def solves(net: Network, progress: Progress) -> Record:
    """Cycles and residuals of the last two solves, what control says of them, and their critical path."""
    info = net.trunk.info
    found: Record = {"exact": progress.exact, "checked": progress.checked, "gradient_error": progress.gradient_error}
    found["critical_path"] = critical_path(net)
    for name, one in (("forward", info.forward), ("adjoint", info.adjoint)):
        if one is not None:
            found |= {f"cycles_{name}": one.cycles, f"residuals_{name}": list(one.residuals)}
    return found


def critical_path(net: Network) -> float:
    """Evaluations of f on the critical path of the last gradient and its check, for `control.plan_ranks` (a model)."""
    trunk, ranks = net.trunk, net.built_from.control.plan_ranks
    made = trunk.info.schedules
    return sum(cost.critical_path(trunk.stepper, trunk.layers, ranks, s.forward, s.adjoint).total for s in made)


def counted(totals: Record, progress: Progress) -> Record:
    """The totals with one more step."""
    def larger(key: str, new: float | None) -> float | None:
        return None if totals[key] is None or new is None else max(totals[key], new)

    error = progress.gradient_error
    return {
        "serial_steps": totals["serial_steps"] + progress.exact,
        "largest_gradient_error": larger("largest_gradient_error", error),
        "largest_gradient_error_used": larger("largest_gradient_error_used", 0.0 if progress.checked else error),
    }


def diverged(step: int, progress: Progress) -> str:
    answer = "the exact chain" if progress.exact else "more cycles"
    return (
        f"step {step}: the solves diverge from the states of these weights (estimated gradient error "
        f"{progress.gradient_error:.2g}); answered by {answer}"
    )
