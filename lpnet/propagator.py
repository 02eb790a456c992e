"""Φ on the layers of one rank: forward, and pulled back.

`Layers` are the exact layers Φ_j of a slab with their weights as they were prepared. What a forward sweep leaves for
the adjoint is one of three (`store`):

    all        one tensor per stage and layer, and the states at the ends of the segments, from which all others are
               rebuilt by subtraction; steps that cannot be undone in place keep the state before each layer too
    cpoints    the states at the begins of the segments; a segment is run again when it is pulled back
    reverse    the states at the ends of the segments; a reversible step is undone by evaluating f again

Layers are counted in the global layer index throughout.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import pairwise, repeat
from typing import Any

import torch
from torch import Tensor

from lpnet import programs
from lpnet.blocks import Blocks
from lpnet.fields import Field, Slot
from lpnet.how import STORED, How
from lpnet.programs import Kept, Place
from lpnet.steppers import Mix, Stepper, is_in_place, slots_of, stages_of
from lpnet.tape import Tape, joined


class Workspace:
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


def state_of(slots: Sequence[Slot], memory: int) -> Tensor:
    """A copy of the state that the slots hold."""
    return torch.stack([slot.view for slot in slots[:memory]])


def _undo_again(
    field: Field, source: Slot, target: Slot, w: float, tape: list[Any], j: int, at: int
) -> None:
    field.add(source, target, -w, tape, j, at)  # which leaves what the pull needs


Act = Callable[[int, int], None]
"""(j, at): one instruction of a step with weights j, which keeps what the adjoint needs at this place."""


class Layers:
    """The exact layers lo, …, lo + n − 1 of a slab.

    Args:
        stepper: gives the program of Φ.
        fields: term -> field of the n layers.
        h: layer step.
        lo: index of the first layer.
        n: number of layers.
        how: what is kept, and which adjoint.
    """

    def __init__(
        self, stepper: Stepper, fields: Mapping[str, Field], h: float, lo: int, n: int, how: How = STORED
    ) -> None:
        self.stepper, self.fields, self.h, self.lo, self.n, self.how = stepper, fields, h, lo, n, how
        self.program = stepper.stages(h)
        self.again = 0  # layers evaluated so far for states that were not kept
        self.in_place = is_in_place(self.program)
        self.field = fields[stages_of(self.program)[0].term]
        lift = stepper.lift(h)
        self._lift = lift
        self._count = max(slots_of(self.program, stepper.memory), slots_of(lift, stepper.memory))
        self._work = Workspace(self.field, self._count + how.continuous)
        self._sources = Workspace(self.field, max(len(self.program), len(lift)))
        self._many: tuple[Blocks, Layers | None] | None = None
        self._one: tuple[torch.Size, list[Kept]] | None = None

    def many(self, at: Blocks) -> "Layers | None":
        """Equal blocks of these layers at once, as layers of states (memory, K, ...); None where they go one by one."""
        if self._many is None or self._many[0] != at:
            self._many = None  # the memory of others is free again
            fields = {term: field.blocks(at) for term, field in self.fields.items()}
            able = self.how.store == "all" and None not in fields.values()
            self._many = at, Layers(self.stepper, fields, self.h, 0, at.length, self.how) if able else None
        return self._many[1]

    def first(self, n: int) -> "Layers":
        """The first n layers, with memory of their own."""
        return Layers(self.stepper, self.fields, self.h, self.lo, n, self.how)

    def tape(self, like: Tensor | None) -> Tape:
        """An empty tape for states like `like`; None: one that keeps nothing."""
        if like is None:
            return Tape([], records=False)
        tape = Tape([])
        if self.how.store == "all":
            tape.kept = self._tapes(self.n, like, tape)
        return tape

    def _tapes(self, n: int, like: Tensor, holder: object) -> list[Kept]:
        return programs.tapes_of(self.program, self.fields, n, like, holder)

    def _places(self, tape: Tape, like: Tensor) -> list[Kept]:
        """Where each instruction keeps what it must: the tape, or one place for all layers."""
        if tape.kept:
            return tape.kept
        if self._one is None or self._one[0] != like.shape:
            self._one = like.shape, self._tapes(1, like, self)
        return self._one[1]

    def _layers(self, a: int, b: int, tape: Tape, step: int = 1) -> Iterable[tuple[int, int]]:
        """Layers a, …, b − 1 (or back) as indices of their weights, and of their places on the tape."""
        lo, shift = self.lo, self.lo + tape.shift
        places = range(a - shift, b - shift)[::step] if tape.kept else repeat(0)
        return zip(range(a - lo, b - lo)[::step], places, strict=False)

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
        return [part.contiguous() for part in x.chunk(count, self.field.batch_dim(x))]

    def join(self, xs: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        return xs[0] if len(xs) == 1 else torch.cat(xs, self.field.batch_dim(xs[0]))

    def retape(self, tapes: list[Tape], count: int, x: Tensor) -> list[Tape]:
        """The same tape in so many parts of the batch; x is a whole state."""
        if len(tapes) == count:
            return tapes
        dim = self.field.batch_dim(x)
        whole = tapes[0] if len(tapes) == 1 else joined(tapes, dim)
        return [whole] if count == 1 else whole.split(count, dim)

    # ---- forward -------------------------------------------------------------------------------------------------

    def run(self, a: int, b: int, x: Tensor, tape: Tape) -> Tensor:
        """x_b from x_a = x by the layers a, …, b − 1."""
        if not (tape.records and self.how.store == "cpoints"):
            return self._run(a, b, x, tape)
        block = max(1, math.isqrt(self.n - 1) + 1)  # as many states again as there are layers in a block
        for p, q in pairwise([*range(a, b, block), b]):
            end = self._run(p, q, x, Tape([], records=False))
            tape.note(p, q, x, None)
            x = end
        return x

    def _run(self, a: int, b: int, x: Tensor, tape: Tape) -> Tensor:
        slots, places = self._work(x), self._places(tape, x)
        if self.in_place:
            acts = self._forwards(slots, places)
            for j, at in self._layers(a, b, tape):
                for act in acts:
                    act(j, at)
        else:
            self._run_general(a, b, slots, places, tape)
        end = state_of(slots, self.stepper.memory)
        if tape.records:
            tape.note(a, b, x, end)
        return end

    def _forwards(self, slots: list[Slot], places: list[Kept]) -> list[Act]:
        """The instructions of an in-place step."""
        acts: list[Act] = []
        for step, kept in zip(self.program, places, strict=True):
            target = slots[step.target]
            if isinstance(step, Mix):
                acts.append(partial(programs.Mixing(step).add, slots, target, 1.0, kept))
            else:
                acts.append(partial(self.fields[step.term].add, slots[step.source], target, step.w, kept))
        return acts

    def _run_general(self, a: int, b: int, slots: list[Slot], places: list[Kept], tape: Tape) -> None:
        for j, at in self._layers(a, b, tape):
            if tape.kept:
                tape.states[j + self.lo] = state_of(slots, self.stepper.memory)
            programs.forward(self.program, self.fields, slots, Place(j, places, at))

    def state(self, j: int, tape: Tape) -> Tensor:
        """x_j as the sweep of the tape had it before layer j."""
        for known in (tape.starts, tape.states):
            if j in known:
                return known[j]
        b = tape.end_after(j)
        if self.how.store == "cpoints":
            a = tape.begin[b]
            self.again += j - a
            return self._run(a, j, tape.starts[a], Tape([], records=False))
        slots = self._work(tape.ends[b])
        self._rewind(b, j, slots, tape)
        return state_of(slots, self.stepper.memory)

    # ---- backward ------------------------------------------------------------------------------------------------

    def _backwards(
        self, slots: list[Slot], places: list[Kept], bars: list[Tensor] | None, gradients: bool, undo: bool
    ) -> list[Act]:
        """The instructions of an in-place step from the last to the first: undone, pulled back (with bars), or both."""
        acts: list[Act] = []
        for step, kept in zip(reversed(self.program), reversed(places), strict=True):
            source: Any
            source_bar: Any
            target_bar: Any
            if isinstance(step, Mix):
                one: Any = programs.Mixing(step)
                back, source, source_bar, target_bar, w = one.unmix, slots, bars, None, 1.0
            else:
                one, source, w = self.fields[step.term], slots[step.source], step.w
                back = partial(_undo_again, one) if self.how.store == "reverse" else one.remove
                source_bar, target_bar = (None, None) if bars is None else (bars[step.source], bars[step.target])
            if undo:
                acts.append(partial(back, source, slots[step.target], w, kept))
            if bars is not None:
                acts.append(partial(one.pull_grad if gradients else one.pull, source, target_bar, source_bar, w, kept))
        return acts

    def _rewind(self, b: int, a: int, slots: list[Slot], tape: Tape) -> None:
        """x_a from x_b in the slots."""
        if a == b:
            return
        self.again += (b - a) * (self.how.store == "reverse")
        acts = self._backwards(slots, self._places(tape, tape.ends[b]), None, False, True)
        for j, at in self._layers(a, b, tape, -1):
            for act in acts:
                act(j, at)

    def pull(self, a: int, b: int, z: Tensor, tape: Tape, gradients: bool) -> Tensor:
        """z_a from z_b = z; with `gradients`, those of the weights are added to the fields'."""
        bars = self._bars(z)
        while b > a:
            end = tape.end_after(b - 1)
            first = tape.begin[end]
            begin = max(a, first)
            segment = tape
            if self.how.store == "cpoints":
                segment, end = self._again(first, b, tape.starts[first]), b
            if self.how.continuous:
                self._pull_continuous(range(begin, b), bars, end, segment, gradients)
            elif self.in_place:
                self._pull_in_place(range(begin, b), bars, end, segment, gradients)
            else:
                self._pull_general(range(begin, b), bars, segment, gradients)
            b = begin
        return torch.stack(bars[: self.stepper.memory])

    def _bars(self, z: Tensor) -> list[Tensor]:
        """Cotangents of all slots."""
        more = self._count - self.stepper.memory
        return [*z.clone().unbind(), *(torch.zeros_like(z[0]) for _ in range(more))]

    def _again(self, a: int, b: int, x: Tensor) -> Tape:
        """The whole tape of a segment."""
        self.again += b - a
        tape = Tape([], a - self.lo)
        tape.kept = self._tapes(b - a, x, tape)
        self._run(a, b, x, tape)
        return tape

    def _pull_in_place(self, layers: range, bars: list[Tensor], end: int, tape: Tape, gradients: bool) -> None:
        slots, places = self._work(tape.ends[end]), self._places(tape, tape.ends[end])
        needs = any(self.fields[step.term].needs_source for step in stages_of(self.program))
        rebuild = gradients or needs or self.how.store == "reverse"
        if rebuild:
            self._rewind(end, layers.stop, slots, tape)
        acts = self._backwards(slots, places, bars, gradients, rebuild)
        self.again += len(layers) * (self.how.store == "reverse")
        for j, at in self._layers(layers.start, layers.stop, tape, -1):
            for act in acts:
                act(j, at)
        if self.how.store == "reverse" and layers.start in tape.starts:
            tape.undone(layers.start, state_of(slots, self.stepper.memory))

    def _pull_general(self, layers: range, bars: list[Tensor], tape: Tape, gradients: bool) -> None:
        sources: list[Slot] = []
        for j, at in self._layers(layers.start, layers.stop, tape, -1):
            x, place = tape.states[j + self.lo], Place(j, tape.kept, at)
            sources = self._sources(x)
            programs.replay(self.program, self.fields, self._work(x), place, sources)
            programs.backward(self.program, self.fields, sources, bars, place, gradients)

    def _pull_continuous(self, layers: range, bars: list[Tensor], end: int, tape: Tape, gradients: bool) -> None:
        """z_j = z_{j+1} + h (∂f/∂y)ᵀ z_{j+1}, g_j = h (∂f/∂θ)ᵀ z_{j+1}, both at (x_{j+1}, θ_j)."""
        slots = self._work(tape.ends[end])
        self._rewind(end, layers.stop, slots, tape)
        (step,) = stages_of(self.program)
        field, y, spare = self.fields[step.term], slots[0], slots[-1]
        pull, keep = field.pull_grad if gradients else field.pull, field.tape(1, tape.ends[end])
        for j, at in self._layers(layers.start, layers.stop, tape, -1):
            field.add(y, spare, 0.0, keep, j, 0)
            pull(y, bars[0], bars[0], step.w, keep, j, 0)
            field.remove(y, y, step.w, tape.kept[0], j, at)

    # ---- the lift ------------------------------------------------------------------------------------------------

    def lift(self, x: Tensor) -> Tensor:
        """x_0 from (y_0, 0, …): the program that uses layer 0."""
        if not self._lift:
            return x
        slots = self._work(x)
        programs.forward(self._lift, self.fields, slots, Place(0, self._lift_tapes(x)))
        return state_of(slots, self.stepper.memory)

    def pull_lift(self, x: Tensor, z: Tensor, gradients: bool) -> Tensor:
        """Cotangent of (y_0, 0, …) from z_0; x is the state before the lift."""
        if not self._lift:
            return z
        bars, place, sources = self._bars(z), Place(0, self._lift_tapes(x)), self._sources(x)
        programs.forward(self._lift, self.fields, self._work(x), place)
        programs.replay(self._lift, self.fields, self._work(x), place, sources)
        programs.backward(self._lift, self.fields, sources, bars, place, gradients)
        return torch.stack(bars[: self.stepper.memory])

    def _lift_tapes(self, x: Tensor) -> list[Kept]:
        return programs.tapes_of(self._lift, self.fields, 1, x)
