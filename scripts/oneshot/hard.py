"""Training from random weights without smoothing: true gradient errors under control, and by a fixed schedule."""

import argparse
import math
import statistics

from common import COLORS, SIMULTANEOUS, Record, network
from matplotlib import pyplot as plt
from torch import Tensor
from torch.nn.functional import cross_entropy

import lpnet
from lpnet import cost
from lpnet.network import Network
from lpnet.training.evaluation import evaluate
from lpnet.training.examples import Tensors
from lpnet.training.objective import Objective, descent_of
from lpnet.training.records import critical_path
from lpnet.training.updates import make_optimizer, make_schedule

HARD = (
    "peaks", "--trunk.layers=256", "--trunk.T=5", "--trunk.init=random", "--regularizer.ddt=0", "--data.train=500",
    "--training.batch=null", "--training.steps=300", "--run.dtype=float64",
)  # fmt: skip
PUBLISHED = {"coarsening": 16, "relaxation": "FCF", "coarse": "rediscretized", "coarse_weights": "inject"}
TOLERANCE = 0.05


def hard(args: argparse.Namespace) -> Record:
    """True gradient errors at every step of a training from random weights without smoothing: control, and 2 + 1."""
    fixed = (f"--solver.{way}.{k}={v}" for way in ("forward", "adjoint") for k, v in PUBLISHED.items())
    twin, _ = network(*HARD, *fixed, "--solver.forward.cycles=2", "--solver.adjoint.cycles=1", *args.more)
    net, tensors = network(*HARD, *SIMULTANEOUS, f"--control.gradient_tol={TOLERANCE}", *args.more)
    config, n = net.config, len(tensors.train_y)
    optimizer = make_optimizer(config.optimizer, net.parameters())
    schedule = make_schedule(config.schedule, optimizer, config.training.total_steps(n))
    descent = descent_of(net, optimizer, Objective(net), n)
    rows: list[Record] = []
    for _ in range(config.training.total_steps(n)):
        twin.load_state_dict(net.state_dict())
        with lpnet.exact(twin):
            truth = gradient(twin, tensors)
        errors = {"fixed": error(gradient(twin, tensors), truth)}
        seen = inputs_of(net)
        loss = descent.evaluate(tensors.train_x, tensors.train_y).item()
        errors["adaptive"] = error([*weights_of(net), seen.pop()], truth)
        progress = descent.progress(loss, 0.0)
        descent.update()
        schedule.step()
        rows.append({"loss": loss, "estimate": progress.gradient_error, "exact": progress.exact, **errors})
        cycles = net.trunk.info.control.cycles[0] if net.trunk.info.control is not None else 0
        rows[-1] |= {"cycles": cycles, "critical_path": critical_path(net)}
    return hard_figure(rows, evaluate(net, tensors), config.trunk.layers)


def hard_figure(rows: list[Record], after: Record, layers: int) -> Record:
    """The picture of `hard`, and its numbers."""
    _, (upper, lower) = plt.subplots(2, 1, figsize=(7, 5.4), sharex=True, layout="constrained", height_ratios=(3, 1))
    for name, label in (("fixed", "2 + 1 cycles, FCF, rediscretised, injected"), ("adaptive", "simultaneous, control")):
        upper.semilogy([r[name] for r in rows], color=COLORS[name], lw=1, label=f"true error: {label}")
    upper.semilogy([r["estimate"] for r in rows], color="tab:cyan", lw=0.7, label="estimated error of the schedule")
    upper.axhline(TOLERANCE, color="gray", lw=0.8, label="tolerance")
    upper.set(ylabel="relative gradient error", title="peaks, 256 layers, random weights, no smoothing")
    upper.legend(fontsize=8)
    lower.step(range(len(rows)), [r["cycles"] for r in rows], color="tab:blue")
    lower.set(xlabel="step", ylabel="cycles each way")
    return {
        "tolerance": TOLERANCE,
        "within_tolerance": statistics.fmean(r["adaptive"] <= TOLERANCE for r in rows),
        "parallel": statistics.fmean(not r["exact"] for r in rows),
        "largest_error": max(r["adaptive"] for r in rows),
        "largest_error_fixed": max(r["fixed"] for r in rows),
        "fixed_above_1": statistics.fmean(r["fixed"] > 1 for r in rows),
        "work_over_serial": statistics.fmean(r["critical_path"] for r in rows) / cost.serial_work(layers).total,
        "train_accuracy": after["train_accuracy"],
        "val_accuracy": after["val_accuracy"],
    }


def inputs_of(net: Network) -> list[Tensor]:
    """A list that the next backward passes append the gradients of the trunk's input to."""
    seen: list[Tensor] = []
    net.trunk._backward_hooks.clear()
    net.trunk.register_full_backward_hook(lambda *of: seen.append(of[1][0]))
    return seen


def weights_of(net: Network) -> list[Tensor]:
    """Gradients of the trunk's weights."""
    return [p.grad.clone() for p in net.trunk.theta.values() if p.grad is not None]


def gradient(net: Network, tensors: Tensors) -> list[Tensor]:
    """Gradients of all weights of the trunk, and of its input, on all examples."""
    net.zero_grad()
    seen = inputs_of(net)
    cross_entropy(net(tensors.train_x), tensors.train_y).backward()
    return [*weights_of(net), seen.pop()]


def error(found: list[Tensor], truth: list[Tensor]) -> float:
    """The larger of the relative errors of all weights together and of the input."""
    def norm(parts: list[Tensor]) -> float:
        return math.sqrt(sum(float(p.square().sum()) for p in parts))

    *differences, last = (a - b for a, b in zip(found, truth, strict=True))
    return max(norm(differences) / norm(truth[:-1]), norm([last]) / norm(truth[-1:]))
