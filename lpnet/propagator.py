"""Φ and G on the layers of one rank: forward, and pulled back.

`Layers` are the exact layers Φ_j of a slab with their weights as they were prepared; `Tape` is what a forward sweep
leaves for the adjoint: one tensor per stage and layer, and the states at the ends of the segments, from which all other
states are rebuilt by subtraction. `CoarseSteps` are the coarse propagators G over spans of layers.

Layers and spans are counted in the global layer index throughout.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lpnet.fields import Field, Slot
from lpnet.steppers import Picard, Program, Stage, Stepper

Kept = list[Any]


class _Scratch(list[Any]):
    """A tape of one place, for sweeps that nobody pulls back."""

    def __getitem__(self, at: Any) -> Any:
        return super().__getitem__(0)

    def __setitem__(self, at: Any, value: Any) -> None:
        super().__setitem__(0, value)


class _Workspace:
    """Slots that are reused as long as the shape of the state stays the same."""

    def __init__(self, field: Field, count: int) -> None:
        self._field, self._count = field, count
        self._slots: list[Slot] = []

    def __call__(self, x: Tensor) -> list[Slot]:
        """Slots that hold the state x; those beyond its memory hold anything."""
        if not self._slots or self._slots[0].view.shape != x.shape[1:]:
            self._slots = self._field.slots(self._count, x)
        for slot, value in zip(self._slots, x, strict=False):
            slot.view.copy_(value)
        return self._slots


def _state(slots: Sequence[Slot], memory: int) -> Tensor:
    """A copy of the state that the slots hold."""
    return torch.stack([slot.view for slot in slots[:memory]])


class Tape:
    """What one forward sweep leaves: kept tensors per stage and layer, and states at the segments' ends."""

    def __init__(self, kept: list[Kept]) -> None:
        self.kept = kept
        self.begin: dict[int, int] = {}
        self.starts: dict[int, Tensor] = {}
        self.ends: dict[int, Tensor] = {}

    def clear(self) -> None:
        """Forget the states; the kept tensors are overwritten by the next sweep."""
        self.begin, self.starts, self.ends = {}, {}, {}

    def split(self, count: int, dim: int) -> list["Tape"]:
        """The tapes of so many parts of the batch, which is dimension `dim` from the end."""
        return [self._each(lambda t, q=q: t.chunk(count, dim)[q].contiguous()) for q in range(count)]

    def _each(self, how: Callable[..., Tensor]) -> "Tape":
        other = Tape([[how(t) for t in kept] for kept in self.kept])
        other.begin = dict(self.begin)
        other.starts = {a: how(x) for a, x in self.starts.items()}
        other.ends = {b: how(x) for b, x in self.ends.items()}
        return other

    def note(self, a: int, b: int, start: Tensor, end: Tensor) -> None:
        """The sweep propagated from x_a = start to x_b = end."""
        self.starts[a], self.ends[b], self.begin[b] = start, end, a

    def end_after(self, layer: int) -> int:
        """Where the segment ends that holds this layer."""
        return min(b for b in self.ends if b > layer)


def joined(tapes: Sequence[Tape], dim: int) -> Tape:
    """The tape of the whole batch from those of its parts."""
    by_stage = zip(*(t.kept for t in tapes), strict=True)
    whole = Tape([[torch.cat(ts, dim) for ts in zip(*kept, strict=True)] for kept in by_stage])
    whole.begin = dict(tapes[0].begin)
    whole.starts = {a: torch.cat([t.starts[a] for t in tapes], dim) for a in tapes[0].starts}
    whole.ends = {b: torch.cat([t.ends[b] for t in tapes], dim) for b in tapes[0].ends}
    return whole


