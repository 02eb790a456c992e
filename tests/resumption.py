"""Small trainings that are stopped by a signal and go on from their checkpoint."""

from pathlib import Path
from typing import Any

from small_runs import network
from torch import Tensor, nn

from lpnet.checkpoint.content import Content
from lpnet.checkpoint.store import Checkpoints
from lpnet.config import Trunk
from lpnet.errors import Stopped
from lpnet.multilevel import Ascent
from lpnet.slab import Comm
from lpnet.training.keeper import Around, Keeper
from lpnet.training.levels import Training


class Told:
    """A log that keeps the records and the warnings."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []
        self.warnings: list[str] = []

    def step(self, record: dict[str, Any]) -> None:
        self.records.append(record)

    def warn(self, message: str) -> None:
        self.warnings.append(message)


class Trained:
    """A training with checkpoints in a folder; goes on from the newest of them, if there is one.

    Args:
        comm: the ranks.
        folder: of the checkpoints.
        arguments: of the run.
        stop: the step at whose end a signal is there; None: there is none.
    """

    def __init__(self, comm: Comm, folder: Path, arguments: tuple[str, ...], stop: int | None = None) -> None:
        store, stored, layers, ascent = Checkpoints(comm, folder, 2), None, None, Ascent()
        if comm.agree(int(comm.rank == 0 and folder.exists())):
            stored = store.newest(self._refuse)
            layers, ascent = stored.meta["layers"], Ascent.of(stored.meta["ascent"])
        self.log, (net, data) = Told(), network(*arguments, layers=layers, comm=comm)
        self.stop, options = stop, net.built_from.run
        around = Around(self._content, signal=self._signal)
        keeper = Keeper(store, around, options.checkpoint_every, options.checkpoint_warm, stored)
        self.training = Training(net, data, self.log, keeper, ascent)
        self.record: dict[str, Any] = {}
        try:
            self.record = self.training.run()
        except Stopped:
            self.stopped = True

    @staticmethod
    def _refuse(message: str) -> None:
        raise AssertionError(message)

    def _content(self) -> Content:
        training = self.training
        return Content({"layers": training.net.trunk.layers, "ascent": training.ascent.state()})

    def _signal(self) -> int:
        return 15 * (self.stop is not None and self.log.records[-1]["step"] == self.stop)

    def weights(self) -> list[Tensor]:
        """Of this rank."""
        return [p.detach() for p in self.training.net.parameters()]


def dropping(trunk: Trunk) -> nn.Module:
    """A layer with dropout, in the place of that of a configuration."""
    return nn.Sequential(nn.Linear(trunk.width, trunk.width), nn.Tanh(), nn.Dropout(0.3))


def timeless(found: Any) -> Any:
    """Without what the clock says, on all levels."""
    if isinstance(found, dict):
        return {key: timeless(value) for key, value in found.items() if key != "seconds"}
    return [timeless(value) for value in found] if isinstance(found, list) else found
