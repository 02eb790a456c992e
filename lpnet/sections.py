"""Sections of the configuration that say what a run does: regularizer, training, control, oneshot, run."""

import dataclasses
import os
from dataclasses import dataclass
from typing import Literal

import torch

from lpnet import devices
from lpnet.choices import number, one_of, positive, require, whole
from lpnet.control import Adaptive
from lpnet.errors import InputError
from lpnet.recall import KINDS, WarmStates

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass(frozen=True)
class Regularizer:
    """Weights of the terms that are added to the loss.

    Args:
        tikhonov: of the weights of all layers.
        ddt: of the derivative of the weights along the layers, which keeps them smooth in the layer index.
        classifier: of the weights of the classifier.
    """

    tikhonov: float = 0.0
    ddt: float = 0.0
    classifier: float = 0.0

    def __post_init__(self) -> None:
        for key, value in dataclasses.asdict(self).items():
            require(value is not None, f"regularizer.{key}", value, "a number")
            number(f"regularizer.{key}", value)


@dataclass(frozen=True)
class Training:
    """What is done, and for how long.

    Args:
        method: gradient (forward and adjoint solves in each step of an optimizer), or simultaneous (one-shot: the
            weights are updated while states and adjoints converge).
        steps: number of updates; null: epochs are given.
        epochs: number of passes over the training examples, instead of steps.
        batch: examples of a mini-batch; null: all of them in each step.
        validate_every: steps between two exact evaluations (there is always one at the end); null: only that one.
        on_nan: where loss or gradient are not finite, stop (with the last good weights), or rollback: the last update
            is taken back, and the learning rate halved for the rest of the run (at most 10 times in a row).
    """

    method: Literal["gradient", "simultaneous"] = "gradient"
    steps: int | None = 200
    epochs: int | None = None
    batch: int | None = None
    validate_every: int | None = 50
    on_nan: Literal["stop", "rollback"] = "stop"

    def __post_init__(self) -> None:
        one_of("training.method", self.method, ("gradient", "simultaneous"))
        one_of("training.on_nan", self.on_nan, ("stop", "rollback"))
        for key in ("steps", "epochs", "batch", "validate_every"):
            whole(f"training.{key}", getattr(self, key), 1)
        if self.steps is not None and self.epochs is not None:
            given = f"{self.steps} steps and {self.epochs} epochs"
            raise InputError(f"training.steps, training.epochs: {given} given, only one of the two allowed")
        if self.steps is None and self.epochs is None:
            raise InputError("training.steps, training.epochs: null given for both, a number for one of the two needed")

    def total_steps(self, examples: int) -> int:
        """Number of updates for so many training examples."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return self.epochs * -(-examples // (self.batch or examples))


@dataclass(frozen=True)
class Control:
    """Error control of the gradient.

    Args:
        gradient_tol: largest relative error of the gradient, above 0 and below 1; null: no control with method
            gradient, 0.2 with method simultaneous.
        every: steps between two checks.
        plan_ranks: number of ranks for which cycles and the exact chain are weighed against each other, whatever the
            number of ranks of the run.
    """

    gradient_tol: float | None = None
    every: int = 50
    plan_ranks: int = 32

    def __post_init__(self) -> None:
        tol = self.gradient_tol
        ok = isinstance(tol, int | float) and not isinstance(tol, bool) and 0 < tol < 1
        require(ok or tol is None, "control.gradient_tol", tol, "a number above 0 and below 1")
        for key in ("every", "plan_ranks"):
            require(getattr(self, key) is not None, f"control.{key}", None, "a whole number of at least 1")
            whole(f"control.{key}", getattr(self, key), 1)

    def options(self) -> Adaptive | None:
        """The options of `lpnet.Adaptive`; None: no control."""
        return None if self.gradient_tol is None else Adaptive(self.gradient_tol, self.every, self.plan_ranks)


@dataclass(frozen=True)
class OneShot:
    """What method simultaneous keeps, and when it stops.

    Args:
        warm: what mini-batches start from: examples (the defects of each example), class (their means over a class),
            none (coarse starts), auto (what measures best).
        limit_mib: most memory for the defects of all examples of mini-batches on one rank, in MiB.
        scratch: folder for an HDF5 file that holds them instead; null: in memory.
        tol: stop as soon as the residuals of state and adjoint, and the gradient relative to the first, are at most
            this, above 0 and below 1; null: do all steps.
    """

    warm: Literal["auto", "examples", "class", "none"] = "auto"
    limit_mib: float = 1024.0
    scratch: str | None = None
    tol: float | None = None

    def __post_init__(self) -> None:
        one_of("oneshot.warm", self.warm, KINDS)
        require(self.limit_mib is not None, "oneshot.limit_mib", None, "a finite number above 0")
        positive("oneshot.limit_mib", self.limit_mib)
        ok = isinstance(self.tol, int | float) and not isinstance(self.tol, bool) and 0 < self.tol < 1
        require(ok or self.tol is None, "oneshot.tol", self.tol, "a number above 0 and below 1")

    def options(self, examples: int | None) -> WarmStates:
        """The options of `lpnet.OneShot` for so many examples; None: no mini-batches."""
        return WarmStates(self.warm, examples, self.limit_mib, self.scratch)


@dataclass(frozen=True)
class Run:
    """Where and how the run is done.

    Args:
        dir: folder for the results, new or empty; null: a new one, runs/PRESET-TIME.
        seed: seed of weights, data and the order of examples.
        device: cpu, cuda (a GPU for each rank of a node, in turn), cuda:1, …, or auto (cuda where there is a GPU).
        dtype: float32 or float64.
        deterministic: use deterministic algorithms of torch only.
        threads: threads per rank; null: OMP_NUM_THREADS if set, else as many as the rank has cores (see docs/gpu.md).
        progress: show a progress bar; null: if standard error is a terminal.
        profile: write a trace of some steps, with a row for each rank, to trace.json in the folder (see `lpnet.trace`).
        profile_steps: how many steps of the run that trace shows, after two more to warm up.
        stall: seconds without progress on any rank after which the run says where each rank is, and ends; at least 1;
            null: never.
        checkpoint_every: steps between two checkpoints (there is always one before the first step and one at the end);
            null: as often as takes at most 1 % of the time.
        keep: how many checkpoints are kept, the newest.
        checkpoint_warm: checkpoints hold what the solves of the next step start from (`initial: warm` or `tau`, method
            simultaneous). Without it they are smaller, and a run that is resumed starts its next solves from nothing,
            so that its history is another one than that of an uninterrupted run.
    """

    dir: str | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: Literal["float32", "float64"] = "float32"
    deterministic: bool = False
    threads: int | None = None
    progress: bool | None = None
    profile: bool = False
    profile_steps: int = 5
    stall: float | None = 300.0
    checkpoint_every: int | None = None
    keep: int = 2
    checkpoint_warm: bool = True

    def __post_init__(self) -> None:
        require(self.dir is None or bool(self.dir.strip()), "run.dir", self.dir, "the name of a folder")
        ok = isinstance(self.seed, int) and not isinstance(self.seed, bool) and 0 <= self.seed < 2**63
        require(ok, "run.seed", self.seed, "a whole number of at least 0 and below 2^63")
        one_of("run.dtype", self.dtype, DTYPES)
        whole("run.threads", self.threads, 1)
        most = os.cpu_count() or 1
        ok = self.threads is None or self.threads <= most
        require(ok, "run.threads", self.threads, f"at most the {most} cores of this machine")
        positive("run.stall", self.stall)
        require(self.stall is None or self.stall >= 1, "run.stall", self.stall, "at least 1 second")
        for key in ("profile_steps", "keep"):
            require(getattr(self, key) is not None, f"run.{key}", None, "a whole number of at least 1")
        for key in ("profile_steps", "keep", "checkpoint_every"):
            whole(f"run.{key}", getattr(self, key), 1)
        require(isinstance(self.checkpoint_warm, bool), "run.checkpoint_warm", self.checkpoint_warm, "true or false")
        one_of("run.device", self.device, devices.names(), " on this machine")
