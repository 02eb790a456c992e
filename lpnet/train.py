"""Train a network in parallel over its layers: the main job.

    python -m lpnet.train [PRESET] [--config FILE.yaml] [--section.key VALUE ...]
    python -m lpnet.train [PRESET] ... --dry-run [--ranks P] [--fabric NAME]      what it would take, see `lpnet.dryrun`
    mpirun -n 4 python -m lpnet.train digits --trunk.layers 256 --run.dir runs/mine
    python -m lpnet.train --resume runs/mine      go on with a run, on any number of ranks, see `lpnet.resume`

Exit codes: see `lpnet.launch`.
"""

import dataclasses
import os
import shlex
import sys
import time
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from lpnet import data, devices, launch, modelfile, resume, runstate, sameness, signals, watchdog
from lpnet.asked import Resume, Trial
from lpnet.choices import Solver, Solvers, one_of, require
from lpnet.commandline import parse_resume, parse_run
from lpnet.config import Config
from lpnet.control import Adaptive
from lpnet.data import DataSet
from lpnet.dryrun import LARGEST, forecast
from lpnet.errors import NonFiniteError, Stopped, counted
from lpnet.fabrics import FABRICS
from lpnet.keys import leaves
from lpnet.launch import Answer
from lpnet.log import RunLog
from lpnet.network import Examples, Network, build, check_opening, require_room
from lpnet.options import Serial, SolverOptions
from lpnet.plan import plan
from lpnet.presets import PRESETS
from lpnet.rundir import MODEL, new_folder, old_folder
from lpnet.slab import Comm
from lpnet.training.examples import Tensors, fingerprint
from lpnet.training.levels import Training, described
from lpnet.training.records import Record
from lpnet.version import __version__

NAME = "lpnet.train"


