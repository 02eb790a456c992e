"""A gradient on one rank never waits for the device: nothing is read from it, and nothing is copied to it.

Tensors without memory (device "meta") stand for those of a GPU: whoever reads one fails.
"""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import lpnet
from lpnet import MGRIT, Serial
from lpnet.measure import prepare

SOLVERS = {
    "serial": Serial(),
    "serial 2": Serial(2),
    "two levels": MGRIT(coarsening=4, cycles=1),
    "three levels": MGRIT(coarsening=4, levels=3, cycles=2),
    "FCF": MGRIT(coarsening=4, cycles=1, relaxation="FCF"),
    "F cycles": MGRIT(coarsening=2, levels=4, cycles=1, cycle_shape="F"),
    "samples": MGRIT(coarsening=4, cycles=1, samples=4, passes=2),
    "warm": MGRIT(coarsening=4, cycles=1, initial="constant"),
}


class OnDevice(TorchDispatchMode):
    """Fails where memory of the host and of the device meet in one operation, and counts operations."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor) and t.ndim]
        assert len({t.device.type for t in tensors}) < 2, func
        self.count += 1
        return out


def trunk(options: Any, layers: int = 16, width: int = 4, device: str = "meta", **more: Any) -> lpnet.LayerParallel:
    made = lpnet.LayerParallel(lpnet.dynamics.Dense(width), layers, 2.0, forward=options, adjoint=options, **more)
    return made.to(device)


def gradient(made: lpnet.LayerParallel, width: int = 4) -> None:
    y = torch.empty(5, width, device=next(iter(made.theta.values())).device, requires_grad=True)
    out = made(y)
    out.backward(torch.empty_like(out))


@pytest.mark.parametrize("options", SOLVERS.values(), ids=SOLVERS)
def test_a_gradient_reads_nothing_from_the_device(options: Any) -> None:
    made = trunk(options)
    gradient(made)  # the first call looks at the stability
    with OnDevice():
        gradient(made)
    if isinstance(options, MGRIT):
        with pytest.raises(NotImplementedError, match="meta"):  # this is where it would wait
            _ = made.info.forward.residuals  # type: ignore[union-attr]


@pytest.mark.parametrize("stepper", [lpnet.steppers.RK4(), lpnet.steppers.AB3()])
def test_so_do_other_steppers(stepper: Any) -> None:
    made = trunk(SOLVERS["two levels"], stepper=stepper)
    gradient(made)
    with OnDevice():
        gradient(made)


def test_residuals_are_found_when_one_looks() -> None:
    made = trunk(SOLVERS["three levels"], device="cpu", dtype=torch.float64)
    y = torch.linspace(-1, 1, 20, dtype=torch.float64).reshape(5, 4)
    _, solution, _ = made._engine.forward(*prepare(made, y), made.forward_solver, True)
    info = solution.info
    assert callable(info.__dict__["_residuals"])
    kept = list(info.residuals)
    assert kept == info.residuals
    assert len(kept) == 3
    assert kept[0] > 10 * kept[1] > 100 * kept[2] > 0
