"""Coarse propagators G of one level over this rank's spans of layers: forward, linearised, pulled back."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lpnet import programs
from lpnet.blocks import Blocks, most, shared
from lpnet.constants import constant
from lpnet.fields import Field, Slot
from lpnet.programs import Fields, Kept, Place
from lpnet.propagator import Workspace, state_of
from lpnet.steppers import Picard, Program, Steps, slots_of

FEW = 8
"""Steps from which they go together on a CPU: views of their weights take about as long as 6 evaluations of a layer."""


class CoarseSteps:
    """Coarse propagators G_k of one level over this rank's spans of layers.

    Args:
        memory: slots of a state.
        fields: term -> field of the weights of all local steps, in order.
        programs: the program of each local step.
        rows: how many weights each of them has.
        first: index of the first local step on its level.
    """

    def __init__(
        self, memory: int, fields: Mapping[str, Field], made: Sequence[Program], rows: Sequence[int], first: int
    ) -> None:
        self.memory, self.fields, self.programs, self.rows, self.first = memory, fields, made, rows, first
        self.offsets = [0, *accumulate(rows)]
        distinct = {id(p): p for p in made}.values()
        self.slots = max([memory, *(slots_of(p, memory) for p in distinct if not isinstance(p, Picard))])
        self._work, self._dots = (Workspace(next(iter(fields.values())), self.slots) for _ in range(2))
        self._scratch: list[Tensor] = []
        self._kept: dict[int, tuple[Tensor | None, Any]] = {}
        self._tapes: dict[tuple[int, bool], list[Kept]] = {}
        self._shape: torch.Size | None = None
        self._parts: list[CoarseSteps] = []

    def parts(self, count: int) -> "list[CoarseSteps]":
        """The same steps once for each part of the batch, with memory of their own."""
        while len(self._parts) < count:
            self._parts.append(type(self)(self.memory, self.fields, self.programs, self.rows, self.first))
        return self._parts[:count]

    @property
    def is_random(self) -> bool:
        """Numbers are drawn for a state as a whole."""
        return any(field.is_random for field in self.fields.values())

    def step(self, k: int, x: Tensor) -> Tensor:
        """G_k(x)."""
        program, offset = self.programs[k - self.first], self.offsets[k - self.first]
        if isinstance(program, Picard):
            return _picard(self.fields[program.term], program, offset, x)[0]
        return self._forward(program, self.fields, Place(offset, self._tapes_of(program, x, False)), x)

    def linearize(self, k: int, x: Tensor, tangents: bool = True) -> None:
        """Remember what `pull` needs, and, if `tangents` will be asked for, what they need: G_k at x."""
        at = k - self.first
        program, offset = self.programs[at], self.offsets[at]
        if isinstance(program, Picard):
            self._kept[k] = x if tangents else None, _picard(self.fields[program.term], program, offset, x)[1]
            return
        place = Place(offset, self._tapes_of(program, x, True), at)
        self._forward(program, self.fields, place, x, linear=True)
        self._kept[k] = x if tangents else None, place

    def forget(self) -> None:
        """Drop what `linearize` remembered."""
        self._kept = {}

    def _tapes_of(self, program: Steps, x: Tensor, kept: bool) -> list[Kept]:
        """A tape for each instruction: of a place for each local step, or of one, for steps that nobody pulls back."""
        if self._shape != x.shape:
            self._tapes, self._shape = {}, x.shape
        key = (id(program), kept)
        if key not in self._tapes:
            n = len(self.programs) if kept else 1
            self._tapes[key] = programs.tapes_of(program, self.fields, n, x, self)
        return self._tapes[key]

    def _forward(self, program: Steps, fields: Fields, place: Place, x: Tensor, linear: bool = False) -> Tensor:
        out = torch.empty_like(x)
        values, places, more = [*x.unbind()], [*out.unbind()], self._spare(x)
        values += more
        programs.apart(program, fields, values, places + more, place, linear)
        for value, own in zip(values, places, strict=False):
            if value is not own:  # no instruction has changed it
                own.copy_(value)
        return out

    def _spare(self, x: Tensor) -> list[Tensor]:
        """Scratch slots for states like x."""
        if not self._scratch or self._scratch[0].shape != x.shape[1:]:
            self._scratch = [torch.empty_like(x[0]) for _ in range(self.slots - self.memory)]
        return self._scratch

    def pull(self, k: int, z: Tensor) -> Tensor:
        """(∂G_k/∂x)ᵀ z at the state of the last `linearize`."""
        program, offset, kept = self.programs[k - self.first], self.offsets[k - self.first], self._kept[k][1]
        if isinstance(program, Picard):
            return _picard_pull(self.fields[program.term], program, offset, z, kept)
        return self._pull_steps(program, self.fields, kept, z)

    def tangent(self, k: int, dot: Tensor, deltas: Mapping[str, Any] | None) -> Tensor:
        """(∂G_k/∂x) dot + (∂G_k/∂θ) δθ at the state of the last `linearize`; deltas: δθ as the fields hold it."""
        program, offset, (x, kept) = self.programs[k - self.first], self.offsets[k - self.first], self._kept[k]
        if isinstance(program, Picard):
            delta = None if deltas is None else deltas[program.term]
            return _picard_tangent(self.fields[program.term], program, offset, dot, (kept, delta))
        if x is None:
            raise RuntimeError("linearised without tangents")
        pairs = programs.Pairs(self._work(x), self._dots(dot), deltas)
        programs.tangent(program, self.fields, pairs, kept)
        return state_of(pairs.dots, self.memory)

    def _pull_steps(self, program: Steps, fields: Fields, place: Place, z: Tensor) -> Tensor:
        out, more = z.clone(), self._spare(z)
        for bar in more:
            bar.zero_()
        unused = Slot(*[z] * 5)  # what is linearised needs no source
        programs.backward(program, fields, [unused] * len(program), [*out.unbind(), *more], place)
        return out

    # ---- several steps at once -----------------------------------------------------------------------------------

    def step_all(self, ks: Sequence[int], xs: Sequence[Tensor]) -> list[Tensor]:
        """G_k(x) of each."""
        def at_once(some: Some, x: Tensor) -> Tensor:
            tapes = programs.tapes_of(some.program, some.fields, 1, x)
            return self._forward(some.program, some.fields, Place(0, tapes), x)

        return self._all(ks, xs, self.step, at_once)

    def linearize_all(self, ks: Sequence[int], xs: Sequence[Tensor], tangents: bool = True) -> None:
        """Remember what `pull` and, if they will be asked for, `tangent` need of each; what is known stays as it is."""
        def at_once(some: Some, x: Tensor) -> Tensor:
            tapes = self._tapes_of(some.program, x[:, 0], True)
            for k in some.ks:
                place = Place(self.offsets[k - self.first], tapes, k - self.first)
                self._kept[k] = new[k] if tangents else None, place
            return self._forward(some.program, some.fields, self._place(some, tapes), x, linear=True)

        def alone(k: int, x: Tensor) -> Tensor:
            self.linearize(k, x, tangents)
            return x

        new = {k: x for k, x in zip(ks, xs, strict=True) if not (tangents and self._knows(k, x))}
        self._all(list(new), list(new.values()), alone, at_once)

    def _knows(self, k: int, x: Tensor) -> bool:
        """Whether G_k is linearised at x."""
        at = self._kept.get(k, (None, None))[0]
        return at is not None and (at is x or torch.equal(at, x))

    def pull_all(self, ks: Sequence[int], zs: Sequence[Tensor]) -> list[Tensor]:
        """(∂G_k/∂x)ᵀ z of each."""
        def at_once(some: Some, z: Tensor) -> Tensor:
            place = self._place(some, self._kept[some.ks[0]][1].tapes)
            return self._pull_steps(some.program, some.fields, place, z)

        return self._all(ks, zs, self.pull, at_once)

    def _place(self, some: "Some", tapes: Sequence[Kept]) -> Place:
        """Where they are on tapes of all local steps."""
        at = Blocks(some.ks[0] - self.first, len(some.ks), some.ks[1] - some.ks[0], 1)
        return Place(0, [at.kept(tape) for tape in tapes])

    def _all(
        self,
        ks: Sequence[int],
        xs: Sequence[Tensor],
        alone: Callable[[int, Tensor], Tensor],
        at_once: "Callable[[Some, Tensor], Tensor]",
    ) -> list[Tensor]:
        """What `at_once` makes of states (memory, K, ...) where steps are alike, and `alone` of those that are not."""
        found: dict[int, Tensor] = {}
        given = dict(zip(ks, xs, strict=True))
        for run in self.alike(sorted(ks), xs):
            some = self._some(run, FEW if xs[0].device.type == "cpu" else 2)
            if some is None:
                found |= {k: alone(k, given[k]) for k in run}
            else:
                ends = at_once(some, torch.stack([given[k] for k in run], dim=1))
                found |= dict(zip(run, ends.unbind(1), strict=True))
        return [found[k] for k in ks]

    def alike(self, ks: Sequence[int], xs: Sequence[Tensor]) -> Iterator[list[int]]:
        """Runs of steps by the same program, equally far apart."""
        runs: list[list[int]] = []
        for k in ks:
            run = runs[-1] if runs else []
            same = bool(run) and self.programs[k - self.first] is self.programs[run[-1] - self.first]
            if not same or (len(run) > 1 and self._gap(run[-1], k) != self._gap(run[-2], run[-1])):
                runs.append(run := [])
            run.append(k)
        for run in runs:
            at = run[0] - self.first
            rows = self.offsets[at + 1] - self.offsets[at]
            yield from shared(run, most(rows * sum(field.size for field in self.fields.values()), xs[0]))

    def _gap(self, k: int, following: int) -> tuple[int, int]:
        return following - k, self.offsets[following - self.first] - self.offsets[k - self.first]

    def _some(self, run: list[int], least: int) -> "Some | None":
        """Those steps, or None where they go one by one, as fewer than `least` do."""
        at = run[0] - self.first
        program, offset = self.programs[at], self.offsets[at]
        if len(run) < least or isinstance(program, Picard):
            return None
        blocks = Blocks(offset, len(run), self._gap(*run[:2])[1], self.offsets[at + 1] - offset)
        fields = {term: field.blocks(blocks) for term, field in self.fields.items()}
        return None if None in fields.values() else Some(run, program, fields)


class Some(NamedTuple):
    """Steps by the same program, equally far apart, with their weights as blocks."""

    ks: list[int]
    program: Steps
    fields: Fields


def _picard_matrix(program: Picard, like: Tensor) -> tuple[Tensor, Tensor]:
    """M with M_il = H_l for l < i and ½(H_i − h) on the diagonal, and the vector H."""
    H = np.array([n * program.h for n in program.lengths])
    return constant(np.tril(np.tile(H, (len(H), 1)), -1) + np.diag((H - program.h) / 2), like), constant(H, like)


class Pass(NamedTuple):
    """One pass of a Picard iteration: where f was evaluated, and what it keeps."""

    y: Tensor
    kept: Any


def _picard(field: Field, program: Picard, offset: int, x: Tensor) -> tuple[Tensor, list[Pass]]:
    """G(y) = y + Σ H_i k_i after p passes k ← f(y + M k), and what the passes leave."""
    parts = range(offset, offset + len(program.lengths))
    M, H = _picard_matrix(program, x)
    k, kept = field.batch(parts, x)
    passes = [Pass(x, kept)]
    for _ in range(program.passes - 1):
        y = x + torch.tensordot(M, k, 1)
        k, kept = field.batch(parts, y)
        passes.append(Pass(y, kept))
    return x + torch.tensordot(H, k, 1), passes


def _picard_tangent(
    field: Field, program: Picard, offset: int, dot: Tensor, at: tuple[Sequence[Pass], Any]
) -> Tensor:
    """The linearised `_picard` at its passes, for a change of the weights."""
    parts = range(offset, offset + len(program.lengths))
    M, H = _picard_matrix(program, dot)
    passes, delta = at
    y_dot = k_dot = dot
    for y, kept in passes:
        k_dot = field.batch_tangent(parts, y, y_dot, kept, delta)
        y_dot = dot + torch.tensordot(M, k_dot, 1)
    return dot + torch.tensordot(H, k_dot, 1)


def _picard_pull(field: Field, program: Picard, offset: int, z: Tensor, passes: Sequence[Pass]) -> Tensor:
    """The transpose of the linearised `_picard`, passes in reverse."""
    parts = range(offset, offset + len(program.lengths))
    M, H = _picard_matrix(program, z)
    bar, k_bar = z, torch.tensordot(H[:, None], z, 1)
    for i in reversed(range(len(passes))):
        y_bar = field.batch_pull(parts, k_bar.contiguous(), passes[i].kept)
        bar = bar + y_bar.sum(0, keepdim=True)
        if i:
            k_bar = torch.tensordot(M.t(), y_bar, 1)
    return bar
