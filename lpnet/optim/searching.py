"""What optimizers with a line search share: one list of parameters, evaluations of the loss, and moves along a line."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lpnet.optim import vector
from lpnet.optim.linesearch import Armijo, Result, Wolfe, is_number, require
from lpnet.optim.vector import Vector

Objective = Callable[[], Tensor | float]
Search = Armijo | Wolfe


class Searching(torch.optim.Optimizer):
    """An optimizer of one list of parameters, replicated and sharded ones together; `step` is collective.

    Args:
        parameters: one list, no groups.
        search: line search; None: no search, the step first tried is taken.
        lr: multiplies the step length that is tried first, so that the schedules of torch work.
        more: what else the group holds.

    Raises:
        InputError: a value is not allowed.
    """

    def __init__(self, parameters: Iterable[Tensor], search: Search | None, lr: float, **more: Any) -> None:
        require(is_number(lr) and 0 < lr < math.inf, "lr", lr, "a positive number")
        right = search is None or hasattr(search, "search")
        require(right, "search", search, "Armijo(...), Wolfe(...) or None")
        self.search = search
        super().__init__(parameters, {"lr": lr, **more})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """The one group of the constructor.

        Raises:
            InputError: there is one already.
        """
        require(not self.param_groups, "parameters", "more than one group", "one")
        super().add_param_group(param_group)

    def step(self, closure: Objective, objective: Objective | None = None) -> float:  # type: ignore[override]
        """One step from the gradients that `closure` leaves, by a line search on `objective`."""
        raise NotImplementedError

    def _evaluate(self, closure: Objective, objective: Objective | None = None) -> float:
        """The loss, as rank 0 has it."""
        with torch.set_grad_enabled(objective is None):
            value = closure() if objective is None else objective()
        number = float(value.detach()) if isinstance(value, Tensor) else float(value)
        return float(vector.of_rank_0(self._theta, torch.tensor([number], dtype=torch.float64)))

    def _dots(self, pairs: list[tuple[Vector, Vector]]) -> list[float]:
        """Inner products, as rank 0 has them."""
        return vector.of_rank_0(self._theta, vector.dots(self._theta, pairs)).tolist()

    def _move(
        self, closure: Objective, objective: Objective | None, loss: float, d: Vector, slope: float, start: float
    ) -> Result:
        """Go along a direction as far as the search says; back to where it was, where that says no or fails."""
        theta, origin, first = self._theta, vector.copies(self._theta), float(self._group["lr"]) * start
        slopes = getattr(self.search, "slopes", False)

        def phi(a: float) -> Any:
            vector.assign(theta, vector.axpy(a, d, origin))
            value = self._evaluate(closure, None if slopes else objective)
            return (value, self._dots([(vector.gradients(theta), d)])[0]) if slopes else value

        if self.search is None:
            vector.assign(theta, vector.axpy(first, d, origin))
            return Result(first, math.nan, 0, True)
        step = 0.0
        try:
            result = self.search.search(phi, loss, slope, first)
            step = result.step if result.accepted else 0.0
        finally:
            vector.assign(theta, vector.axpy(step, d, origin) if step else origin)
        return result

    @property
    def _group(self) -> dict[str, Any]:
        return self.param_groups[0]

    @property
    def _theta(self) -> Vector:
        return self._group["params"]

    def _stored(self, name: str) -> Vector:
        return [self.state[p][name] for p in self._theta]

    def _store(self, name: str, v: Vector) -> None:
        for p, t in zip(self._theta, v, strict=True):
            self.state[p][name] = t  # a new tensor, never written into: a state_dict may share the old one
