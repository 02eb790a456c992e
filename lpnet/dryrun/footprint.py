"""Memory of one rank in a training step, by what it is for.

What grows with the layers of a rank:

    weights      parameters, a copy of the last good ones, what the fields work with, and gradients: those of penalties
                 in the adjoint, and then their sum with those of the loss
    optimizer    what it keeps of each parameter
    tape         what the forward sweep leaves for the adjoint (`store`)
    states       ends of segments and all that the multigrid cycles hold, the most that there is at once
    coarse       weights of the coarse steps, and what their linearisation keeps
    warm         the defects that simultaneous training keeps of each example of mini-batches

and what every rank has: the edges (opening layer, classifier, the batch on its way), slots to work in, the data.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace

from lpnet.dryrun.subject import Subject
from lpnet.dryrun.walk import Coarse, Walk
from lpnet.messages import FREE
from lpnet.steppers import Picard, Program, is_in_place, slots_of, stages_of

MIB = 2.0**20


@dataclass(frozen=True)
class Edges:
    """What is outside of the trunk, on every rank.

    Attributes:
        parameters: bytes of opening layer and classifier.
        features, classes: numbers of an example, and of what the network says of it.
        data: bytes of all examples.
        examples: how many of them are for training, where each one's defects are kept; else 0.
        copies: how many times the optimizer keeps what is like a parameter.
        penalties: of the weights of the layers, whose gradients are there before those of the loss.
    """

    parameters: int = 0
    features: int = 0
    classes: int = 0
    data: int = 0
    examples: int = 0
    copies: float = 0.0
    penalties: int = 0


@dataclass(frozen=True)
class Footprint:
    """Bytes of one rank."""

    weights: float
    optimizer: float
    tape: float
    states: float
    coarse: float
    warm: float
    edges: float
    work: float
    data: float

    @property
    def total(self) -> float:
        """All of them."""
        return sum(self.parts().values())

    def parts(self) -> dict[str, float]:
        """Bytes by name."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


def footprint(walk: Walk, edges: Edges) -> Footprint:
    """Memory of the rank of a walk, when it holds the most: in the adjoint, or where gradients are added up."""
    subject = walk.subject
    rows = walk.layers if subject.controls is None else subject.controls.points
    own = rows * subject.layer + edges.parameters
    held = walk.layers * sum(term.weights for _, term in subject.terms) * subject.itemsize
    if subject.controls is not None:
        held += walk.layers * subject.layer
    solving = Footprint(
        weights=(3 if edges.penalties else 2) * own + held,
        optimizer=edges.copies * own,
        tape=_tape(walk),
        states=_states(walk),
        coarse=_coarse(walk),
        warm=_warm(walk, edges.examples),
        edges=_edges(subject, edges),
        work=_work(walk),
        data=edges.data,
    )
    resting = replace(solving, states=2.0 * len(walk.pieces) * subject.state, work=0.0)
    added = replace(resting, weights=(5 if edges.penalties else 3) * own + held)  # two gradients and their sum
    return max(solving, added, key=lambda one: one.total)


def _program_tape(subject: Subject, program: Program) -> float:
    """Bytes that one run of a program leaves on the tape."""
    assert not isinstance(program, Picard)
    return sum(subject.kept(step.term) for step in stages_of(program))


def _tape(walk: Walk) -> float:
    """What the layers keep: all of them, or those of a block that is run again."""
    subject = walk.subject
    program = subject.stepper.stages(1.0)
    one = _program_tape(subject, program) + (0 if is_in_place(program) else subject.state)
    if subject.store == "all":
        return walk.layers * one * len(set(walk.tapes))
    if subject.store == "reverse":
        return _program_tape(subject, program)
    return _program_tape(subject, program) + one * _block(walk)


def _block(walk: Walk) -> int:
    """Layers of a block with store "cpoints"."""
    if not walk.layers:
        return 0
    longest = max((b - a for a, b in walk.pieces), default=walk.layers)
    return min(longest, max(1, math.isqrt(walk.layers - 1) + 1))


