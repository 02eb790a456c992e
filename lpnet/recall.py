"""Defects τ of mini-batches: what to start from when a batch is not the last one.

Examples are independent of each other in the trunk, so τ is kept for each *example* and taken up again whenever the
example recurs, in whatever batch. The adjoint is linear in z_N: its τ is scaled, for each example, by

    β = ⟨z_N, z_N'⟩ / |z_N'|²        (z_N' that of the solve which left τ; β is kept within 0 and 10)

An example that has not been met yet starts from the mean τ of its class, or from none. Which start serves best is
measured, not guessed: a solve finds out the true τ, so each candidate τ' is judged by |τ − τ'| / |τ|, and one that is
not below 1 is worse than a plain coarse start. A solve of states of another shape or type than those before, or by
other options, starts from none, and what was kept of all examples is forgotten.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lpnet.errors import InputError
from lpnet.memory import Kind as SolveKind
from lpnet.memory import Solve
from lpnet.perexample import Host, Rows, Scratch
from lpnet.slab import Comm

Kind = Literal["auto", "examples", "class", "none"]
KINDS: tuple[Kind, ...] = ("auto", "examples", "class", "none")

_LARGEST_SCALE = 10.0
_NEWEST = 0.3  # weight of the newest ratio |τ − τ'| / |τ| in the running mean
_CLASS_NEWEST = 0.5  # weight of the newest batch in the mean τ of a class


@dataclass(frozen=True)
class WarmStates:
    """What one-shot training keeps of each example between the steps in which it occurs.

    All examples have the same shape: a batch of others, or a net of another dtype, makes it forget all of them.

    Args:
        kind: "examples" (the defects τ of each), "class" (their means over a class), "none" (coarse starts), or "auto"
            (what measures best, step by step).
        examples: how many examples there are; needed for mini-batches.
        limit_mib: most memory on one rank, in MiB.
        scratch: folder for an HDF5 file in place of memory.

    Raises:
        InputError: a value outside of what is allowed.
    """

    kind: Kind = "auto"
    examples: int | None = None
    limit_mib: float = 1024.0
    scratch: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InputError(f"kind: {self.kind!r} given, one of {', '.join(KINDS)} allowed")
        n, limit = self.examples, self.limit_mib
        if n is not None and (isinstance(n, bool) or not isinstance(n, int) or n < 1):
            raise InputError(f"examples: {n!r} given, a whole number of at least 1 allowed")
        if isinstance(limit, bool) or not isinstance(limit, int | float) or not limit > 0:
            raise InputError(f"limit_mib: {limit!r} given, a number above 0 allowed")


@dataclass
class Kept:
    """What is kept for one direction.

    Attributes:
        points: C-points of this rank, of all levels one after the other.
        kind: of the solves, with the shape of an example at each of them.
        rows: τ of each example, (examples, points · state); None: means over classes alone are kept.
        starts: z_N of each example, (examples, state); None: forward.
        seen: which examples have a τ.
        means: of each class, (classes, points · state),
        met: and which classes have one.
        ratio: |τ − τ'| / |τ| of each start.
        candidates: starts of the solve that is under way.
    """

    points: int
    kind: SolveKind
    rows: Rows | None = None
    starts: Tensor | None = None
    seen: Tensor | None = None
    means: Tensor | None = None
    met: Tensor | None = None
    ratio: dict[str, float] = field(default_factory=dict)
    candidates: dict[str, Tensor] = field(default_factory=dict)

    @property
    def state(self) -> int:
        """Numbers of an example at each point."""
        return self.kind[1].numel()


class ExampleMemory:
    """Memory of the τ of each example, as `memory` of a trunk.

    Args:
        comm: the ranks of the trunk.
        examples: how many there are.
        options: what is kept, and where.

    Attributes:
        kept: which -> what there is.

    Raises:
        InputError: the τ of all examples need more memory than allowed, or the scratch folder cannot be written to.
    """

    def __init__(self, comm: Comm, examples: int, options: WarmStates) -> None:
        self.comm, self.examples, self.options, self.kind = comm, examples, options, options.kind
        self._index = torch.arange(0)
        self._labels: Tensor | None = None
        self.kept: dict[str, Kept] = {}

    def batch(self, index: Tensor, labels: Tensor | None) -> None:
        """The next solves are of the examples `index`, (batch,) in 0, …, `examples` − 1, with these classes."""
        self._index = index.detach().cpu()
        self._labels = None if labels is None else labels.detach().cpu()

    def load(self, solve: Solve) -> list[Tensor] | None:
        if not self._is_of_batch(solve):
            return None
        kept = self._of_kind(solve)
        if kept is None:
            return None
        kept.candidates = self._candidates(kept, solve)
        usable = {name: kept.ratio.get(name, 0.0) for name in kept.candidates}
        if not usable or min(usable.values()) >= 1.0:
            return None
        best = min(usable, key=usable.__getitem__)
        return _states(kept.candidates[best], kept.points, solve)

    def save(self, solve: Solve, carry: list[Tensor] | None) -> None:
        if self.kind == "none" or not self._is_of_batch(solve):
            return
        if carry is None:
            self.kept.pop(solve.which, None)
            return
        kept = self._of_kind(solve)
        if kept is None:
            kept = self.kept[solve.which] = self.room(solve.which, len(carry), solve.kind)
        rows = _rows(carry, solve)
        self._judge(kept, rows, solve)
        if kept.rows is not None and kept.seen is not None:
            kept.rows.write(self._index, rows)
            kept.seen[self._index] = True
        if kept.starts is not None:
            kept.starts[self._index] = _rows([solve.x], solve)
        if self._labels is not None and not self._is_beyond_classes(kept):
            self._average(kept, rows, self._labels)

    def clear(self) -> None:
        self.kept = {}

    def _is_of_batch(self, solve: Solve) -> bool:
        """Whether the solve can be of the examples that `batch` has named."""
        return solve.x.shape[solve.batch_dim] == len(self._index)

    def _of_kind(self, solve: Solve) -> Kept | None:
        """What is kept of such solves; of others it is forgotten (on all ranks alike)."""
        kept = self.kept.get(solve.which)
        if kept is not None and kept.kind != solve.kind:
            kept = None
            self.kept.pop(solve.which)
        return kept

    # ---- what there is ---------------------------------------------------------------------------------------------

    def room(self, which: str, points: int, kind: SolveKind) -> Kept:
        """Room for all examples, nothing of which is known yet; collective.

        Args:
            which: "forward" or "adjoint".
            points: C-points of this rank.
            kind: of the solves, which says what an example is at each of them.

        Raises:
            InputError: there is none.
        """
        made, dtype = Kept(points, kind), kind[2]
        if self.kind == "class":
            return made
        most = self.comm.agree(points)
        needed = 2 * (most + 1) * made.state * dtype.itemsize * self.examples
        options = self.options
        if options.scratch is None and needed > options.limit_mib * 2**20:
            raise InputError(
                f"limit_mib: {options.limit_mib:g} given, at least {math.ceil(needed / 2**20)} needed on a rank for "
                f"the states of {self.examples} examples (or a scratch folder, or kind class or none)"
            )
        table = (self.examples, points * made.state)
        folder = options.scratch
        made.rows = Host(table, dtype) if folder is None else self._scratch(table, dtype, Path(folder))
        made.seen = torch.zeros(self.examples, dtype=torch.bool)
        if which == "adjoint":
            made.starts = torch.zeros(self.examples, made.state, dtype=dtype)
        return made

    def _scratch(self, shape: tuple[int, int], dtype: torch.dtype, folder: Path) -> Rows:
        """Rows in a file, unless any rank cannot have one; collective."""
        made: Rows | None = None
        error = f"scratch: {str(folder)!r} given, a folder that every rank can write to allowed"
        try:
            made = Scratch(shape, dtype, folder)
        except InputError as own:
            error = str(own)
        if self.comm.agree(int(made is None)) or made is None:
            raise InputError(error)
        return made

    def _average(self, kept: Kept, rows: Tensor, labels: Tensor) -> None:
        classes = self._classes(kept, int(labels.max()) + 1, rows)
        if kept.means is None or kept.met is None:
            raise AssertionError("no room for the means of classes")
        counts = torch.bincount(labels, minlength=classes)
        sums = torch.zeros_like(kept.means).index_add_(0, labels, rows)
        here = counts > 0
        new = sums[here] / counts[here, None]
        old = torch.where(kept.met[here, None], kept.means[here], new)
        kept.means[here] = old + _CLASS_NEWEST * (new - old)
        kept.met |= here

    def _classes(self, kept: Kept, classes: int, rows: Tensor) -> int:
        """Room for so many classes at least."""
        if kept.means is None or kept.met is None:
            kept.means, kept.met = rows.new_zeros(classes, rows.shape[1]), torch.zeros(classes, dtype=torch.bool)
        more = classes - len(kept.means)
        if more > 0:
            kept.means = torch.cat([kept.means, rows.new_zeros(more, rows.shape[1])])
            kept.met = torch.cat([kept.met, torch.zeros(more, dtype=torch.bool)])
        return len(kept.means)

    # ---- which to take ---------------------------------------------------------------------------------------------

    def _candidates(self, kept: Kept, solve: Solve) -> dict[str, Tensor]:
        """Rows (batch, numbers) that this batch may start from."""
        found: dict[str, Tensor] = {}
        labels = self._labels
        if kept.means is not None and labels is not None and not self._is_beyond_classes(kept):
            known = labels.clamp_max(len(kept.means) - 1)
            found["class"] = kept.means[known] * (labels < len(kept.means))[:, None]
        if kept.rows is not None and kept.seen is not None:
            seen = kept.seen[self._index][:, None]
            if bool(seen.any()):
                own = kept.rows.read(self._index) * self._scale(kept, solve)
                found["examples"] = torch.where(seen, own, found["class"]) if "class" in found else own
        return found

    def _is_beyond_classes(self, kept: Kept) -> bool:
        """Whether means over classes are of no more use: every example has a τ, and these have served better."""
        if self.kind != "auto" or kept.seen is None:
            return self.kind == "examples"
        better = kept.ratio.get("examples", math.inf) <= kept.ratio.get("class", 0.0)
        return better and bool(kept.seen.all())

    def _scale(self, kept: Kept, solve: Solve) -> Tensor:
        if kept.starts is None:
            return torch.ones(len(self._index), 1, dtype=solve.x.dtype)
        z, old = _rows([solve.x], solve), kept.starts[self._index]
        size = old.square().sum(1, keepdim=True)
        scale = (z * old).sum(1, keepdim=True) / torch.where(size > 0, size, torch.ones_like(size))
        return scale.clamp(0.0, _LARGEST_SCALE)

    def _judge(self, kept: Kept, rows: Tensor, solve: Solve) -> None:
        """Compare the candidates with the τ that the solve found; collective if there are any."""
        names = sorted(kept.candidates)
        if not names:
            return
        differences = [rows - kept.candidates[name] for name in names]
        numbers = rows.shape[1] // max(1, kept.points)
        squares = [r.double().square().sum(0).reshape(kept.points, numbers).sum(1) for r in (rows, *differences)]
        size, *others = self._total(torch.stack(squares, dim=1).numpy(), solve.which == "adjoint").tolist()
        for name, other in zip(names, others, strict=True):
            new = math.sqrt(other / size) if size else 0.0
            new = new if math.isfinite(new) else math.inf
            old = kept.ratio.get(name, new)
            kept.ratio[name] = old + _NEWEST * (new - old)
        kept.candidates = {}

    def _total(self, rows: np.ndarray, backwards: bool) -> np.ndarray:
        """Sum over the C-points of all ranks in the order of the solve, the same for every number of ranks."""
        counts = self.comm.allgather(np.array([[len(rows)]]), [1] * self.comm.size)[:, 0].tolist()
        parts = np.split(self.comm.allgather(rows, counts), np.cumsum(counts)[:-1])
        total = np.zeros(rows.shape[1])
        for part in reversed(parts) if backwards else parts:
            for row in part:
                total = total + row
        return total


def _rows(states: list[Tensor], solve: Solve) -> Tensor:
    """Packed states at several points as rows (batch, numbers) on the host."""
    batch = solve.x.shape[solve.batch_dim]
    if not states:
        return torch.zeros(batch, 0, dtype=solve.x.dtype)
    return torch.stack(states).movedim(solve.batch_dim, 0).reshape(batch, -1).cpu()


def _states(rows: Tensor, points: int, solve: Solve) -> list[Tensor]:
    """The inverse of `_rows`."""
    if not points:
        return []
    shape = list(solve.x.shape)
    del shape[solve.batch_dim]
    whole = rows.to(solve.x.device).reshape(len(rows), points, *shape).movedim(0, solve.batch_dim)
    return list(whole.contiguous().unbind())


