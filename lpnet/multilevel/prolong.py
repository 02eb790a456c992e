"""Prolongation of weights to more layers over the same time T, linear in time.

    θ(t_j) = θ_j  at the middles of the layers,  t_j = (j + ½) T/N,   j = 0, …, N − 1
    θ'_i = θ(t'_i),                              t'_i = (i + ½) T/N',  N' ≥ N

θ(t) is linear between two middles and constant beyond the first and the last. For N' = 2N the new weights are
¾ θ_j + ¼ θ_{j∓1}: their means over the two halves of a layer are its weights, wherever θ is linear.

The flow of the finer network differs from that of the coarser one by O(h), the error of the coarse steps.

Source: Chang, Meng, Haber, Tung, Begert, Multi-level residual networks from dynamical systems view (2018).
"""

import copy
from itertools import pairwise
from numbers import Integral
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from lpnet.controls import Controls, grid_of
from lpnet.errors import InputError
from lpnet.module import LayerParallel
from lpnet.options import SolverOptions
from lpnet.sharded import trunks
from lpnet.slab import Slab

Net = TypeVar("Net", bound=nn.Module)


def prolongate(
    trunk: LayerParallel,
    layers: int,
    forward: SolverOptions | None = None,
    adjoint: SolverOptions | None = None,
    controls: Controls | Literal["same"] | None = "same",
) -> LayerParallel:
    """A new trunk of more layers, whose weights are those of `trunk` as functions of time; collective.

    These are linear between the layers, or what a control grid says, whose points stay as they are unless others are
    asked for. Final time, dynamics, stepper, control and the rest are the same; states of earlier solves are not taken
    over. No rank ever holds more than the layers that its own new ones lie between.

    Args:
        trunk: of N layers; is not changed.
        layers: N' ≥ N; the common case is 2 N.
        forward: its solver; None: that of `trunk`. See also `coarser`.
        adjoint: the same for the adjoint.
        controls: a control grid for the new trunk, whose weights are the best fit at its layers; None: weights of
            their own for all layers.

    Raises:
        InputError: fewer layers than the trunk has, or fewer than the control grid needs.
    """
    layers = _checked(layers, trunk.layers)
    solvers = forward or trunk.forward_solver, adjoint or trunk.adjoint_solver
    fine = _twin(trunk, layers, solvers, trunk.controls if controls == "same" else controls)
    with torch.no_grad():
        for name, value in _values(trunk, fine).items():
            fine.theta[name].copy_(value)
            fine.theta[name].requires_grad_(trunk.theta[name].requires_grad)
    return fine


def _values(trunk: LayerParallel, fine: LayerParallel) -> dict[str, Tensor]:
    """The parameters of the new trunk."""
    theta = {name: p.detach() for name, p in trunk.theta.items()}
    if trunk.controls is None:
        weights = {name: interpolated(p, trunk._slab, fine._slab) for name, p in theta.items()}
    elif trunk.controls == fine.controls:
        return theta
    else:
        weights = grid_of(trunk.controls, fine._slab, fine.T).expand(theta)
    return weights if fine.controls is None else _fitted(weights, fine, fine.controls)


def _fitted(weights: dict[str, Tensor], fine: LayerParallel, controls: Controls) -> dict[str, Tensor]:
    """The control points θ^c with the least Σ_j |Σ_c B_jc θ^c − θ_j|²: (BᵀB)⁻¹ Bᵀ θ."""
    B = torch.from_numpy(controls.values((np.arange(fine.layers) + 0.5) / fine.layers))
    found = fine.grid.reduce([w.double() for w in weights.values()])
    inverse = torch.linalg.inv(B.T @ B)
    return {name: torch.tensordot(inverse.to(v), v, 1) for name, v in zip(weights, found, strict=True)}


def prolongate_net(
    net: Net, layers: int, forward: SolverOptions | None = None, adjoint: SolverOptions | None = None
) -> Net:
    """A copy of a network with its trunk prolongated, and all else as it is; collective.

    Args:
        net: with one `lpnet.LayerParallel` in it, such as a `Sequential` or the network of a training run.
        layers: N' ≥ N.
        forward, adjoint: solvers of the new trunk; None: those of the old one.

    Raises:
        InputError: none or several trunks, or fewer layers than the trunk has.
    """
    trunk = only_trunk(net)
    return copy.deepcopy(net, {id(trunk): prolongate(trunk, layers, forward, adjoint)})


