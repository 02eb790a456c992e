"""The memory that a forecast predicts is what training holds at most."""

from typing import Any

import pytest
from counting import Living
from small_runs import Silent

from lpnet import data, slab
from lpnet.commandline import parse
from lpnet.cost import Costs
from lpnet.dryrun import Rest, forecast
from lpnet.network import Examples, build
from lpnet.training.examples import Tensors
from lpnet.training.loop import fit

BASE = (
    "--data.train=256", "--data.validation=8", "--trunk.layers=32", "--trunk.width=8", "--training.steps=4",
    "--training.batch=128", "--training.validate_every=null", "--schedule.warmup=0", "--run.dtype=float64",
)  # fmt: skip


def both(**options: Any) -> list[str]:
    return [f"--solver.{way}.{key}={value}" for way in ("forward", "adjoint") for key, value in options.items()]


CASES = {
    "two levels": both(coarsening=4),
    "three levels": ["--trunk.layers=64", *both(coarsening=4, levels=3, cycles=2, cycle_shape="F")],
    "coarse start": both(coarsening=8, cycles=0, relaxation="FCF"),
    "samples": ["--trunk.dynamics=antisymmetric", *both(coarsening=4, samples=4)],
    "exact": both(kind="serial", micro_batches=4),
    "other parts": ["--solver.forward.kind=serial", "--solver.adjoint.coarsening=4"],
    "blocks": ["--trunk.dynamics=hamiltonian", "--trunk.store=cpoints", *both(coarsening=4)],
    "exact blocks": ["--trunk.store=cpoints", *both(kind="serial")],
    "undone": ["--trunk.dynamics=hamiltonian", "--trunk.store=reverse", *both(coarsening=4)],
    "exact undone": ["--trunk.dynamics=second_order", "--trunk.store=reverse", *both(kind="serial")],
    "RK4": ["--trunk.stepper=rk4", *both(coarsening=4)],
    "AB3": ["--trunk.stepper=ab3", "--trunk.dynamics=two_layer", *both(coarsening=4)],
    "controls": ["--trunk.controls=8", *both(coarsening=4)],
    "wide": ["--trunk.width=32", "--training.batch=32", *both(coarsening=4)],
    "heavy": ["--run.dtype=float32", "--trunk.width=64", "--training.batch=16", *both(coarsening=8)],
    "simultaneous": ["--training.method=simultaneous", *both(coarsening=4)],
    "simultaneous on all": ["--training.method=simultaneous", "--training.batch=null", *both(coarsening=4)],
    "lbfgs": ["--optimizer.name=lbfgs", "--optimizer.memory=2", "--training.batch=16", *both(coarsening=4)],
}


class Watching(Silent):
    """Remembers the most that lived up to the last step but one (after the last one all examples are evaluated)."""

    def __init__(self, living: Living) -> None:
        super().__init__()
        self.living, self.most = living, 0

    def step(self, record: dict[str, Any]) -> None:
        if len(self.records) < 3:
            self.most = self.living.most
        super().step(record)

    def warn(self, message: str) -> None:
        pass


@pytest.mark.parametrize("name", CASES)
def test_memory_is_what_training_holds(name: str) -> None:
    config = parse([*BASE, *CASES[name]])
    dataset = data.load(config.data, config.run.seed)
    (predicted,) = forecast(config, dataset, 1, costs=Costs(), outside_trunk=Rest()).footprints
    with Living() as living:
        net = build(config, Examples(dataset.features, dataset.classes), slab.Comm())
        examples = Tensors.of(dataset, net.classifier.weight)
        log = Watching(living)
        fit(net, examples, log)
    held = log.most  # arrays of the data set itself are no tensors
    expected = predicted.total - sum(a.nbytes for a in (dataset.train_x, dataset.val_x))
    assert held == pytest.approx(expected, rel=0.15), predicted
