"""The section optimizer of the configuration.

Keys belong to a name: ``betas`` to ``adam``, ``memory`` to ``lbfgs``. They are null where nobody gave them, which means
the default of the optimizer (`resolved` writes it out), and they are an error with another one.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from lpnet.choices import defaults_of, number, one_of, owned, positive, require, whole
from lpnet.optim import LBFGS, PCG, BlockCoordinateDescent, GaussNewton, NonlinearCG, VariableProjection
from lpnet.regularizers import Penalty

WHOLE = ("memory", "restart", "iterations")
CHOICES = {"formula": ("polak_ribiere", "fletcher_reeves"), "preconditioner": ("dct", "none")}


def newton(kind: Callable[..., GaussNewton]) -> Callable[..., GaussNewton]:
    """A method of Gauss–Newton from the options of the configuration, for cross entropy and some penalties."""

    def made(
        net: nn.Module,
        penalties: Sequence[Penalty] = (),
        lr: float = 1.0,
        iterations: int = 20,
        tol: float = 0.1,
        radius: float = 2.0,
        cap: float = 1.0,
        preconditioner: Literal["dct", "none"] = "dct",
    ) -> GaussNewton:
        chosen = "dct" if preconditioner == "dct" else None
        pcg = PCG(iterations, tol, radius)
        return kind(net, penalties=penalties, lr=lr, pcg=pcg, cap=cap, preconditioner=chosen)

    return made


# Those of torch that act on each number by itself, so that a slab of layers can be updated without the others, and our
# own that know of the slabs.
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": partial(torch.optim.Adam, fused=True),  # one pass, without temporaries as large as all weights
    "adamw": partial(torch.optim.AdamW, fused=True),
    "sgd": partial(torch.optim.SGD, fused=True),
    "rmsprop": torch.optim.RMSprop,
    "adamax": torch.optim.Adamax,
    "nadam": torch.optim.NAdam,
    "radam": torch.optim.RAdam,
    "adagrad": torch.optim.Adagrad,
    "adadelta": torch.optim.Adadelta,
    "rprop": torch.optim.Rprop,
    "asgd": torch.optim.ASGD,
    "lbfgs": LBFGS,
    "ncg": NonlinearCG,
    "gauss_newton": newton(GaussNewton),
    "bcd": newton(BlockCoordinateDescent),
    "varpro": newton(VariableProjection),
}

NEWTON = ("gauss_newton", "bcd", "varpro")
"""Those that take a network and its penalties, not its parameters."""

WHOLE_BATCH = ("bcd", "varpro")
"""Those that solve for the classifier of the examples of a step, which has to be that of all examples."""

SEARCHING = ("lbfgs", "ncg", *NEWTON)
"""Those with a line search: their learning rate is the first step that it tries, and 1 is usual."""


@dataclass(frozen=True)
class Optimizer:
    """An optimizer of torch or of lpnet; null: its default.

    Args:
        name: adam, adamw, sgd, rmsprop, adamax, nadam, radam, adagrad, adadelta, rprop, asgd, lbfgs,
            ncg (nonlinear conjugate gradients), gauss_newton (with an inner solve by conjugate gradients), and for full
            batches bcd (block coordinate descent: gauss_newton, and the classifier solved for in turn) and varpro
            (variable projection: gauss_newton with the classifier eliminated).
        lr: learning rate (lbfgs, ncg, gauss_newton, bcd, varpro: the first step of the line search, 1 is usual).
        weight_decay: weight decay.
        clip: largest norm of the whole gradient, beyond which it is scaled down; null: never.
        momentum: of sgd and rmsprop.
        nesterov: of sgd.
        betas: of adam and its kin.
        eps: of adam and its kin, rmsprop, adagrad, adadelta.
        alpha: of rmsprop and asgd.
        rho: of adadelta.
        memory: of lbfgs: number of pairs of updates that are kept. Default 10.
        formula: of ncg: polak_ribiere or fletcher_reeves. Default polak_ribiere.
        restart: of ncg: steps after which it begins anew. Default: never for that reason.
        iterations: of gauss_newton, bcd, varpro: of the inner solve, at most. Default 20.
        tol: of gauss_newton, bcd, varpro: relative residual that ends the inner solve. Default 0.1.
        radius: of gauss_newton, bcd, varpro: bound on a step, in a norm for any number of layers. Default 2.
        cap: of gauss_newton, bcd, varpro: largest entry of a step. Default 1.
        preconditioner: of gauss_newton, bcd, varpro: dct (the d/dt regulariser, by a cosine transform along the
            layers) or none. Default dct.
    """

    name: str = "adam"
    lr: float = 1e-2
    weight_decay: float | None = None
    clip: float | None = None
    momentum: float | None = None
    nesterov: bool | None = None
    betas: tuple[float, float] | None = None
    eps: float | None = None
    alpha: float | None = None
    rho: float | None = None
    memory: int | None = None
    formula: Literal["polak_ribiere", "fletcher_reeves"] | None = None
    restart: int | None = None
    iterations: int | None = None
    tol: float | None = None
    radius: float | None = None
    cap: float | None = None
    preconditioner: Literal["dct", "none"] | None = None

    def __post_init__(self) -> None:
        why = " (those that can update slabs of layers)"
        one_of("optimizer.name", self.name, OPTIMIZERS, why)
        positive("optimizer.lr", self.lr)
        positive("optimizer.clip", self.clip)
        for key in ("weight_decay", "eps", "alpha"):
            number(f"optimizer.{key}", getattr(self, key), 0.0)
        for key in ("momentum", "rho", "tol"):
            number(f"optimizer.{key}", getattr(self, key), 0.0, 1.0)
        for key in WHOLE:
            whole(f"optimizer.{key}", getattr(self, key), 1)
        positive("optimizer.radius", self.radius)
        positive("optimizer.cap", self.cap)
        require(self.tol != 1, "optimizer.tol", self.tol, "a number of at least 0 and below 1")
        for key, names in CHOICES.items():
            one_of(f"optimizer.{key}", getattr(self, key) or names[0], names)
        if self.betas is not None:
            ok = len(self.betas) == 2 and all(0.0 <= b < 1.0 for b in self.betas)
            require(ok, "optimizer.betas", self.betas, "two numbers of at least 0 and below 1")
        ok = self.clip is None or self.name not in SEARCHING
        require(ok, "optimizer.clip", self.clip, f"null with name {self.name}, whose line search bounds the step, is")
        ok = not self.nesterov or bool(self.momentum)
        require(ok, "optimizer.nesterov", self.nesterov, "with momentum above 0 only, it is")
        owned("optimizer", f"name {self.name}", self.given(), optimizer_options(self.name))

    def given(self) -> dict[str, Any]:
        """The options that are not null."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("name", "clip")}
        return {k: v for k, v in values.items() if v is not None}

    def resolved(self) -> "Optimizer":
        """With the defaults written out."""
        return dataclasses.replace(self, **{**optimizer_options(self.name), **self.given()})


def optimizer_options(name: str) -> dict[str, Any]:
    """Options that belong to this optimizer, with their defaults."""
    names = tuple(f.name for f in dataclasses.fields(Optimizer) if f.name not in ("name", "clip"))
    found = defaults_of(OPTIMIZERS[name], names)
    return {key: float(value) if type(value) is int and key not in WHOLE else value for key, value in found.items()}
