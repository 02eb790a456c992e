"""What the checkpoints of a run hold beside the state of its training: what the run is, and its history.

`lpnet.resume` takes it up again.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lpnet.checkpoint.content import Content
from lpnet.checkpoint.store import FOLDER, Checkpoints
from lpnet.checkpoint.stored import Stored
from lpnet.config import Config, as_dict
from lpnet.launch import together
from lpnet.log import RunLog
from lpnet.training.keeper import Around, Keeper
from lpnet.training.levels import Training


def keeper_of(
    log: RunLog, about: Callable[[], dict[str, Any]], signal: Callable[[], int], stored: Stored | None, done: int
) -> Keeper:
    """Keeps the checkpoints of a run.

    Args:
        log: of the run; has its history.
        about: what `about` says of it.
        signal: see `Around`.
        stored: what it goes on from; None: it begins.
        done: steps that are done.
    """

    def content() -> Content:
        packed = b""
        with together(log.comm):
            packed = log.packed()
        history = torch.from_numpy(np.frombuffer(packed, dtype=np.uint8).copy())
        return Content({"run": about()}, {"history": history})

    around = Around(content, log.begin, signal, lambda: log.failure)
    options = log.config.run
    store = Checkpoints(log.comm, log.folder / FOLDER, options.keep, None if stored is None else done)
    return Keeper(store, around, options.checkpoint_every, options.checkpoint_warm, stored)


def about(training: Training, config: Config, seconds: float, resumed: int, data: int) -> dict[str, Any]:
    """What `lpnet.resume.Left` has to know of a run, as values of JSON."""
    return {
        "config": as_dict(config),
        "layers": training.net.trunk.layers,
        "ascent": training.ascent.state(),
        "seconds": seconds,
        "resumed": resumed,
        "data": data,
    }