def _states(walk: Walk) -> float:
    """The most states that the solves hold at once, and those that `store` cpoints adds within the segments."""
    more = 0
    if walk.subject.store == "cpoints" and walk.layers:
        block = max(1, math.isqrt(walk.layers - 1) + 1)
        more = sum(-(-(b - a) // block) - 1 for a, b in walk.pieces)
    return (walk.ledger.most + more + walk.late) * walk.subject.state


def _coarse(walk: Walk) -> float:
    """Weights of coarse steps, each set once, and the linearisation of those of the adjoint."""
    subject, total = walk.subject, 0.0
    each = subject.layer + sum(term.weights for _, term in subject.terms) * subject.itemsize
    for level in _levels(walk):
        rows = sum(len(recipe.rows) for recipe in level.recipes)
        total += rows * each + _one_place(subject, level)
    return total + sum(_linear(subject, level) for level in walk.coarse[1])


def _distinct(level: Coarse) -> list[Program]:
    return list({id(recipe.program): recipe.program for recipe in level.recipes}.values())


def _one_place(subject: Subject, level: Coarse) -> float:
    """Tape of a step that nobody pulls back."""
    return sum(_program_tape(subject, p) for p in _distinct(level) if not isinstance(p, Picard))


def _linear(subject: Subject, level: Coarse) -> float:
    """What the linearised steps of a level keep."""
    found = 0.0
    for program in _distinct(level):
        if not isinstance(program, Picard):
            found += len(level.recipes) * _program_tape(subject, program)
    for recipe in level.recipes:
        if isinstance(recipe.program, Picard):
            parts, passes = len(recipe.program.lengths), recipe.program.passes
            found += passes * parts * subject.kept(recipe.program.term) + (passes - 1) * parts * subject.slot
    return found


def _warm(walk: Walk, examples: int) -> float:
    """The defects τ of all examples (those of the last batch alone are among the states)."""
    points = sum(walk.points)
    return examples * (points + 1) * walk.subject.state / walk.subject.batch if points else 0.0


def _edges(subject: Subject, edges: Edges) -> float:
    """The batch on its way through opening layer, trunk and classifier, and back."""
    numbers = edges.features + 3 * edges.classes
    return numbers * subject.batch * subject.itemsize + 4 * subject.slot


def _work(walk: Walk) -> float:
    """Slots, cotangents, scratch of the fields, and buffers of messages."""
    subject, memory = walk.subject, walk.subject.stepper.memory
    program, lift = subject.stepper.stages(1.0), subject.stepper.lift(1.0)
    own = max(slots_of(program, memory), slots_of(lift, memory))
    sources = max(len(program), len(lift)) if lift or not is_in_place(program) else 0
    programs = [p for level in _levels(walk) for p in _distinct(level) if not isinstance(p, Picard)]
    spare = max((max(0, slots_of(p, memory) - memory) for p in programs), default=0)
    steps = spare * sum(walk.alike.get(level.name, 1) for level in _levels(walk) if level.recipes)
    scratch = subject.scratch
    levels = sum(bool(level.recipes) for level in _levels(walk))
    general = 0 if is_in_place(program) else sources
    each = (own + general) * subject.slot + scratch
    sizes = [number * (each + (b - a) * subject.weights) for (a, b), number in walk.blocks]
    blocks = max(sizes, default=0.0)  # of one group at a time
    sent = sum(walk.ledger.sent[kind] for kind in ("halo", "chain", "states"))
    buffers = min(FREE, sent) * subject.state
    return (2 * own + sources + steps) * subject.slot + scratch * (1 + levels) + blocks + buffers


def _levels(walk: Walk) -> Iterable[Coarse]:
    """Sets of coarse steps, each once."""
    return {level.name: level for levels in walk.coarse for level in levels}.values()

