"""Steppers of a user's own: what they may say, and what is refused in one line when a trunk is made."""

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from by_hand import WIDTH
from reference import F64, error, normal
from torch import Tensor

import lpnet
from lpnet import MGRIT, InputError, Serial
from lpnet.coarsen import Recipes, Restriction
from lpnet.slab import Comm, Slab
from lpnet.steppers import RK4, Euler, Mix, Picard, Program, Stage, Stepper, Steps

F = Stage("f", 0, 0, 0.25)


class Own(Stepper):
    """Its layer is given, its lift and its coarse step may be."""

    order = 1  # type: ignore[assignment]

    def __init__(self, *stages: Any, lift: Steps = (), coarse: Program = (F,), count: int | None = None) -> None:
        for name, value in (("program", stages), ("before", lift), ("big", coarse), ("count", count)):
            object.__setattr__(self, name, value)

    program: Steps
    before: Steps
    big: Program
    count: int | None

    def lift(self, h: float) -> Steps:
        return self.before

    def stages(self, h: float) -> Steps:
        return self.program

    def coarse(self, lengths: tuple[int, ...], h: float, options: MGRIT) -> Program:
        return self.big

    def rows(self, lengths: tuple[int, ...], options: MGRIT) -> np.ndarray:
        found = super().rows(lengths, options)
        return found if self.count is None else np.repeat(found[:1], self.count, axis=0)


class Claiming(Own):
    """Says of itself what its program may not do."""

    reversible: ClassVar[bool] = True
    continuous: ClassVar[bool] = True


def trunk(stepper: Stepper, layers: int = 8, **more: Any) -> lpnet.LayerParallel:
    more = {"forward": MGRIT(4), "adjoint": MGRIT(4), "init": "random"} | more
    dynamics = lpnet.dynamics.Antisymmetric(WIDTH)
    return lpnet.LayerParallel(dynamics, layers, 1.0, stepper, comm=Comm(), dtype=F64, **more)


def gradients(net: torch.nn.Module, y: Tensor) -> list[Tensor]:
    out = net(y.requires_grad_())
    return [out, *torch.autograd.grad((out**2).sum(), [y])]


@pytest.mark.parametrize(
    "stages",
    [
        (Stage("f", 0, 1, 0.1, start=0), Stage("f", 1, 0, 0.1, start=0)),
        (Stage("f", 0, 1, 0.1, start=0), Stage("f", 1, 1, 0.1, start=1), Mix(0, ((0, 0.5), (1, 0.5)))),
        (Stage("f", 0, 0, 0.1, start=0),),
    ],
)
@pytest.mark.parametrize("store", ["all", "cpoints"])
def test_a_start_that_is_the_target_is_the_target_itself(stages: Steps, store: Any) -> None:
    made, y = trunk(Own(*stages), forward=Serial(), adjoint=Serial(), store=store), normal(3, WIDTH)
    twin = made.as_sequential()
    for a, b in zip(gradients(made, y), gradients(twin, y), strict=True):
        assert error(a, b) < 1e-13
    dot = normal(3, WIDTH, seed=2)
    with torch.no_grad():
        assert error(made.linearize(y).tangent(dot, None), torch.func.jvp(twin, (y.detach(),), (dot,))[1]) < 1e-13


@pytest.mark.parametrize(
    ("stepper", "words"),
    [
        (
            Own(Mix(1, ((0, 1.0),)), Stage("f", 0, 0, 0.1, start=1)),
            "source and target 0 with start 1 given in the fine step of Own, another target allowed",
        ),
        (Own(F, lift=(Stage("f", 0, 0, 1.0, start=2),)), "source and target 0 with start 2 given in the lift of"),
        (Own(F, coarse=(Mix(1), Stage("f", 0, 0, 1.0, start=1))), "source and target 0 with start 1 given in the co"),
        (Own(Stage("kick", 0, 0, 0.1)), "term 'kick' given in the fine step of Own, f allowed"),
        (Own(Stage("f", 0, 1, 0.1)), "slot 1 given in the fine step of Own, which nothing has written; 0 allowed"),
        (Own(F, Mix(-1)), "slot -1 given in the fine step of Own, at least 0 allowed"),
        (Own(F._replace(part=1)), "part 1 given in the fine step of Own, 0 allowed"),
        (Own(Mix(0, ((0, 2.0),))), "Own given, whose fine step has no Stage; at least one needed"),
        (Own(F, coarse=(F._replace(part=2),)), "row 2 given in the coarse step of Own, one of its 1 rows allowed"),
        (Own(F, coarse=Picard("f", (2, 2), 0.1, 2)), "row 1 given in the coarse step of Own, one of its 1 rows"),
        (
            Own(F, count=2),
            "Own given, whose coarse step uses 1 of 2 rows of weights; only rows that are used allowed",
        ),
    ],
)
def test_programs_that_cannot_be_done_are_refused(stepper: Stepper, words: str) -> None:
    with pytest.raises(InputError) as caught:
        trunk(stepper)
    assert str(caught.value).startswith(f"stepper: {words}")


def test_coarse_steps_with_the_weights_of_the_first_part_alone_are_refused() -> None:
    words = "samples: 2 given with Own, whose coarse step uses 1 of 2 rows of weights; 1 allowed"
    assert Own(F).refusal(MGRIT(4, samples=2)) == words
    with pytest.raises(InputError, match=words):
        trunk(Own(F), adjoint=MGRIT(4, samples=2))
    trunk(Own(F))


@pytest.mark.parametrize(
    ("key", "value", "stages"),
    [
        ("store", "reverse", (F,)),  # which would evaluate f at the new state
        ("store", "reverse", (Stage("f", 0, 1, 0.1, start=0), Stage("f", 1, 0, 0.1))),
        ("gradient", "continuous", (F, F)),
        ("gradient", "continuous", (F, Mix(0, ((0, 2.0),)))),
    ],
)
def test_claims_of_a_stepper_are_checked(key: str, value: str, stages: Steps) -> None:
    with pytest.raises(InputError, match=f"{key}: '{value}' given with Claiming, "):
        trunk(Claiming(*stages), **{key: value})


def test_claims_that_are_true_are_believed() -> None:
    trunk(Claiming(F._replace(start=0)), gradient="continuous")


# ---- weights of coarse steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("stepper", [Euler(), RK4()])
@pytest.mark.parametrize("layers", [24, 22])
def test_spans_together_and_one_by_one(stepper: Stepper, layers: int) -> None:
    """To rounding; a ragged last span as well."""
    recipes, options = Recipes(stepper, 0.1), MGRIT(4, samples=2)
    theta = {"K": normal(layers, 3, 2), "b": normal(layers, 3), "s": normal(layers)}
    spans, slab = [(a, min(a + 4, layers)) for a in range(0, layers, 4)], Slab(layers, Comm())
    found = Restriction(spans, [0] * len(spans), slab, lambda span: recipes(span, options).rows)(theta)
    for name, t in theta.items():
        rows = [torch.from_numpy(stepper.rows(tuple([(b - a) // 2] * 2), options)) for a, b in spans]
        alone = [torch.tensordot(r, t[a:b], 1) for r, (a, b) in zip(rows, spans, strict=True)]
        assert error(found[name], torch.cat(alone)) < 1e-14


def test_coarse_steps_are_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, y = trunk(Euler(), 32), normal(2, WIDTH)
    monkeypatch.setattr(Euler, "rows", None)
    monkeypatch.setattr(Euler, "coarse", None)
    made(y).sum().backward()
