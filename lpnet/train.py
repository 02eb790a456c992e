"""Train a network in parallel over its layers: the main job.

    python -m lpnet.train [PRESET] [--config FILE.yaml] [--section.key VALUE ...]
    python -m lpnet.train [PRESET] ... --dry-run [--ranks P] [--fabric NAME]      what it would take, see `lpnet.dryrun`
    mpirun -n 4 python -m lpnet.train digits --trunk.layers 256 --run.dir runs/mine

Exit codes: see `lpnet.launch`.
"""

import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from lpnet import data, devices, launch, modelfile, sameness, watchdog
from lpnet.choices import Solver, Solvers, one_of, require
from lpnet.commandline import Trial, leaves, parse_run
from lpnet.config import Config
from lpnet.control import Adaptive
from lpnet.data import DataSet
from lpnet.dryrun import LARGEST, forecast
from lpnet.errors import NonFiniteError
from lpnet.fabrics import FABRICS
from lpnet.launch import Answer
from lpnet.log import MODEL, RunLog, new_folder
from lpnet.network import Examples, Network, build, check_opening
from lpnet.options import Serial, SolverOptions
from lpnet.plan import plan
from lpnet.presets import PRESETS
from lpnet.slab import Comm
from lpnet.training.examples import Tensors
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
        config, trial = parse_run(arguments)
    sameness.require_same(comm, {key: attrgetter(key)(config) for key in ("preset", *leaves())})
    with launch.together(comm):
        dataset = data.load(config.data, config.run.seed)
        config = fitted(config, dataset)
    if trial is not None:
        raise Answer("\n".join(outlook(config, dataset, comm, trial)))
    with watchdog.watching(comm, NAME, config.run.stall):
        train(comm, config, dataset, start)


def train(comm: Comm, config: Config, dataset: DataSet, start: float) -> None:
    """The run of a configuration, which began at this time of `time.perf_counter`; collective."""
    device = set_up(config, comm)
    if config.run.device == "auto":
        config = dataclasses.replace(config, run=dataclasses.replace(config.run, device=device.type))
    folder = new_folder(comm, config)
    examples = Examples(dataset.features, dataset.classes, dataset.shift, dataset.scale)
    first, *_ = config.multilevel.layers(config.trunk.layers)
    net = build(config, examples, comm, device, None if config.solver.auto else first)
    tensors = Tensors.of(dataset, net.classifier.weight)
    found: list[str] = []
    if config.solver.auto:
        config, found = planned(net, tensors)
        net = build(config, examples, comm, device, first)
    steps = config.training.total_steps(len(dataset.train_y))
    log = RunLog(comm, folder, config, steps)
    if config.schedule.warmup > steps // 2:
        log.warn(f"schedule.warmup: {config.schedule.warmup} given, shortened to half of the {steps} steps")
    log.say(f"{config.preset}: {config.trunk.layers} layers on {comm.size} rank{'s' * (comm.size > 1)}, in {folder}")
    for line in found:
        log.say(line)
    training = Training(net, tensors, log)
    try:
        record = training.run()
        log.trained()
    except NonFiniteError as error:
        modelfile.save(folder / MODEL, training.net)
        raise NonFiniteError(f"{error}: {folder / MODEL}") from None
    finally:
        log.close()
    for line in described(record.get("levels", [])):
        log.say(line)
    report(training.net, dataset, log, summary(config, record, comm, time.perf_counter() - start))


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
        device, found = set_up(config, Comm()), [f"{config.preset}: a dry run, nothing is trained or written"]
        if config.solver.auto:
            net = build(config, Examples(dataset.features, dataset.classes), Comm(), device)
            config, more = planned(net, Tensors.of(dataset, net.classifier.weight), ranks)
            found += more
        return found + forecast(config, dataset, ranks, trial.fabric).lines()


def set_up(config: Config, comm: Comm) -> torch.device:
    """Threads, determinism and this rank's device; collective."""
    devices.set_threads(comm, config.run.threads)
    if config.run.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    device = devices.own(config.run.device, comm) or torch.device("cpu")
    devices.use(device, comm)
    return device


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
    """Model, summary and pictures into the run folder, and a line to read; collective."""
    folder: Path = log.folder
    modelfile.save(folder / MODEL, net)
    plain = net.as_sequential().eval()
    log.summarize(results)
    log.draw(plain, dataset, net.classifier.weight)
    if results["serial_steps"] and not all(isinstance(s, Serial) for s in _solvers(net)):
        log.say(f"{results['serial_steps']} of {results['steps']} steps took the gradient of the exact chain")
    log.say(
        f"{results['steps']} steps in {results['wall_s']:.1f} s: loss {results['loss']:.4g}, accuracy "
        f"{results['train_accuracy']:.2%} training, {results['val_accuracy']:.2%} validation (exact evaluation)"
    )


def _solvers(net: Network) -> tuple[SolverOptions, SolverOptions]:
    return net.trunk.forward_solver, net.trunk.adjoint_solver


if __name__ == "__main__":
    sys.exit(main())
