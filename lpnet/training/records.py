"""What a run tells of itself: a record of each step, and totals over all of them."""

from typing import Any, Protocol

from lpnet import cost
from lpnet.network import Network
from lpnet.oneshot import Progress
from lpnet.options import Serial, SolverOptions

Record = dict[str, Any]

TOTALS: Record = {
    "serial_steps": 0,
    "diverged_steps": 0,
    "rollbacks": 0,
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
    found |= {"diverged": progress.diverged, "critical_path": critical_path(net)}
    for name, one in (("forward", info.forward), ("adjoint", info.adjoint)):
        if one is not None:
            found |= {f"cycles_{name}": one.cycles, f"residuals_{name}": list(one.residuals)}
    return found


def critical_path(net: Network) -> float:
    """Evaluations of f on the critical path of the last gradient and its check, for `control.plan_ranks` (a model)."""
    trunk, ranks = net.trunk, net.built_from.control.plan_ranks

    def work(forward: SolverOptions, adjoint: SolverOptions) -> cost.Work:
        return cost.critical_path(trunk.stepper, trunk.layers, ranks, forward, adjoint)

    info, exact = trunk.info, work(Serial(), Serial())
    each = [work(s.forward, s.adjoint) for s in info.schedules]
    total = sum(one.total for one in each)
    ahead, back = (one.diverged for one in info.gradient) if info.gradient is not None else (False, False)
    if ahead:  # in place of the last solves, whose adjoint was not begun
        return total + exact.total - each[-1].adjoint - each[-1].gradient
    return total + back * (exact.adjoint + exact.gradient)


def counted(totals: Record, progress: Progress) -> Record:
    """The totals with one more step."""
    def larger(key: str, new: float | None) -> float | None:
        return None if totals[key] is None or new is None else max(totals[key], new)

    error = progress.gradient_error
    return {
        "serial_steps": totals["serial_steps"] + progress.exact,
        "diverged_steps": totals["diverged_steps"] + progress.diverged,
        "largest_gradient_error": larger("largest_gradient_error", error),
        "largest_gradient_error_used": larger("largest_gradient_error_used", 0.0 if progress.checked else error),
    }


def is_told(steps: int) -> bool:
    """Whether the last of so many steps that diverged is worth a line: the first, second, fourth, eighth, …"""
    return steps & (steps - 1) == 0


def diverged(step: int, progress: Progress, steps: int) -> str:
    """A line on a step whose solves diverged, as those of so many steps have by now."""
    error = progress.gradient_error
    so_far = f" ({steps} steps of the run by now)" if steps > 1 else ""
    if error is None or error <= 1:
        return f"step {step}: the cycles of a solve lead nowhere; the exact chain was done in their place{so_far}"
    answer = "the exact chain" if progress.exact else "more cycles"
    return (
        f"step {step}: the solves diverge from the states of these weights (estimated gradient error "
        f"{error:.2g}); answered by {answer}{so_far}"
    )
