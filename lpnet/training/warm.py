"""What the solves of the next step start from (`lpnet.memory`, `lpnet.recall`), in a checkpoint: C-points first.

    warm/WHICH/LEVEL                    the last solve: (points, …)
    warm/WHICH/LEVEL/examples           the τ of each example: (points, examples, numbers)
    warm/WHICH/LEVEL/classes            their means: (points, classes, numbers)
    warm/WHICH/starts, seen, met        of all examples, or classes

WHICH is forward or adjoint. The points of a level are in the order of the layers, so that a rank has consecutive ones.
"""

from typing import Any

import torch
from torch import Tensor

from lpnet.checkpoint.content import Content, Rows
from lpnet.checkpoint.stored import Stored
from lpnet.memory import FROM_EARLIER, LastSolve
from lpnet.module import LayerParallel
from lpnet.options import MGRIT
from lpnet.recall import ExampleMemory, Kept

WHICH = ("forward", "adjoint")


def matters(trunk: LayerParallel) -> bool:
    """Whether solves of the trunk start from earlier ones."""
    return any(isinstance(s, MGRIT) and s.initial in FROM_EARLIER for s in _solvers(trunk).values())


def content(trunk: LayerParallel) -> Content:
    """What the trunk remembers; local to each rank."""
    if isinstance(trunk.memory, ExampleMemory):
        return _of_examples(trunk, trunk.memory)
    return _of_last(trunk, trunk.memory) if isinstance(trunk.memory, LastSolve) else Content({"warm": {}})


def restore(stored: Stored, trunk: LayerParallel) -> None:
    """Remember it again, on any number of ranks; collective.

    Raises:
        InputError: there is no room for it, or it does not fit.
    """
    for which, said in stored.meta["warm"].items():
        if isinstance(trunk.memory, ExampleMemory):
            _into_examples(stored, trunk, trunk.memory, which, said)
        elif isinstance(trunk.memory, LastSolve):
            _into_last(stored, trunk, trunk.memory, which, said)


# ---- which points a rank has ---------------------------------------------------------------------------------------


def _solvers(trunk: LayerParallel) -> dict[str, Any]:
    return dict(zip(WHICH, (trunk.forward_solver, trunk.adjoint_solver), strict=True))


def _counts(trunk: LayerParallel, which: str) -> list[list[int]]:
    """How many points each rank has on each level that leaves something."""
    options = _solvers(trunk)[which]
    direction = trunk._engine.back if which == "adjoint" else trunk._engine.ahead
    bounds = direction.levels(options)[1:]
    return [direction.points(bound)[0] for bound in (bounds if options.initial == "tau" else bounds[:1])]


def _spans(trunk: LayerParallel, which: str) -> list[tuple[int, int]]:
    """This rank's points [lo, hi) of each level."""
    rank = trunk.comm.rank
    return [(sum(counts[:rank]), sum(counts[: rank + 1])) for counts in _counts(trunk, which)]


def _ordered(which: str, n: int) -> list[int]:
    """The places of n points of a rank in the order of the solve, in the order of the layers; its own inverse."""
    return list(reversed(range(n))) if which == "adjoint" else list(range(n))


# ---- the last solve ------------------------------------------------------------------------------------------------


def _of_last(trunk: LayerParallel, memory: LastSolve) -> Content:
    found = Content({"warm": {}})
    for which, (key, carry) in memory.kept.items():
        _, shape, dtype, device = key
        begin = 0
        for level, (lo, hi) in enumerate(_spans(trunk, which), 1):
            own = [carry[begin + k] for k in _ordered(which, hi - lo)]
            begin += hi - lo
            local = torch.stack(own) if own else torch.empty(0, *shape, dtype=dtype, device=device)
            found.rows[f"warm/{which}/{level}"] = Rows(local)
        found.meta["warm"][which] = {"shape": list(shape)}
    return found


def _into_last(stored: Stored, trunk: LayerParallel, memory: LastSolve, which: str, said: dict[str, Any]) -> None:
    like = next(iter(trunk.theta.values()))
    carry: list[Tensor] = []
    for level, (lo, hi) in enumerate(_spans(trunk, which), 1):
        rows = stored.rows(f"warm/{which}/{level}", lo, hi).to(like.device)
        carry += [rows[k].clone() for k in _ordered(which, hi - lo)]
    key = _solvers(trunk)[which].with_cycles(1), torch.Size(said["shape"]), like.dtype, like.device
    memory.kept[which] = key, carry


# ---- examples ------------------------------------------------------------------------------------------------------


def _of_examples(trunk: LayerParallel, memory: ExampleMemory) -> Content:
    found = Content({"warm": {}})
    for which, kept in memory.kept.items():
        place = f"warm/{which}"
        tables = {"examples": None if kept.rows is None else kept.rows.whole(), "classes": kept.means}
        for kind, table in tables.items():
            if table is not None:
                found.rows |= _by_points(trunk, which, kept, kind, table)
        others = {"starts": kept.starts, "seen": kept.seen, "met": kept.met}
        found.whole |= {f"{place}/{name}": t for name, t in others.items() if t is not None}
        found.meta["warm"][which] = {"shape": list(kept.kind[1]), "ratio": dict(kept.ratio)}
    return found


def _by_points(trunk: LayerParallel, which: str, kept: Kept, kind: str, table: Tensor) -> dict[str, Rows]:
    """A table (rows, points · numbers) as one (points, rows, numbers) for each level."""
    points = table.reshape(len(table), kept.points, kept.state).transpose(0, 1)
    found, begin = {}, 0
    for level, (lo, hi) in enumerate(_spans(trunk, which), 1):
        own = points[begin : begin + hi - lo]
        found[f"warm/{which}/{level}/{kind}"] = Rows(own.flip(0) if which == "adjoint" else own)
        begin += hi - lo
    return found


def _into_examples(
    stored: Stored, trunk: LayerParallel, memory: ExampleMemory, which: str, said: dict[str, Any]
) -> None:
    spans, place, names = _spans(trunk, which), f"warm/{which}", set(stored.names())
    points = sum(hi - lo for lo, hi in spans)
    dtype = next(iter(trunk.theta.values())).dtype
    kind = _solvers(trunk)[which].with_cycles(1), torch.Size(said["shape"]), dtype
    kept = memory.kept[which] = memory.room(which, points, kind)
    kept.ratio = dict(said["ratio"])
    for name in ("starts", "seen", "met"):
        if f"{place}/{name}" in names:
            setattr(kept, name, stored.whole(f"{place}/{name}"))
    if f"{place}/1/classes" in names:
        kept.means = torch.zeros(stored.shape(f"{place}/1/classes")[1], points * kept.state, dtype=dtype)
    begin = 0
    for level, (lo, hi) in enumerate(spans, 1):
        for k, j in zip(_ordered(which, hi - lo), range(lo, hi), strict=True):
            first = (begin + k) * kept.state
            if kept.rows is not None:
                kept.rows.put(first, stored.rows(f"{place}/{level}/examples", j, j + 1)[0])
            if kept.means is not None:
                kept.means[:, first : first + kept.state] = stored.rows(f"{place}/{level}/classes", j, j + 1)[0]
        begin += hi - lo