def only_trunk(net: nn.Module) -> LayerParallel:
    """The trunk of a network that has one.

    Raises:
        InputError: it has none or several.
    """
    found = trunks(net) if isinstance(net, nn.Module) else []
    if len(found) != 1:
        raise InputError(f"net: a {type(net).__name__} with {len(found)} LayerParallel given, exactly one allowed")
    return found[0]


def interpolated(coarse: Tensor, old: Slab, new: Slab) -> Tensor:
    """The new slab's rows of a stacked tensor that is linear in time between the old layers; collective.

    Args:
        coarse: (n, ...) of this rank's layers of the old slab.
        old: N layers.
        new: N' layers over the same time.

    Returns:
        (n', ...) of this rank's layers of the new slab.
    """
    wanted = [_between(lo, hi, old.layers, new.layers) for lo, hi in pairwise(new.starts)]
    rows = exchanged(coarse, old, wanted)
    if not len(rows):
        return rows
    places = [_place(i, old.layers, new.layers) for i in range(new.lo, new.hi)]
    first = wanted[new.comm.rank].start
    low = torch.tensor([j - first for j, _ in places], device=rows.device)
    high = (low + 1).clamp(max=len(rows) - 1)
    share = torch.tensor([w for _, w in places], dtype=rows.dtype, device=rows.device)
    return torch.lerp(rows[low], rows[high], share.reshape(-1, *[1] * (rows.ndim - 1)))


def _place(i: int, N: int, M: int) -> tuple[int, float]:
    """The layer j of N and the share w in [0, 1) with t'_i = t_j + w T/N, for layer i of M; the ends are constant."""
    whole, part = divmod((2 * i + 1) * N - M, 2 * M)  # t'_i N/T − ½ = ((2i + 1) N − M) / 2M, in whole numbers
    if whole < 0:
        return 0, 0.0
    return (whole, part / (2 * M)) if whole < N - 1 else (N - 1, 0.0)


def _between(lo: int, hi: int, N: int, M: int) -> range:
    """The layers of N between which the layers [lo, hi) of M lie."""
    if lo == hi:
        return range(0)
    return range(_place(lo, N, M)[0], min(_place(hi - 1, N, M)[0] + 2, N))


def exchanged(local: Tensor, slab: Slab, wanted: list[range]) -> Tensor:
    """The rows that this rank wants of a stacked tensor; collective, each row to those ranks alone that want it.

    Args:
        local: (n, ...) of this rank's layers.
        slab: who owns what.
        wanted: consecutive layers, for each rank.
    """
    comm, me = slab.comm, slab.comm.rank
    for rank, rows in enumerate(wanted):
        mine = _common(rows, slab.lo, slab.hi)
        if len(mine) and rank != me:
            comm.send(local[mine.start - slab.lo : mine.stop - slab.lo], rank)
    parts = [local[:0]]
    for rank, (lo, hi) in enumerate(pairwise(slab.starts)):
        theirs = _common(wanted[me], lo, hi)
        if len(theirs) and rank == me:
            parts.append(local[theirs.start - lo : theirs.stop - lo])
        elif len(theirs):
            parts.append(comm.recv(local.new_empty(len(theirs), *local.shape[1:]), rank))
    return torch.cat(parts)


def _common(rows: range, lo: int, hi: int) -> range:
    return range(max(rows.start, lo), min(rows.stop, hi))


def _twin(
    trunk: LayerParallel, layers: int, solvers: tuple[SolverOptions, SolverOptions], controls: Controls | None
) -> LayerParallel:
    """The same trunk with another number of layers, and weights that are still to be filled in."""
    like = next(iter(trunk.theta.values()))
    made = LayerParallel(
        trunk._stack.module,
        layers,
        trunk.T,
        stepper=trunk.stepper,
        forward=solvers[0],
        adjoint=solvers[1],
        seed=trunk.seed,
        comm=trunk.comm,
        dtype=like.dtype,
        device=like.device,
        gradient=trunk.gradient,
        store=trunk.store,
        control=trunk.control,
        controls=controls,
    )
    made.train(trunk.training)
    made.exact = trunk.exact
    made._watch = trunk._watch.onward()
    return made


def _checked(layers: Any, least: int) -> int:
    if isinstance(layers, bool) or not isinstance(layers, Integral) or layers < least:
        raise InputError(f"layers: {layers!r} given for a trunk of {least}, a whole number of at least {least} allowed")
    return int(layers)
