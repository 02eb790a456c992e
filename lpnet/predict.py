"""Predict classes with a trained network, by exact serial propagation.

    python -m lpnet.predict RUNDIR data.npz [--out predictions.npz]

Reads RUNDIR/model.h5, and raw features (n, features) from a .npz, .h5, .hdf5 or .csv file. Writes ``class`` (n,) and
``probabilities`` (n, classes) to --out. Where the file has labels too, it prints the accuracy. Works on any number of
ranks. Exit codes: see `lpnet.launch`.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from lpnet import folders, launch, modelfile, sameness
from lpnet.arguments import Parser
from lpnet.data import read_examples
from lpnet.errors import InputError
from lpnet.launch import Answer, together
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
        raw, labels = read_examples(
            options.data,
            features=options.features or stored.config.data.features,
            labels=options.labels or stored.config.data.labels,
            width=stored.examples.features,
            classes=stored.examples.classes,
        )
        if comm.rank == 0:
            folders.check_file(Path(options.out), "--out")
    net = modelfile.restore(stored, comm)
    logits = predict(net, net.normalized(raw))
    if comm.rank:
        return
    probabilities = torch.softmax(logits.double(), dim=1).numpy()
    classes = probabilities.argmax(axis=1)
    with Path(options.out).open("wb") as file:
        np.savez(file, **{"class": classes, "probabilities": probabilities})
    accuracy = "" if labels is None else f", accuracy {np.mean(classes == labels):.2%} (exact evaluation)"
    print(f"{len(classes)} examples{accuracy}, in {options.out}")


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
