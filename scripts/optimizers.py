"""Objective against work and against time of the optimizers, on the three problems in the plane.

    F(θ, M) = cross entropy(net(x), c) + regularisers,    all examples at once, layers by the exact chain, float64

All start from the same weights. Work is in gradients: a forward and an adjoint solve are 1, a product with the
Gauss–Newton matrix is 1, an evaluation of F is ½; what concerns the classifier alone counts as nothing, but is included
in the time, which is that of one core.
"""

import argparse
import copy
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lpnet
from lpnet import data, folders, optim, regularizers, slab
from lpnet.data import DataOptions
from lpnet.experiments import style
from lpnet.plots import save

ADAM = (3e-3, 1e-2, 3e-2)


@dataclass(frozen=True)
class Problem:
    """A problem as the preset of its name has it, but for the number of layers and the regularisers."""

    name: str
    train: int
    validation: int
    width: int
    dynamics: str
    T: float = 5.0
    tikhonov: float = 1e-5
    ddt: float = 1e-4
    classifier: float = 1e-5


PROBLEMS = {
    "peaks": Problem("peaks", 2000, 2000, 8, "dense"),
    "ellipses": Problem("ellipses", 1000, 2000, 4, "hamiltonian"),
    "swissroll": Problem("swissroll", 513, 513, 8, "antisymmetric"),
}


class Task:
    """A problem with the network that is trained on it."""

    def __init__(self, problem: Problem, layers: int, seed: int) -> None:
        found = data.load(DataOptions(name=problem.name, train=problem.train, validation=problem.validation), seed)
        self.train = torch.from_numpy(found.train_x), torch.from_numpy(found.train_y)
        self.validation = torch.from_numpy(found.val_x), torch.from_numpy(found.val_y)
        stepper = lpnet.steppers.Verlet() if problem.dynamics == "hamiltonian" else lpnet.steppers.Euler()
        trunk = lpnet.LayerParallel(
            lpnet.dynamics.REGISTRY[problem.dynamics](problem.width), layers, problem.T, stepper,
            lpnet.Serial(), lpnet.Serial(), seed=seed, comm=slab.Comm(), dtype=torch.float64,
        )  # fmt: skip
        torch.manual_seed(seed)
        like: dict[str, Any] = {"dtype": torch.float64}
        ends = nn.Linear(2, problem.width, **like), nn.Linear(problem.width, found.classes, **like)
        self.net, self.problem = nn.Sequential(ends[0], trunk, ends[1]), problem

    def copy(self) -> tuple[nn.Sequential, list[regularizers.Penalty]]:
        """A network to train, with its regularisers."""
        net, problem = copy.deepcopy(self.net), self.problem
        penalties: list[regularizers.Penalty] = [
            regularizers.Tikhonov(net[1], problem.tikhonov),
            regularizers.TimeDerivative(net[1], problem.ddt),
            regularizers.Quadratic(net[2].weight, problem.classifier),
        ]
        return net, penalties

    def accuracies(self, net: nn.Module) -> dict[str, float]:
        """Of training and validation."""
        with torch.no_grad():
            sets = {"train": self.train, "validation": self.validation}
            return {key: float((net(x).argmax(1) == c).double().mean()) for key, (x, c) in sets.items()}


@dataclass
class Curve:
    """F after so much work and so many seconds of one core, and the accuracies at the end."""

    name: str
    work: list[float]
    seconds: list[float]
    objective: list[float]
    accuracy: dict[str, float]
    steps: int


Run = Iterator[tuple[float, float]]
"""Work of a step, and F before it."""


def by_gradients(optimizer: torch.optim.Optimizer, objective: Callable[[], Tensor]) -> Run:
    """Steps of Adam, or of L-BFGS."""
    while True:
        found: list[float] = []

        def closure(found: list[float] = found) -> Tensor:
            optimizer.zero_grad()
            value = objective()
            value.backward()
            found.append(value.item())
            return value

        if isinstance(optimizer, optim.LBFGS):
            optimizer.step(closure, objective)
            yield len(found) + 0.5 * optimizer.report.evaluations, found[0]  # type: ignore[union-attr]
        else:
            optimizer.step(closure)
            yield len(found), found[0]


def by_models(optimizer: optim.GaussNewton, task: Task) -> Run:
    """Steps of Gauss–Newton in one of its forms."""
    while True:
        report = optimizer.step_on(*task.train)
        yield report.work, report.before


