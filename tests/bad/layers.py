"""User code that cannot work, by name: ``python layers.py NAME`` ends with one line and exit code 2."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import lpnet
from lpnet import launch
from lpnet.slab import Comm


class Broken(nn.Module):
    """A layer with weights that does something wrong."""

    def __init__(self, wrong: Callable[["Broken", Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.wrong = nn.Linear(3, 3), wrong

    def forward(self, y: Tensor) -> Any:
        return self.wrong(self, y)


class Clash(nn.Module):
    """A layer whose weight has a name that the trunk uses itself."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(3)))

    def forward(self, y: Tensor) -> Tensor:
        return y


def trunk(module: Any, **options: Any) -> lpnet.LayerParallel:
    """A trunk of these layers."""
    return lpnet.LayerParallel(module, **{"layers": 4, "T": 1.0, **options})


def propagated(module: nn.Module, y: Any = None, **options: Any) -> Tensor:
    """What becomes of a state."""
    found: Tensor = trunk(module, **options)(torch.zeros(2, 3) if y is None else y)
    return found


def dense() -> nn.Module:
    """A good layer."""
    return lpnet.dynamics.Dense(3)


def plain() -> nn.Module:
    """A good layer of the user's."""
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh())


CASES: dict[str, Callable[[], object]] = {
    # modules
    "no module": lambda: trunk("layer"),
    "a function": lambda: trunk(torch.tanh),
    "a class": lambda: trunk(nn.Linear),
    "None": lambda: trunk(None),
    "batch normalisation": lambda: trunk(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))),
    "no weights": lambda: propagated(nn.Tanh()),
    "other width": lambda: propagated(nn.Linear(3, 4)),
    "no tensor": lambda: propagated(Broken(lambda self, y: [self.linear(y)])),
    "nothing": lambda: propagated(Broken(lambda self, y: None)),
    "in place": lambda: propagated(Broken(lambda self, y: y.add_(self.linear(y)))),
    "sum over the batch": lambda: propagated(Broken(lambda self, y: self.linear(y).sum())),
    "a name that is taken": lambda: trunk(Clash("stepper")),
    "dynamics of another stepper": lambda: trunk(lpnet.dynamics.Hamiltonian(3)),
    "width 0": lambda: lpnet.dynamics.Dense(0),
    "activation": lambda: lpnet.dynamics.Dense(3, activation="nosuch"),
    # trunks
    "layers 0": lambda: trunk(dense(), layers=0),
    "layers a text": lambda: trunk(dense(), layers="4"),
    "layers a half": lambda: trunk(dense(), layers=2.5),
    "T nan": lambda: trunk(dense(), T=float("nan")),
    "T a text": lambda: trunk(dense(), T="1"),
    "seed": lambda: trunk(dense(), seed=-1),
    "init": lambda: trunk(dense(), init="nosuch"),
    "stepper": lambda: trunk(dense(), stepper="euler"),
    "solver": lambda: trunk(dense(), forward="mgrit"),
    "communicator": lambda: trunk(dense(), comm="world"),
    "dtype": lambda: trunk(dense(), dtype=torch.float16),
    "device meta": lambda: trunk(dense(), device="meta"),
    "device nosuch": lambda: trunk(dense(), device="nosuch"),
    "device a number": lambda: trunk(dense(), device=3.5),
    "gradient": lambda: trunk(dense(), gradient="nosuch"),
    "continuous gradient of RK4": lambda: trunk(dense(), stepper=lpnet.steppers.RK4(), gradient="continuous"),
    "store": lambda: trunk(dense(), store="nosuch"),
    "reverse of Euler": lambda: trunk(dense(), store="reverse"),
    "control": lambda: trunk(dense(), control=0.1),
    "controls": lambda: trunk(dense(), controls=3),
    "more controls than layers": lambda: trunk(dense(), controls=lpnet.Controls(9)),
    # solvers
    "coarsening": lambda: lpnet.MGRIT(coarsening=1),
    "cycles": lambda: lpnet.MGRIT(cycles=-1),
    "tol": lambda: lpnet.MGRIT(tol=float("nan")),
    "tol true": lambda: lpnet.MGRIT(tol=True),
    "parts": lambda: lpnet.Serial(0),
    "tolerance of control": lambda: lpnet.Adaptive(2.0),
    # states
    "input of another width": lambda: propagated(dense(), torch.zeros(2, 5)),
    "input of whole numbers": lambda: propagated(dense(), torch.zeros(2, 3, dtype=torch.long)),
    "input of another dtype": lambda: propagated(dense(), torch.zeros(2, 3, dtype=torch.float64)),
    "input without a batch": lambda: propagated(dense(), torch.zeros(3)),
    "input a list": lambda: propagated(dense(), [[0.0, 0.0, 0.0]]),
    # tools
    "check of a text": lambda: lpnet.check("layer"),
    "check without features": lambda: lpnet.check(nn.Tanh()),
    "check with features": lambda: lpnet.check(plain(), features=-1),
    "check with h": lambda: lpnet.check(plain(), h=0),
    "check with a stepper": lambda: lpnet.check(plain(), stepper="euler"),
    "check with a batch": lambda: lpnet.check(plain(), batch=0),
    "recording": lambda: lpnet.trace.recording(3).__enter__(),
    "recording of no ranks": lambda: lpnet.trace.recording("trace.json", comm=3).__enter__(),
    "recording in no folder": lambda: lpnet.trace.recording("/nowhere/trace.json", comm=Comm()).__enter__(),
    "norm of a module": lambda: lpnet.grad_norm(nn.Linear(2, 2)),
    "model": lambda: lpnet.load("nowhere.h5"),
}


def job(comm: Comm, name: str) -> None:
    """Do it, on all ranks."""
    CASES[name]()
    raise AssertionError(f"{name} is not refused")


def main(arguments: Sequence[str]) -> int:
    """The exit code."""
    return launch.run("lpnet", lambda comm: job(comm, arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
