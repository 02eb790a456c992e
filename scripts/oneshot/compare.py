"""Losses and accuracies of simultaneous training next to serial training, after the same number of steps."""

import argparse
import json
import statistics

import numpy as np
from common import COLORS, COMMON, SERIAL, SIMULTANEOUS, Record, trained
from matplotlib import pyplot as plt

PROBLEMS = ("peaks", "swissroll", "digits")


def compare(args: argparse.Namespace) -> Record:
    """Mean over seeds of loss, accuracy and layer evaluations at the end, simultaneous over serial."""
    found: Record = {}
    _, axes = plt.subplots(1, len(PROBLEMS), figsize=(4.2 * len(PROBLEMS), 3.6), layout="constrained")
    for problem, axis in zip(PROBLEMS, axes, strict=True):
        results: dict[str, list[Record]] = {}
        for name, method in (("serial", SERIAL), ("simultaneous", SIMULTANEOUS)):
            for seed in range(args.seeds):
                result, records = trained(problem, *COMMON, *method, f"--run.seed={seed}", *args.more)
                results.setdefault(name, []).append(result)
                steps, losses = [r["step"] for r in records], smoothed([r["loss"] for r in records])
                axis.semilogy(steps, losses, color=COLORS[name], lw=0.8, alpha=0.7, label=name if not seed else None)
        found[problem] = compared(**results)
        print(problem, json.dumps(found[problem]), flush=True)
        axis.set(title=f"{problem}, 256 layers, T = 5", xlabel="step", ylabel="loss of the batch (mean of 20 steps)")
        axis.legend(title=f"{args.seeds} seeds")
    return found


def smoothed(values: list[float], width: int = 20) -> np.ndarray:
    """Mean over the last `width` values."""
    sums = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - width)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def compared(serial: list[Record], simultaneous: list[Record]) -> Record:
    """What the issue asks of the two lists of results."""
    def mean(results: list[Record], key: str) -> float:
        return statistics.fmean(r[key] for r in results)

    keys = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
    return {
        "serial": {key: mean(serial, key) for key in keys},
        "simultaneous": {key: mean(simultaneous, key) for key in keys},
        "loss_ratio": mean(simultaneous, "train_loss") / mean(serial, "train_loss"),
        "val_accuracy_points": 100 * (mean(simultaneous, "val_accuracy") - mean(serial, "val_accuracy")),
        "train_accuracy_points": 100 * (mean(simultaneous, "train_accuracy") - mean(serial, "train_accuracy")),
        "evaluations_ratio": mean(simultaneous, "layer_evaluations") / mean(serial, "layer_evaluations"),
        "serial_steps": mean(simultaneous, "serial_steps"),
        "largest_gradient_error": max(r["largest_gradient_error"] for r in simultaneous),
        "each": [[s["train_loss"], o["train_loss"]] for s, o in zip(serial, simultaneous, strict=True)],
    }
