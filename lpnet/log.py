"""The run folder and the progress bar; the only part of a run that speaks, and it does so on rank 0.

config.yaml     the whole configuration, which --config reads
metrics.jsonl   one JSON object a line for each step, written at once
summary.json    the results, when the run is done
model.h5        weights and configuration (see `lpnet.modelfile`)
history.png     loss and accuracies over the steps
regions.png     for data in the plane: the class of each point
trace.json      with run.profile: what each rank did when (see `lpnet.trace`)
"""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch
from tqdm import tqdm

from lpnet.commandline import dump
from lpnet.config import Config
from lpnet.data import DataSet
from lpnet.errors import InputError
from lpnet.launch import share, together
from lpnet.slab import Comm
from lpnet.trace.profile import Profile, first_of

METRICS, SUMMARY, CONFIG, MODEL = "metrics.jsonl", "summary.json", "config.yaml", "model.h5"
TRACE = "trace.json"


def new_folder(comm: Comm, config: Config) -> Path:
    """Make the run folder on rank 0; its name on all ranks. Collective.

    Raises:
        InputError: the folder cannot be made or written to, or is not empty.
    """
    made = ""
    with together(comm):
        if comm.rank == 0:
            made = str(_given(config.run.dir) if config.run.dir is not None else _fresh(config.preset))
    return Path(share(comm, made))


def _given(name: str) -> Path:
    folder = Path(name).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        filled = any(folder.iterdir())
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        raise _unwritable(name, getattr(error, "strerror", None) or str(error)) from None
    if filled:
        raise InputError(f"run.dir: {name!r} given, which is not empty; a new or an empty folder allowed")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise _unwritable(name, "not writable")
    return folder


def _unwritable(name: str, why: str) -> InputError:
    return InputError(f"run.dir: {name!r} given ({why}), a folder that can be written to allowed")


def _fresh(preset: str) -> Path:
    """runs/PRESET-TIME, with a number behind it if another run began in the same second."""
    name = f"runs/{preset}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in range(1, 1000):
        folder = Path(name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise InputError(
                f"run.dir: nothing given, and {str(folder)!r} cannot be made ({error.strerror}); give a folder"
            ) from None
        return folder
    raise InputError(f"run.dir: nothing given, and {name} to {name}-999 exist; give a folder")


class RunLog:
    """Writes down a run; ranks other than 0 write nothing. Collective.

    Args:
        comm: the ranks.
        folder: of the run, from `new_folder`.
        config: of the run.
        steps: how many there will be.
    """

    def __init__(self, comm: Comm, folder: Path, config: Config, steps: int) -> None:
        self.speaks, self.folder, self.config = comm.rank == 0, folder, config
        self.records: list[dict[str, Any]] = []
        self._metrics: TextIO | None = None
        self._bar: Any = None
        self._profile = profile_of(comm, folder, config, steps)
        self._profile.after(0)
        if self.speaks:
            write_text(folder / CONFIG, dump(config))
            self._metrics = (folder / METRICS).open("w", encoding="utf-8")
            shown = sys.stderr.isatty() if config.run.progress is None else config.run.progress
            self._bar = tqdm(total=steps, desc=config.preset, unit="step", disable=not shown, dynamic_ncols=True)

    def step(self, record: dict[str, Any]) -> None:
        """Write the record of a step, whatever happens afterwards; collective."""
        self._profile.after(record["step"])
        if not self.speaks or self._metrics is None:
            return
        self.records.append(record)
        self._metrics.write(json.dumps(_plain(record), allow_nan=False) + "\n")
        self._metrics.flush()
        shown = {"loss": f"{record['loss']:.4g}"}
        last = next((r for r in reversed(self.records) if "val_accuracy" in r), None)
        self._bar.set_postfix(shown | ({"validation": f"{last['val_accuracy']:.1%}"} if last else {}), refresh=False)
        self._bar.update()

    def warn(self, message: str) -> None:
        """A line on standard error."""
        if self.speaks:
            tqdm.write(f"lpnet.train: warning: {message}", file=sys.stderr)

    def say(self, message: str) -> None:
        """A line on standard output."""
        if self.speaks:
            tqdm.write(message, file=sys.stdout)
            sys.stdout.flush()

    def trained(self) -> None:
        """All steps are done; collective."""
        self._profile.finish()

    def close(self) -> None:
        """No more steps."""
        self._profile.drop()
        if self._metrics is not None:
            self._bar.close()
            self._metrics.close()
            self._metrics = None

    def summarize(self, summary: dict[str, Any]) -> None:
        """Write the results."""
        if self.speaks:
            write_text(self.folder / SUMMARY, json.dumps(_plain(summary), indent=2, allow_nan=False) + "\n")

    def draw(self, plain: Callable[[torch.Tensor], torch.Tensor], data: DataSet, like: torch.Tensor) -> None:
        """Draw the pictures.

        Args:
            plain: the network as an ordinary module, normalised features (n, 2) to logits: rank 0 calls it alone.
            data: the examples.
            like: a tensor of the dtype and on the device of the network.
        """
        if not self.speaks:
            return
        from lpnet import plots  # matplotlib takes a second to load, which only rank 0 needs to spend

        plots.history(self.records, self.folder / "history.png")
        if data.features != 2:
            return

        def classes(points: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                found: np.ndarray = plain(torch.from_numpy(points).to(like)).argmax(dim=1).cpu().numpy()
                return found

        plots.decision_regions(classes, data, self.folder / "regions.png", title=self.config.preset)


def profile_of(comm: Comm, folder: Path, config: Config, steps: int) -> Profile:
    """The trace that the configuration asks for, of steps with all layers."""
    count = min(config.run.profile_steps, steps) if config.run.profile else 0
    *_, begin, _ = (0, *config.multilevel.ends(steps))
    return Profile(comm, folder / TRACE, first_of(begin, steps, count), count)


def write_text(path: Path, text: str) -> None:
    """Write a file that is there as a whole or not at all."""
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def _plain(value: Any) -> Any:
    """For strict JSON: null for numbers that are not finite."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