class Layers:
    """The exact layers lo, …, lo + n − 1 of a slab.

    Args:
        stepper: gives the stages of Φ.
        fields: term -> field of the n layers.
        h: layer step.
        lo: index of the first layer.
        n: number of layers.
    """

    def __init__(self, stepper: Stepper, fields: Mapping[str, Field], h: float, lo: int, n: int) -> None:
        self.stepper, self.fields, self.h, self.lo, self.n = stepper, fields, h, lo, n
        self.stages = [(fields[s.term], s.source, s.target, s.w) for s in stepper.stages(h)]
        self.lift_stages = [(fields[s.term], s.source, s.target, s.w) for s in stepper.lift(h)]
        self._field = self.stages[0][0]
        self._work = _Workspace(self._field, stepper.memory)

    def tape(self, like: Tensor | None) -> Tape:
        """An empty tape for states like `like`; None: one that keeps nothing."""
        if like is None:
            return Tape([])
        return Tape([field.tape(self.n, like) for field, *_ in self.stages])

    def reset_grads(self) -> None:
        """Forget the weight gradients of all fields."""
        for term in self.fields.values():
            term.reset_grads()

    def micro_batch(self, q: int) -> None:
        """Which part of the batch comes next: random layers draw other numbers for it."""
        for term in self.fields.values():
            term.stream = q

    def split(self, x: Tensor, count: int) -> list[Tensor]:
        """Parts of a packed state along its batch (fewer where the batch is smaller)."""
        return [part.contiguous() for part in x.chunk(count, self._field.batch_dim(x))]

    def join(self, xs: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return xs[0] if len(xs) == 1 else torch.cat(xs, self._field.batch_dim(xs[0]))

    def retape(self, tapes: list[Tape], count: int, x: Tensor) -> list[Tape]:
        """The same tape in so many parts of the batch; x is a whole state."""
        if len(tapes) == count:
            return tapes
        dim = self._field.batch_dim(x)
        whole = tapes[0] if len(tapes) == 1 else joined(tapes, dim)
        return [whole] if count == 1 else whole.split(count, dim)

    def run(self, a: int, b: int, x: Tensor, tape: Tape) -> Tensor:
        """x_b from x_a = x by the layers a, …, b − 1."""
        slots = self._work(x)
        kept = tape.kept or [_Scratch(field.tape(1, x)) for field, *_ in self.stages]
        work = [(f.add, slots[s], slots[t], w, k) for (f, s, t, w), k in zip(self.stages, kept, strict=True)]
        for j in range(a - self.lo, b - self.lo):
            for add, source, target, w, keep in work:
                add(j, source, target, w, keep, j)
        end = _state(slots, self.stepper.memory)
        if tape.kept:
            tape.note(a, b, x, end)
        return end

    def state(self, j: int, tape: Tape) -> Tensor:
        """x_j as the sweep of the tape had it before layer j."""
        if j in tape.starts:
            return tape.starts[j]
        b = tape.end_after(j)
        slots = self._work(tape.ends[b])
        self._rewind(b, j, slots, tape)
        return _state(slots, self.stepper.memory)

    def _rewind(self, b: int, a: int, slots: list[Slot], tape: Tape) -> None:
        for j in range(b - 1 - self.lo, a - 1 - self.lo, -1):
            for (field, _, t, w), kept in zip(reversed(self.stages), reversed(tape.kept), strict=True):
                field.remove(j, slots[t], w, kept, j)

    def pull(self, a: int, b: int, z: Tensor, tape: Tape, gradients: bool) -> Tensor:
        """z_a from z_b = z; with `gradients`, those of the weights are added to the fields'."""
        bars = list(z.clone().unbind())
        while b > a:
            end = tape.end_after(b - 1)
            begin = max(a, tape.begin[end])
            slots = self._work(tape.ends[end])
            rebuild = gradients or any(field.needs_source for field, *_ in self.stages)
            if rebuild:
                self._rewind(end, b, slots, tape)
            self._pull_segment(range(begin - self.lo, b - self.lo), bars, slots, tape, (gradients, rebuild))
            b = begin
        return torch.stack(bars)

    def _pull_segment(
        self, layers: range, bars: list[Tensor], slots: list[Slot], tape: Tape, how: tuple[bool, bool]
    ) -> None:
        gradients, rebuild = how
        work = [
            (f.remove, f.pull_grad if gradients else f.pull, slots[s], slots[t], bars[s], bars[t], w, kept)
            for (f, s, t, w), kept in zip(reversed(self.stages), reversed(tape.kept), strict=True)
        ]
        for j in reversed(layers):
            for remove, pull, source, target, source_bar, target_bar, w, kept in work:
                if rebuild:
                    remove(j, target, w, kept, j)
                pull(j, source, target_bar, source_bar, w, kept[j])

    def lift(self, x: Tensor) -> Tensor:
        """x_0 from (y_0, 0, …): the stages that use layer 0."""
        slots = self._work(x)
        for field, s, t, w in self.lift_stages:
            field.add(0, slots[s], slots[t], w, field.tape(1, x), 0)
        return _state(slots, self.stepper.memory)

    def pull_lift(self, x: Tensor, z: Tensor, gradients: bool) -> Tensor:
        """Cotangent of (y_0, 0, …) from z_0; x is the state before the lift."""
        bars = list(z.clone().unbind())
        slots = self._work(x)
        for field, s, t, w in reversed(self.lift_stages):
            kept: Kept = field.tape(1, x)
            field.add(0, slots[s], slots[t], w, kept, 0)
            field.remove(0, slots[t], w, kept, 0)
            pull = field.pull_grad if gradients else field.pull
            pull(0, slots[s], bars[t], bars[s], w, kept[0])
        return torch.stack(bars)


class CoarseSteps:
    """Coarse propagators G_k of one level over this rank's spans of layers.

    Args:
        memory: slots of a state.
        fields: term -> field of all parts of all local steps, in order.
        programs: the program of each local step.
        first: index of the first local step on its level.
    """

    def __init__(self, memory: int, fields: Mapping[str, Field], programs: Sequence[Program], first: int) -> None:
        self.memory, self.fields, self.programs, self.first = memory, fields, programs, first
        self._offsets = [0]
        for program in programs:
            parts = len(program.lengths) if isinstance(program, Picard) else 1 + max(s.part for s in program)
            self._offsets.append(self._offsets[-1] + parts)
        stages = [s for p in programs if not isinstance(p, Picard) for s in p]
        count = 1 + max((max(s.source, s.target) for s in stages), default=memory - 1)
        self._work = _Workspace(next(iter(fields.values())), max(count, memory))
        self._kept: dict[int, Any] = {}

    def step(self, k: int, x: Tensor) -> Tensor:
        """G_k(x)."""
        return self._forward(k, x, linear=False)[0]

    def linearize(self, k: int, x: Tensor) -> None:
        """Remember what `pull` needs: G_k at x."""
        self._kept[k] = self._forward(k, x, linear=True)[1]

    def forget(self) -> None:
        """Drop what `linearize` remembered."""
        self._kept = {}

    def _forward(self, k: int, x: Tensor, linear: bool) -> tuple[Tensor, Any]:
        program, offset = self.programs[k - self.first], self._offsets[k - self.first]
        if isinstance(program, Picard):
            return _picard(self.fields[program.term], program, offset, x)
        slots, keeps = self._work(x), []
        for stage in program:
            field = self.fields[stage.term]
            kept = field.tape(1, x)
            if stage.start is not None:
                slots[stage.target].view.copy_(slots[stage.start].view)
            act = field.linearize if linear else field.add
            act(offset + stage.part, slots[stage.source], slots[stage.target], stage.w, kept, 0)
            keeps.append(kept[0])
        return _state(slots, self.memory), keeps

    def pull(self, k: int, z: Tensor) -> Tensor:
        """(∂G_k/∂x)ᵀ z at the state of the last `linearize`."""
        program, offset, kept = self.programs[k - self.first], self._offsets[k - self.first], self._kept[k]
        if isinstance(program, Picard):
            return _picard_pull(self.fields[program.term], program, offset, z, kept)
        return self._pull_stages(program, offset, z, kept)

    def _pull_stages(self, program: tuple[Stage, ...], offset: int, z: Tensor, keeps: Kept) -> Tensor:
        slots = self._work(z)
        bars = [slot.view for slot in slots]
        for bar in bars[self.memory :]:
            bar.zero_()
        for stage, kept in zip(reversed(program), reversed(keeps), strict=True):
            target, source = bars[stage.target], bars[stage.source]
            self.fields[stage.term].pull(offset + stage.part, slots[stage.source], target, source, stage.w, kept)
            if stage.start is not None:
                bars[stage.start].add_(target)
                target.zero_()
        return _state(slots, self.memory)


def _picard_matrix(program: Picard, like: Tensor) -> tuple[Tensor, Tensor]:
    """M with M_il = H_l for l < i and ½(H_i − h) on the diagonal, and the vector H."""
    H = torch.tensor([n * program.h for n in program.lengths], dtype=like.dtype, device=like.device)
    M = H.expand(len(H), -1).tril(-1) + torch.diag((H - program.h) / 2)
    return M, H


def _picard(field: Field, program: Picard, offset: int, x: Tensor) -> tuple[Tensor, list[Any]]:
    """G(y) = y + Σ H_i k_i after p passes k ← f(y + M k), and what the passes leave on their tapes."""
    parts = range(offset, offset + len(program.lengths))
    M, H = _picard_matrix(program, x)
    k, kept = field.batch(parts, x)
    tapes = [kept]
    for _ in range(program.passes - 1):
        k, kept = field.batch(parts, x + torch.tensordot(M, k, 1))
        tapes.append(kept)
    return x + torch.tensordot(H, k, 1), tapes


def _picard_pull(field: Field, program: Picard, offset: int, z: Tensor, tapes: list[Any]) -> Tensor:
    """The transpose of the linearised `_picard`, passes in reverse."""
    parts = range(offset, offset + len(program.lengths))
    M, H = _picard_matrix(program, z)
    bar, k_bar = z, torch.tensordot(H[:, None], z, 1)
    for i in reversed(range(len(tapes))):
        y_bar = field.batch_pull(parts, k_bar.contiguous(), tapes[i])
        bar = bar + y_bar.sum(0, keepdim=True)
        if i:
            k_bar = torch.tensordot(M.t(), y_bar, 1)
    return bar
