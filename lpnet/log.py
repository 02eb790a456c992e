"""The run folder and the progress bar; the only part of a run that speaks, and it does so on rank 0.

config.yaml     the whole configuration, which --config reads
metrics.jsonl   one JSON object a line for each step, written at once
model.h5        weights and configuration (see `lpnet.modelfile`)
summary.json    the results: with it a run is finished
history.png     loss and accuracies over the steps
regions.png     for data in the plane: the class of each point
trace.json      with run.profile: what each rank did when (see `lpnet.trace`)
checkpoints/    from which a run can go on (see `lpnet.resume`)
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from lpnet import folders
from lpnet.commandline import dump
from lpnet.config import Config
from lpnet.data import DataSet
from lpnet.errors import OutputError, utf8
from lpnet.history import History, records, unpacked
from lpnet.launch import written
from lpnet.phases import phase
from lpnet.rundir import CONFIG, METRICS, SUMMARY, TRACE
from lpnet.slab import Comm
from lpnet.trace.profile import Profile, first_of


class RunLog:
    """Writes down a run; ranks other than 0 write nothing. Collective.

    Args:
        comm: the ranks.
        folder: of the run.
        config: of the run.
        steps: how many there will be.
        done: how many there are already,
        history: and what `packed` said of them.

    Attributes:
        failure: why the record of a step could not be written; empty: all could.
    """

    def __init__(
        self, comm: Comm, folder: Path, config: Config, steps: int, done: int = 0, history: bytes = b""
    ) -> None:
        self.comm, self.folder, self.config, self.failure = comm, folder, config, ""
        self.speaks = comm.rank == 0
        self._history: History | None = None
        self._bar: Any = None
        self._validated: float | None = None
        self._steps, self._done, self._before = steps, done, history
        self._profile = profile_of(comm, folder, config, steps, done)

    def begin(self) -> None:
        """Steps will come: only now anything in the folder is written, or written anew; collective.

        Raises:
            OutputError: the folder cannot be written to.
            InputError: the history is none of so many steps; nothing was changed.
        """
        config, done = self.config, self._done
        self._profile.after(done)
        with written(self.comm, self.folder):
            if self.speaks:
                self._history = History(self.folder / METRICS, unpacked(self._before, done))  # by which a run is known
                folders.write_text(self.folder / CONFIG, dump(config))
        self._before = b""
        if self.speaks:
            shown = sys.stderr.isatty() if config.run.progress is None else config.run.progress
            self._bar = tqdm(
                total=self._steps, initial=done, desc=config.preset, unit="step", disable=not shown, dynamic_ncols=True
            )

    def step(self, record: dict[str, Any]) -> None:
        """Write the record of a step, whatever happens afterwards; collective.

        Where rank 0 cannot, it says so in `failure`: the others would not hear of an exception.
        """
        self._profile.after(record["step"])
        if self._history is None or self.failure:
            return
        try:
            self._history.add(json.dumps(_plain(record), allow_nan=False))
        except OSError as error:
            self.failure = f"{str(self._history.path)!r} cannot be written ({folders.reason(error)})"
        self._validated = record.get("val_accuracy", self._validated)
        shown = {"loss": f"{record['loss']:.4g}"}
        more = {} if self._validated is None else {"validation": f"{self._validated:.1%}"}
        self._bar.set_postfix(shown | more, refresh=False)
        self._bar.update()

    def packed(self) -> bytes:
        """All records so far, for a checkpoint; nothing on ranks other than 0."""
        if self._history is None or self.failure:
            return b""
        try:
            return self._history.packed()
        except OSError as error:
            raise OutputError(f"{str(self._history.path)!r} cannot be written ({folders.reason(error)})") from None

    def warn(self, message: str) -> None:
        """A line on standard error."""
        if self.speaks:
            tqdm.write(f"lpnet.train: warning: {utf8(message)}", file=sys.stderr)

    def say(self, message: str) -> None:
        """A line on standard output."""
        if self.speaks:
            tqdm.write(utf8(message), file=sys.stdout)
            sys.stdout.flush()

    def trained(self) -> None:
        """All steps are done; collective."""
        self._profile.finish()

    def close(self) -> None:
        """No more steps."""
        self._profile.drop()
        if self._bar is not None:
            self._bar.close()
        if self._history is not None:
            self._history.close()
            self._history = None

    def summarize(self, summary: dict[str, Any]) -> None:
        """Write the results; collective.

        Raises:
            OutputError: the disk refuses.
        """
        with written(self.comm, self.folder / SUMMARY):
            if self.speaks:
                text = json.dumps(_plain(summary), indent=2, allow_nan=False)
                folders.write_text(self.folder / SUMMARY, text + "\n")

    def draw(self, plain: nn.Module | None, data: DataSet, like: torch.Tensor) -> None:
        """Draw the pictures; collective.

        Args:
            plain: for examples with two features the network as an ordinary module, normalised features (n, 2) to
                logits: rank 0 calls it alone, while the others wait. None: there is no picture of the regions.
            data: the examples.
            like: a tensor of the dtype and on the device of the network.

        Raises:
            OutputError: the disk refuses.
        """
        with written(self.comm, self.folder):
            if self.speaks:
                self._draw(plain, data, like)

    def _draw(self, plain: nn.Module | None, data: DataSet, like: torch.Tensor) -> None:
        from lpnet import plots  # matplotlib takes a second to load, which only rank 0 needs to spend

        with phase(self.comm, "picture"):
            plots.history(records(self.folder / METRICS, plots.DRAWN), self.folder / "history.png")
        if plain is None:
            return

        def layer(*_: Any) -> None:
            with phase(self.comm, "layer"):
                pass  # whoever watches sees that it goes on

        def classes(points: np.ndarray) -> np.ndarray:
            with torch.no_grad(), phase(self.comm, "points"):
                found: np.ndarray = plain(torch.from_numpy(points).to(like)).argmax(dim=1).cpu().numpy()
                return found

        for part in plain.modules():
            part.register_forward_pre_hook(layer)
        with phase(self.comm, "picture"):
            plots.decision_regions(classes, data, self.folder / "regions.png", title=self.config.preset)


def profile_of(comm: Comm, folder: Path, config: Config, steps: int, done: int = 0) -> Profile:
    """The trace that the configuration asks for, of steps with all layers that are still to be done."""
    count = min(config.run.profile_steps, steps - done) if config.run.profile else 0
    *_, begin, _ = (0, *config.multilevel.ends(steps))
    return Profile(comm, folder / TRACE, first_of(max(begin, done), steps, count), count)


def _plain(value: Any) -> Any:
    """For strict JSON: null for numbers that are not finite."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