def main(arguments: Sequence[str] | None = None) -> int:
    """Train as the arguments say (those of the process, if None); the exit code. Collective."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return launch.run(NAME, lambda comm: job(comm, given))


def job(comm: Comm, arguments: Sequence[str]) -> None:
    """One run, from the arguments to the run folder; collective."""
    start = time.perf_counter()
    sameness.require_same_start(comm, arguments)
    with launch.together(comm):
        asked = parse_resume(arguments)
    if asked is None:
        begin(comm, arguments, start)
    else:
        go_on(comm, asked, start)


def begin(comm: Comm, arguments: Sequence[str], start: float) -> None:
    """A new run; collective."""
    with launch.together(comm):
        config, trial = parse_run(arguments)
    require_same_config(comm, config)
    with launch.together(comm):
        dataset = data.load(config.data, config.run.seed)
        config = fitted(config, dataset)
        if trial is None and config.run.device == "cpu":
            require_room(config, Examples(dataset.features, dataset.classes), comm, copies=2.0)  # with gradients
    if trial is not None:
        raise Answer("\n".join(outlook(config, dataset, comm, trial)))
    with watchdog.watching(comm, NAME, config.run.stall), new_folder(comm, config) as folder:
        device, config = set_up(config, comm)
        first, *_ = config.multilevel.layers(config.trunk.layers)
        net = build(config, examples_of(dataset), comm, device, None if config.solver.auto else first)
        found: list[str] = []
        if config.solver.auto:
            config, found = planned(net, Tensors.of(dataset, net.classifier.weight))
            net = build(config, examples_of(dataset), comm, device, first)
        with signals.heeded():
            Run(comm, folder, config, dataset, net, start).do(found)


def go_on(comm: Comm, asked: Resume, start: float) -> None:
    """A run that was stopped; collective."""
    with old_folder(comm, asked.folder) as folder:
        found = resume.left(comm, folder, asked)
        require_same_config(comm, found.config)
        with launch.together(comm):
            dataset = data.load(found.config.data, found.config.run.seed)
        with watchdog.watching(comm, NAME, found.config.run.stall):
            device, config = set_up(found.config, comm)
            net = build(config, examples_of(dataset), comm, device, found.layers)
            with signals.heeded():
                Run(comm, folder, config, dataset, net, start, found).do()


class Run:
    """A run in its folder; collective.

    Args:
        comm: the ranks.
        folder: of the run.
        config: what it is, with all choices made.
        dataset: its examples.
        net: of the level that it begins with, or goes on with.
        start: when it started, by `time.perf_counter`.
        left: what it goes on from; None: it is new.
    """

    def __init__(
        self, comm: Comm, folder: Path, config: Config, dataset: DataSet, net: Network, start: float,
        left: resume.Left | None = None,
    ) -> None:
        self.comm, self.folder, self.config, self.dataset, self.left = comm, folder, config, dataset, left
        self._start = start if left is None else start - left.seconds
        self._resumed = 0 if left is None else left.resumed + 1
        self._data = fingerprint(dataset)
        sameness.require_same(comm, {"data (check sum)": self._data})
        if left is not None:
            with launch.together(comm):
                left.require_data(self._data)
        self.steps, self.done = config.training.total_steps(len(dataset.train_y)), 0 if left is None else left.done
        self.log = RunLog(comm, folder, config, self.steps, self.done, b"" if left is None else left.history)
        if left is None:
            self.log.begin()
        stored = None if left is None else left.stored
        keeper = runstate.keeper_of(self.log, self._about, signals.wanted, stored, self.done)
        tensors, ascent = Tensors.of(dataset, net.classifier.weight), None if left is None else left.ascent
        self.training = Training(net, tensors, self.log, keeper, ascent)

    def _about(self) -> dict[str, Any]:
        return runstate.about(self.training, self.config, self._seconds(), self._resumed, self._data)

    def _seconds(self) -> float:
        return time.perf_counter() - self._start

    def do(self, found: Sequence[str] = ()) -> None:
        """Train, from where it stands to the end, and report; `found`: lines to say before.

        Raises:
            NonFiniteError: the loss, state or gradient stopped being finite; the last good weights are in the folder.
            Stopped: a signal asked for it; there is a checkpoint.
        """
        log, training = self.log, self.training
        self._announce(found)
        try:
            record = training.run()
            log.trained()
        except NonFiniteError as error:
            modelfile.save(self.folder / MODEL, training.net)
            raise NonFiniteError(f"{error}: {self.folder / MODEL}") from None
        except Stopped as error:
            again = f"python -m lpnet.train --resume {shlex.quote(str(self.folder))}"
            raise Stopped(f"{error}; go on with: {again}") from None
        finally:
            log.close()
        for line in described(record.get("levels", [])):
            log.say(line)
        results = summary(self.config, record, self.comm, self._seconds()) | {"resumed": self._resumed}
        report(training.net, self.dataset, log, results)

    def _announce(self, found: Sequence[str]) -> None:
        config, log, ranks = self.config, self.log, self.comm.size
        if config.schedule.warmup > self.steps // 2:
            log.warn(f"schedule.warmup: {config.schedule.warmup} given, shortened to half of the {self.steps} steps")
        where = f"{counted(config.trunk.layers, 'layer')} on {counted(ranks, 'rank')}, in {self.folder}"
        again = f"goes on from step {self.done} of {self.steps}, " if self.left is not None else ""
        log.say(f"{config.preset}: {again}{where}")
        for line in found:
            log.say(line)
        warning = "" if self.left is None else resume.cold(self.left, self.training)
        if warning:
            log.warn(warning)


def require_same_config(comm: Comm, config: Config) -> None:
    """Require that all ranks have the same configuration; collective."""
    sameness.require_same(comm, {key: attrgetter(key)(config) for key in ("preset", *leaves())})


def examples_of(dataset: DataSet) -> Examples:
    """What a network has to know of them."""
    return Examples(dataset.features, dataset.classes, dataset.shift, dataset.scale)


def fitted(config: Config, dataset: DataSet) -> Config:
    """Require what only the data can tell: that batch, trunk and dtype fit them.

    The batch of a preset, which nobody gave, is all examples where there are fewer.
    """
    n, batch = len(dataset.train_y), config.training.batch
    if batch is not None and batch > n and batch == PRESETS[config.preset]["training"]["batch"]:
        config = dataclasses.replace(config, training=dataclasses.replace(config.training, batch=None))
    else:
        require(batch is None or batch <= n, "training.batch", batch, f"at most the {n} training examples")
    config.multilevel.ends(config.training.total_steps(n))
    check_opening(config.trunk, dataset.features)
    if config.run.dtype == "float32":
        largest = float(max(np.abs(dataset.train_x).max(), np.abs(dataset.val_x).max()))
        ok = largest <= float(np.finfo(np.float32).max)
        require(ok, "run.dtype", "float32", f"float64 for features as large as {largest:g}")
    return config


def outlook(config: Config, dataset: DataSet, comm: Comm, trial: Trial) -> list[str]:
    """What the run would take, found by rank 0 alone while the others wait; collective."""
    with launch.together(comm):
        ranks = comm.size if trial.ranks is None else trial.ranks
        require(1 <= ranks <= LARGEST, "--ranks", ranks, f"a whole number from 1 to {LARGEST}")
        one_of("--fabric", trial.fabric, FABRICS)
        if comm.rank:
            return []
        (device, config), found = set_up(config, Comm()), [f"{config.preset}: a dry run, nothing is trained or written"]
        if config.solver.auto:
            net = build(config, Examples(dataset.features, dataset.classes), Comm(), device)
            config, more = planned(net, Tensors.of(dataset, net.classifier.weight), ranks)
            found += more
        return found + forecast(config, dataset, ranks, trial.fabric).lines()


def set_up(config: Config, comm: Comm) -> tuple[torch.device, Config]:
    """Threads, determinism and this rank's device, and the configuration with that in it; collective."""
    devices.set_threads(comm, config.run.threads)
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    device = devices.own(config.run.device, comm) or torch.device("cpu")
    devices.use(device, comm)
    if config.run.device == "auto":
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, device=device.type))
    return device, config