def contestants(task: Task, pcg: optim.PCG) -> dict[str, Callable[[], tuple[nn.Module, Run]]]:
    """Name -> a network and the run that trains it."""

    def joint(make: Callable[[Any], torch.optim.Optimizer]) -> tuple[nn.Module, Run]:
        net, penalties = task.copy()

        def objective() -> Tensor:
            x, c = task.train
            return sum((penalty() for penalty in penalties), cross_entropy(net(x), c))

        return net, by_gradients(make(net.parameters()), objective)

    def reduced() -> tuple[nn.Module, Run]:
        net, penalties = task.copy()
        F = optim.Reduced(net, penalties)
        return net, by_gradients(optim.LBFGS(F.parameters), lambda: F(*task.train))

    def model(kind: Any) -> tuple[nn.Module, Run]:
        net, penalties = task.copy()
        return net, by_models(kind(net, penalties=penalties, pcg=pcg), task)

    found = {f"Adam, rate {lr:g}": lambda lr=lr: joint(lambda p: torch.optim.Adam(p, lr=lr)) for lr in ADAM}
    return found | {
        "L-BFGS": lambda: joint(optim.LBFGS),
        "Newton-PCG": lambda: model(optim.GaussNewton),
        "block coordinates": lambda: model(optim.BlockCoordinateDescent),
        "VarPro, L-BFGS": reduced,
        "VarPro, Newton-PCG": lambda: model(optim.VariableProjection),
    }


def trained(name: str, task: Task, run: tuple[nn.Module, Run], most: float) -> Curve:
    """The curve of one run up to so much work."""
    net, steps = run
    curve = Curve(name, [], [], [], {}, 0)
    work, begin = 0.0, time.process_time()
    while not curve.work or curve.work[-1] < most:
        before = time.process_time() - begin
        more, objective = next(steps)
        curve.work.append(work)
        curve.seconds.append(before)
        curve.objective.append(objective)
        work += more
    curve.steps, curve.accuracy = len(curve.work) - 1, task.accuracies(net)
    return curve


def raced(name: str, args: argparse.Namespace) -> list[Curve]:
    """All contestants on one problem; of the rates of Adam the best."""
    task = Task(PROBLEMS[name], args.layers, args.seed)
    pcg = optim.PCG(args.iterations, args.tol, args.radius or None)
    curves = [trained(key, task, make(), args.work) for key, make in contestants(task, pcg).items()]
    adam, others = curves[: len(ADAM)], curves[len(ADAM) :]
    for curve in curves:
        print(
            f"{name:10s} {curve.name:20s} F {curve.objective[-1]:.3e}  validation {curve.accuracy['validation']:.4f}  "
            f"{curve.steps} steps, {curve.seconds[-1]:.1f} s"
        )
    return [min(adam, key=lambda curve: curve.objective[-1]), *others]


def drawn(found: dict[str, list[Curve]], layers: int, path: Path) -> None:
    """Objective against work above, against time below, one column for each problem."""
    best = [min(curves, key=lambda curve: curve.objective[-1]).name for curves in found.values()]
    eliminated = all(name.startswith("VarPro") for name in best)
    finding = "With the classifier eliminated (VarPro) the objective gets lowest" if eliminated else "Optimizers"
    title = f"{finding}: {layers} layers, full batch"
    figure, axes = style.figure(title, (2, len(found)), (4.6 * len(found), 8.2), sharey="col")
    for column, (name, curves) in enumerate(found.items()):
        for row, key in enumerate(("work", "seconds")):
            ax = axes[row, column]
            label = "work (gradients)" if row == 0 else "time of one core (s)"
            style.axis(ax, name if row == 0 else "", label, "objective F" if column == 0 else "")
            for i, curve in enumerate(curves):
                look = style.look(i, markevery=max(1, len(curve.work) // 8))
                ax.plot(np.array(getattr(curve, key)), curve.objective, label=curve.name, **look)
            style.log(ax, "y")
    handles, labels = axes[0, -1].get_legend_handles_labels()
    labels = ["Adam, best of three rates" if label.startswith("Adam") else label for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    save(figure, path)


def rounded(curve: Curve) -> dict[str, Any]:
    """For the file, to five digits."""
    lists = {key: [float(f"{v:.5g}") for v in getattr(curve, key)] for key in ("work", "seconds", "objective")}
    return asdict(curve) | lists


def optimizers(args: argparse.Namespace, about: dict[str, str]) -> None:
    """Run, print, and write the figures and the picture.

    Raises:
        InputError: the folder cannot be written, or a setting is not allowed.
    """
    folders.make(args.docs / "results", "--docs")
    found = {name: raced(name, args) for name in args.problems}
    keys = ("layers", "seed", "work", "iterations", "tol", "radius")
    settings = {key: getattr(args, key) for key in keys} | {"rates of Adam": ADAM}
    problems = {name: asdict(PROBLEMS[name]) for name in found}
    curves = {name: [rounded(curve) for curve in several] for name, several in found.items()}
    whole = {"settings": settings, "problems": problems, "versions": about, "curves": curves}
    (args.docs / "results" / "optimizers.json").write_text(json.dumps(whole) + "\n")
    drawn(found, args.layers, args.docs / "optimizers.png")
