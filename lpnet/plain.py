"""The trunk as ordinary torch modules: an independent, sequential twin for checks and for serving."""

import copy

import torch
from torch import Tensor, nn

from lpnet.steppers import Mix, Stage, Stepper, Steps, slots_of


class PlainLayer(nn.Module):
    """A program done out of place, differentiable by autograd, on states (memory, batch, *features).

    Args:
        dynamics: one layer.
        program: what to do.
        memory: slots of the state.
    """

    def __init__(self, dynamics: nn.Module, program: Steps, memory: int) -> None:
        super().__init__()
        self.dynamics, self.program, self.memory = dynamics, program, memory

    def forward(self, x: Tensor) -> Tensor:
        slots = list(x.unbind(0)) + [torch.zeros_like(x[0])] * (slots_of(self.program, self.memory) - self.memory)
        for step in self.program:
            slots[step.target] = self._value(step, slots)
        return torch.stack(slots[: self.memory])

    def _value(self, step: Stage | Mix, slots: list[Tensor]) -> Tensor:
        if isinstance(step, Mix):
            return sum((c * slots[s] for s, c in step.terms), torch.zeros_like(slots[0]))
        f = self.dynamics if step.term == "f" else getattr(self.dynamics, step.term)
        start = step.target if step.start is None else step.start
        return slots[start] + step.w * f(slots[step.source])


class ResidualLayer(nn.Module):
    """y + h f(y): the layer of a one-step method without memory, on states (batch, *features)."""

    def __init__(self, dynamics: nn.Module, h: float) -> None:
        super().__init__()
        self.dynamics, self.h = dynamics, h

    def forward(self, y: Tensor) -> Tensor:
        return y + self.h * self.dynamics(y)


class _Open(nn.Module):
    """(batch, *features) to a state with empty memory."""

    def __init__(self, memory: int) -> None:
        super().__init__()
        self.memory = memory

    def forward(self, y: Tensor) -> Tensor:
        return torch.stack([y] + [torch.zeros_like(y)] * (self.memory - 1))


class _Read(nn.Module):
    """The features of a state."""

    def forward(self, x: Tensor) -> Tensor:
        return x[0]


def sequential(module: nn.Module, stepper: Stepper, h: float, theta: dict[str, Tensor]) -> nn.Sequential:
    """All layers as an `nn.Sequential` with weights theta, name -> (N, ...), mapping (batch, *features) to the same."""
    layers = len(next(iter(theta.values())))
    copies = [copy.deepcopy(module) for _ in range(layers)]
    for j, one in enumerate(copies):
        with torch.no_grad():
            for name, parameter in one.named_parameters():
                parameter.copy_(theta[name][j])
    if stepper.memory == 1 and stepper.stages(h) == (Stage("f", 0, 0, h),):
        return nn.Sequential(*(ResidualLayer(one, h) for one in copies))
    body = [PlainLayer(one, stepper.stages(h), stepper.memory) for one in copies]
    lift = [PlainLayer(copies[0], stepper.lift(h), stepper.memory)] if stepper.lift(h) else []
    return nn.Sequential(_Open(stepper.memory), *lift, *body, _Read())
