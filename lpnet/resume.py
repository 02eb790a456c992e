"""Going on with a run that was stopped, on any number of ranks.

    python -m lpnet.train --resume RUNDIR [--run.threads 2 ...]

The newest checkpoint that is whole says all: configuration, state and history (`lpnet.runstate`). `metrics.jsonl` is
written anew from it, so that the lines of steps which are done again are not there twice.
"""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lpnet.asked import Resume
from lpnet.checkpoint.store import FOLDER, Checkpoints
from lpnet.checkpoint.stored import Stored, believed
from lpnet.commandline import from_mapping
from lpnet.config import Config
from lpnet.errors import InputError, warn
from lpnet.launch import Answer, together
from lpnet.multilevel import Ascent
from lpnet.rundir import METRICS, SUMMARY, has_checkpoints
from lpnet.slab import Comm
from lpnet.training.levels import Training
from lpnet.training.warm import matters

FOREIGN = "it is of no run of lpnet.train"


@dataclass(frozen=True)
class Left:
    """A run as its checkpoint left it.

    Attributes:
        stored: the checkpoint.
        config: of the run, with what is to change.
        layers: of the level that is under way.
        ascent: through the levels.
        done: steps done.
        seconds: of all runs so far.
        resumed: how often it went on already.
        data: the fingerprint of its examples.
        history: packed, on rank 0.
    """

    stored: Stored
    config: Config
    layers: int
    ascent: Ascent
    done: int
    seconds: float
    resumed: int
    data: int
    history: bytes

    def require_data(self, fingerprint: int) -> None:
        """Require that the examples are those of the run.

        Raises:
            InputError: they are not.
        """
        if fingerprint != self.data:
            name = self.config.data.name if self.config.data.path is None else self.config.data.path
            raise InputError(f"--resume: a run on other examples than those of {name!r} now given, the same needed")


def left(comm: Comm, folder: Path, asked: Resume) -> Left:
    """What the run in this folder has left; collective.

    Raises:
        Answer: it is finished.
        InputError: there is no checkpoint of a run that is whole, or its configuration is none here.
    """
    with together(comm):
        finished = comm.rank == 0 and _is_finished(folder)
    if comm.agree(int(finished)):
        raise Answer(f"{folder}: this run is finished, nothing is left to do")

    def tell(text: str) -> None:
        if comm.rank == 0:
            warn(text)

    found = Checkpoints(comm, folder / FOLDER, 1).newest_as(tell, lambda stored: _found(stored, comm.rank == 0))
    with together(comm), believed(found["stored"], FOREIGN):  # faults of this machine or lpnet are none of the file
        return Left(**found | {"config": asked.of(from_mapping(found["config"]))})


def _is_finished(folder: Path) -> bool:
    """Whether the results are there, which are written last.

    Raises:
        InputError: there is not even a checkpoint.
    """
    if (folder / SUMMARY).is_file():
        with suppress(OSError, ValueError, TypeError), (folder / SUMMARY).open(encoding="utf-8") as file:
            return "steps" in json.load(file)  # else it is none of ours
    if not (folder / METRICS).exists() and not (folder / FOLDER).exists():
        raise InputError(f"--resume: {str(folder)!r} given (no run of lpnet.train), the folder of a run allowed")
    if (folder / METRICS).exists() and not has_checkpoints(folder):
        allowed = f"one with a checkpoint allowed (or begin anew with --run.dir {folder})"
        raise InputError(f"--resume: {str(folder)!r} given, a run that ended before its first checkpoint; {allowed}")
    return False


def _found(stored: Stored, first: bool) -> dict[str, Any]:
    """The attributes of `Left`, with the configuration as the file has it."""
    with believed(stored, FOREIGN):
        run = stored.meta["run"]
        return {
            "stored": stored,
            "config": run["config"],
            "layers": int(run["layers"]),
            "ascent": Ascent.of(run["ascent"]),
            "done": int(stored.meta["course"]["done"]),
            "seconds": float(run["seconds"]),
            "resumed": int(run["resumed"]),
            "data": int(run["data"]),
            "history": bytes(stored.whole("history").numpy()) if first else b"",
        }


def cold(left: Left, training: Training) -> str:
    """A warning where the run cannot be as if it had never stopped; empty: it can."""
    if "warm" in left.stored.meta or not matters(training.net.trunk):
        return ""
    return (
        "run.checkpoint_warm: false when the checkpoint was written, so the next solves start from nothing, and the "
        "history is not that of a run which never stopped"
    )
