"""What the figures of simultaneous training share: runs on one rank, with their records."""

from typing import Any

from lpnet import data
from lpnet.commandline import parse
from lpnet.network import Examples, Network, build
from lpnet.slab import Comm
from lpnet.training.examples import Tensors
from lpnet.training.loop import fit

COMMON = ("--trunk.layers=256", "--trunk.T=5")
SERIAL = ("--solver.forward.kind=serial", "--solver.adjoint.kind=serial")
SIMULTANEOUS = ("--training.method=simultaneous",)
COLORS = {"serial": "black", "simultaneous": "tab:blue", "adaptive": "tab:blue", "fixed": "tab:red"}
Record = dict[str, Any]


class Records:
    """A log that keeps the records."""

    def __init__(self) -> None:
        self.records: list[Record] = []

    def step(self, record: Record) -> None:
        self.records.append(record)

    def warn(self, message: str) -> None:
        print(message, flush=True)


def network(*arguments: str, comm: Comm | None = None) -> tuple[Network, Tensors]:
    """Network and data of a configuration."""
    config = parse(list(arguments))
    dataset = data.load(config.data, config.run.seed)
    examples = Examples(dataset.features, dataset.classes, dataset.shift, dataset.scale)
    net = build(config, examples, comm or Comm())
    return net, Tensors.of(dataset, net.classifier.weight)


def trained(*arguments: str) -> tuple[Record, list[Record]]:
    """Result and records of a run on one rank."""
    net, tensors = network(*arguments)
    log = Records()
    result = fit(net, tensors, log)
    return result, log.records
