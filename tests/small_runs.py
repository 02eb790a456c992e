"""Small runs that several test files do."""

from typing import Any

from lpnet import data, slab
from lpnet.commandline import parse
from lpnet.network import Examples, Network, build
from lpnet.training.examples import Tensors

SMALL = (
    "--data.train=40", "--data.validation=20", "--trunk.layers=8", "--trunk.width=3", "--solver.forward.coarsening=3",
    "--solver.adjoint.coarsening=3", "--training.steps=6", "--training.batch=16", "--training.validate_every=4",
    "--schedule.warmup=3",
)  # fmt: skip

WILD = (
    "--optimizer.name=sgd", "--optimizer.lr=1e15", "--schedule.name=constant", "--schedule.warmup=0",
    "--regularizer.tikhonov=1e10",
)  # fmt: skip


class Silent:
    """A log that keeps the records."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def step(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def warn(self, message: str) -> None:
        raise AssertionError(message)


def network(
    *arguments: str, layers: int | None = None, comm: slab.Comm | None = None
) -> tuple[Network, Tensors]:
    """A network of so many layers, those of the coarsest level if none are given, and its examples."""
    config = parse([*SMALL, "--run.dtype=float64", *arguments])
    dataset = data.load(config.data, config.run.seed)
    examples = Examples(dataset.features, dataset.classes, dataset.shift, dataset.scale)
    layers = config.multilevel.layers(config.trunk.layers)[0] if layers is None else layers
    net = build(config, examples, comm or slab.Comm(), layers=layers)
    return net, Tensors.of(dataset, net.classifier.weight)
