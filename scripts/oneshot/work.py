"""Work on the critical path of 32 ranks to 95 % validation accuracy on peaks, by the cost model."""

import argparse
import contextlib
import json
import statistics

import numpy as np
from common import COLORS, SERIAL, SIMULTANEOUS, Record, Records, network
from matplotlib import pyplot as plt

from lpnet import cost
from lpnet.training.loop import fit

# Coarsening and levels that are cheap on 32 ranks, and good enough.
SOLVERS = {256: ("8, 4", 3), 1024: ("16, 4", 3)}
WANTED = 0.95


class Reached(Exception):
    """The accuracy is there."""


class UntilReached(Records):
    """Ends the training as soon as the accuracy is reached."""

    def step(self, record: Record) -> None:
        super().step(record)
        if record.get("val_accuracy", 0.0) >= WANTED:
            raise Reached


def work(args: argparse.Namespace) -> Record:
    """Evaluations of f on the critical path: forward, adjoint, weight gradients, and all that control adds."""
    found: Record = {}
    _, axes = plt.subplots(1, len(SOLVERS), figsize=(5.2 * len(SOLVERS), 3.8), layout="constrained")
    for (layers, (m, levels)), axis in zip(SOLVERS.items(), axes, strict=True):
        solver = {"coarsening": f"[{m}]", "levels": levels}
        options = (f"--solver.{way}.{k}={v}" for way in ("forward", "adjoint") for k, v in solver.items())
        methods = {"serial": SERIAL, "simultaneous": (*SIMULTANEOUS, *options)}
        reached: dict[str, list[float]] = {name: [] for name in methods}
        for seed in range(args.seeds):
            for name, method in methods.items():
                given = ("peaks", f"--trunk.layers={layers}", "--trunk.T=5", f"--run.seed={seed}", *method)
                used, accuracy = curve(until(*given, "--training.validate_every=10", *args.more), name, layers)
                axis.semilogx(used, accuracy, color=COLORS[name], lw=0.9, label=None if seed else name)
                reached[name].append(float(used[-1]) if accuracy[-1] >= WANTED else float("inf"))
        ratio = statistics.fmean(reached["simultaneous"]) / statistics.fmean(reached["serial"])
        found[str(layers)] = {"coarsening": m, "levels": levels, "work": reached, "ratio": ratio}
        print(layers, json.dumps(found[str(layers)]), flush=True)
        axis.axhline(WANTED, color="gray", lw=0.6)
        axis.set(title=f"peaks, {layers} layers, T = 5, m = ({m})", ylabel="validation accuracy (exact evaluation)")
        axis.set(xlabel="evaluations of f on the critical path, 32 ranks (modelled)")
        axis.legend(title=f"{args.seeds} seeds")
    return found


def until(*arguments: str) -> list[Record]:
    """Records of a training up to the accuracy."""
    net, tensors = network(*arguments)
    log = UntilReached()
    with contextlib.suppress(Reached):
        fit(net, tensors, log)
    return log.records


def curve(records: list[Record], name: str, layers: int) -> tuple[np.ndarray, np.ndarray]:
    """Work so far and accuracy, where it was evaluated."""
    serial = cost.serial_work(layers).total
    used = np.cumsum([serial if name == "serial" else r["critical_path"] for r in records])
    at = [i for i, r in enumerate(records) if "val_accuracy" in r]
    return used[at], np.array([records[i]["val_accuracy"] for i in at])
