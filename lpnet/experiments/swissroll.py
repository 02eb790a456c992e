"""15. The swiss roll, from few layers to 1024: Hamiltonian, residual and antisymmetric networks.

    Hamiltonian     z ← z − h σ(K y + b),   y ← y + h σ(Kᵀ z + b)       2D
    residual        y ← y + h σ(K y + b)                                 4D, two of them 0 at first
    antisymmetric   y ← y + h σ((K − Kᵀ) y + b)                          4D

Trained on each level by block coordinate descent: Newton–PCG for the layers, Newton's method for the classifier.
"""

import dataclasses
from typing import Any

from lpnet.experiments import ladder
from lpnet.experiments.base import Context, Result
from lpnet.experiments.course import Course, Problem, Task, listed, percent
from lpnet.steppers import Verlet

BASELINES = {"Hamiltonian": 0.9922, "ResNet": 0.9668, "antisymmetric": 0.9434}
NAMES = tuple(BASELINES)
T, T_PLAIN = 10.0, 6.0


def tasks(context: Context) -> dict[str, Task]:
    """Name -> task."""
    layers = context.pick(tuple(2**k for k in range(1, 11)), (2, 4, 8, 16, 32))
    steps = context.pick((15, 25, 30, 30, 30, 25, 20, 12, 6, 4), (8, 12, 12, 12, 10))
    hamiltonian = Task("hamiltonian", 2, T, layers, steps, Verlet(), ddt=1e-4, start=1.0)
    plain = dataclasses.replace(
        hamiltonian, width=4, T=T_PLAIN, layers=layers[2:], steps=steps[2:], stepper=None, start=None
    )
    return {
        "Hamiltonian": hamiltonian,
        "ResNet": dataclasses.replace(plain, kind="dense", ddt=1e-3),
        "antisymmetric": dataclasses.replace(plain, kind="antisymmetric"),
    }


def run(context: Context) -> Result:
    """Train the three from level to level; collective."""
    problem, made = Problem(context, "swissroll"), tasks(context)
    courses: dict[str, Course] = {name: problem.course(task) for name, task in made.items()}
    seen = ladder.view(problem, courses[NAMES[0]])
    numbers: dict[str, Any] = {
        name: {
            "train_accuracy": problem.accuracy(course.net, "train"),
            "validation_accuracy": problem.accuracy(course.net),
            "baseline": BASELINES[name],
            "levels": [
                row | {"accuracy": one.accuracy, "accuracy_prolongated": one.accuracy_start}
                for row, one in zip(course.rows(), course.levels, strict=True)
            ],
        }
        for name, course in courses.items()
    }
    title = "Swiss roll: three kinds of layers, level by level"
    settings = {"tasks": {name: str(task) for name, task in made.items()}}
    return Result(
        numbers, _see(numbers), lambda: ladder.draw(title, courses, (NAMES[0], seen), BASELINES), settings
    )


def _see(numbers: dict[str, Any]) -> str:
    reached = ", ".join(
        f"{name} {percent(found['validation_accuracy'])} (published {percent(found['baseline'])})"
        for name, found in numbers.items()
    )
    last = numbers[NAMES[0]]["levels"][-1]
    kept = listed([percent(found["levels"][-1]["accuracy_prolongated"]) for found in numbers.values()])
    return (
        f"Validation accuracy with {last['layers']} layers: {reached}. The published networks have 16 or 32 layers. "
        "Each level starts from the weights of the one before, linear in time (open markers: before it is trained). "
        "With steps that are too long these weights say little of the flow, and accuracy drops to that of guessing; as "
        f"h becomes small they say more: at the last refinement {kept} are left before training. At the end the "
        "spirals, wound up in the plane (lower left), have become clouds that a straight line separates (lower right)."
    )
