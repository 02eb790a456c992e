"""What a mini-batch should start from: the τ of each example, the means of its class, or none (a coarse start)."""

import argparse
import json
import statistics

from common import COMMON, SIMULTANEOUS, Record, trained
from compare import smoothed
from matplotlib import pyplot as plt

KINDS = ("none", "class", "examples", "auto")


def warm(args: argparse.Namespace) -> Record:
    """Residuals after the one sweep of a step, and estimated gradient errors, for each kind of start."""
    found: Record = {}
    _, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for problem, axis in zip(("peaks", "digits"), axes, strict=True):
        found[problem] = {}
        for kind in KINDS:
            # The loosest control, so that every step is one sweep each way.
            given = (*SIMULTANEOUS, f"--oneshot.warm={kind}", "--control.gradient_tol=0.99", *args.more)
            result, records = trained(problem, *COMMON, *given)
            one = [r for r in records if not r["cycles_forward"]]
            steps, residuals = [r["step"] for r in one], [r["residuals_forward"][0] for r in one]
            axis.semilogy(steps, smoothed(residuals), label=kind)
            last = one[len(one) // 2 :]
            found[problem][kind] = {
                "state_residual": statistics.median(r["residuals_forward"][0] for r in last),
                "adjoint_residual": statistics.median(r["residuals_adjoint"][0] for r in last),
                "gradient_error": statistics.median(r["gradient_error"] for r in last),
                "train_loss": result["train_loss"],
                "val_accuracy": result["val_accuracy"],
            }
            print(problem, kind, json.dumps(found[problem][kind]), flush=True)
        axis.set(title=f"{problem}, 256 layers, T = 5", xlabel="step", ylabel="residual of the states")
        axis.legend(title="start from")
    return found