def planned(net: Network, data: Tensors, ranks: int | None = None) -> tuple[Config, list[str]]:
    """The configuration with the solvers of a plan for the first batch, and lines on the plan; collective.

    The plan is for so many ranks; None: for those that there are.
    """
    config, batch = net.config, net.config.training.batch
    x, label = data.train_x[:batch], data.train_y[:batch]
    tol = config.control.gradient_tol if config.control.gradient_tol is not None else Adaptive.gradient_tol
    with torch.no_grad():
        y = net.opening(x)
    found = plan(net.trunk, y, tol, ranks, loss=lambda out: cross_entropy(net.classifier(out), label))
    solver = Solvers(False, Solver.of(found.forward), Solver.of(found.adjoint))
    return dataclasses.replace(config, solver=solver), found.describe()


def summary(config: Config, record: Record, comm: Comm, wall: float) -> dict[str, Any]:
    """What the run amounts to; accuracies and losses at the end are those of an exact, serial evaluation."""
    keys = ("loss", "train_loss", "val_loss", "train_accuracy", "val_accuracy")
    return {
        "preset": config.preset,
        "steps": record["step"],
        "epochs": record["epoch"],
        **{key: record[key] for key in keys},
        "evaluation": "serial",
        "method": config.training.method,
        "serial_steps": record["serial_steps"],
        "diverged_steps": record["diverged_steps"],
        "rollbacks": record["rollbacks"],
        "largest_gradient_error": record["largest_gradient_error"],
        "largest_gradient_error_used": record["largest_gradient_error_used"],
        "layer_evaluations": record["layer_evaluations"],
        **({"levels": record["levels"]} if "levels" in record else {}),
        "ranks": comm.size,
        "layers": config.trunk.layers,
        "wall_s": round(wall, 3),
        "seed": config.run.seed,
        "dtype": config.run.dtype,
        "device": config.run.device,
        "lpnet": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
    }


def report(net: Network, dataset: DataSet, log: RunLog, results: dict[str, Any]) -> None:
    """Model and summary into the run folder, a line to read, and at last the pictures; collective.

    With the summary a run is finished: pictures that take long, or for which there is no room, leave it so.
    """
    modelfile.save(log.folder / MODEL, net)
    log.summarize(results)
    if results["serial_steps"] and not all(isinstance(s, Serial) for s in _solvers(net)):
        log.say(f"{results['serial_steps']} of {results['steps']} steps took the gradient of the exact chain")
    log.say(
        f"{results['steps']} steps in {results['wall_s']:.1f} s; exact evaluation: loss {results['train_loss']:.4g}, "
        f"accuracy {results['train_accuracy']:.2%} training, {results['val_accuracy']:.2%} validation"
    )
    plain = net.as_sequential().eval() if dataset.features == 2 else None
    log.draw(plain, dataset, net.classifier.weight)


def _solvers(net: Network) -> tuple[SolverOptions, SolverOptions]:
    return net.trunk.forward_solver, net.trunk.adjoint_solver


if __name__ == "__main__":
    launch.command(main)
