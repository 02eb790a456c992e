"""Predict classes with a trained network, by exact serial propagation.

    python -m lpnet.predict RUNDIR data.npz [--out predictions.npz]

Reads RUNDIR/model.h5, and raw features (n, features) from a .npz, .h5, .hdf5 or .csv file. Writes ``class`` (n,) and
``probabilities`` (n, classes) to --out, all at once or not at all. Where the file has labels too, it prints the
accuracy; labels that --labels names must be there. Works on any number of ranks. Exit codes: see `lpnet.launch`.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpnet import folders, launch, modelfile, sameness
from lpnet.arguments import Parser
from lpnet.data import read_examples
from lpnet.errors import InputError, shown
from lpnet.launch import Answer, together, written
from lpnet.rundir import MODEL
from lpnet.slab import Comm
from lpnet.training.evaluation import predict
from lpnet.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict as the arguments say (those of the process, if None); the exit code. Collective."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    return launch.run("lpnet.predict", lambda comm: job(comm, given))


def job(comm: Comm, arguments: Sequence[str]) -> None:
    """From the arguments to the file of predictions; collective."""
    sameness.require_same_start(comm, arguments)
    with together(comm):
        options = parse(arguments)
        stored = modelfile.read(Path(options.rundir) / MODEL)
        keys = stored.config.data
        raw, labels = read_examples(
            options.data,
            features=keys.features if options.features is None else options.features,
            labels=keys.labels if options.labels is None else options.labels,
            width=stored.examples.features,
            classes=stored.examples.classes,
            labelled=options.labels is not None,
        )
        if comm.rank == 0:
            _check_out(options)
    net = modelfile.restore(stored, comm)
    logits, out = predict(net, net.normalized(raw)), Path(options.out)
    with written(comm, out):
        classes = _write(out, logits) if comm.rank == 0 else None
    if classes is not None:
        accuracy = "" if labels is None else f", accuracy {np.mean(classes == labels):.2%} (exact evaluation)"
        print(f"{len(classes)} examples{accuracy}, in {options.out}")


def _write(path: Path, logits: Tensor) -> Any:
    """Write the predictions, all at once or not at all; the classes (n,)."""
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    found: dict[str, Any] = {"class": probabilities.argmax(axis=1), "probabilities": probabilities}
    with folders.replaced(path) as part, part.open("wb") as file:
        np.savez(file, **found)
    return found["class"]


def _check_out(options: argparse.Namespace) -> None:
    """See that the predictions can be written, and are no other file of this command.

    Raises:
        InputError: they cannot, or are.
    """
    out, model = Path(options.out), Path(options.rundir) / MODEL
    for one, what in ((model, "the model"), (Path(options.data), "the examples")):
        if os.path.exists(out) and out.samefile(one.expanduser()):
            raise InputError(f"--out: {shown(options.out)} given, which is {what}, another file allowed")
    folders.check_file(out, "--out")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments, as a namespace.

    Raises:
        InputError: an unknown or missing argument.
        Answer: help or version were asked for.
    """
    parser = Parser(
        prog="lpnet.predict",
        usage="[mpirun -n P] python -m lpnet.predict RUNDIR DATA [--out FILE.npz] [--features KEY] [--labels KEY]",
        description="Predict classes with a network that lpnet.train has trained.",
        add_help=False,
    )
    parser.add_argument("rundir", nargs="?", help="folder of the run, which holds model.h5")
    parser.add_argument("data", nargs="?", help=".npz, .h5, .hdf5 or .csv file with raw features")
    parser.add_argument("--out", default="predictions.npz", help="file for the predictions (predictions.npz)")
    parser.add_argument("--features", help="key of the features (that of the training)")
    parser.add_argument("--labels", help="key of the labels (that of the training)")
    parser.add_argument("-h", "--help", action="store_true", help="print this")
    parser.add_argument("--version", action="store_true", help="print the version")
    options = parser.parse_args(list(arguments))
    if options.help or options.version:
        raise Answer(parser.format_help() if options.help else f"lpnet {__version__}")
    for key in ("rundir", "data"):
        if getattr(options, key) is None:
            raise InputError(f"{key}: nothing given, RUNDIR and DATA needed as in lpnet.predict runs/mine data.npz")
    return options


if __name__ == "__main__":
    launch.command(main)
