"""When and how a run is struck, and what was seen of it."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lpnet.launch import BAD_INPUT, DONE, NON_FINITE, STALLED, STOPPED, UNWRITABLE

MOMENTS = ("steps", "start", "checkpoint", "steps", "evaluation", "checkpoint", "end")
"""When; those of which there is more come up more often."""
KINDS = ("rank", "all", "disk", "rank", "mpirun", "launcher")
"""What: SIGKILL to one rank, SIGTERM to all, no room on the disk, SIGTERM to mpirun, SIGKILL to all but the ranks."""
VALIDATE = 20
"""Steps between two evaluations."""


@dataclass(frozen=True)
class Strike:
    """What is going to happen.

    Args:
        moment: of MOMENTS.
        kind: of KINDS.
        step: behind which it happens.
        delay: from 0 to 1, of the time that the moment lasts.
        victim: from 0 to 1, of the ranks.
        ranks: on which the run goes on afterwards.
    """

    moment: str
    kind: str
    step: int
    delay: float
    victim: float
    ranks: int


@dataclass
class Blow:
    """What has happened: the strike, and what was seen of it."""

    strike: Strike
    ranks: int
    step: int
    code: int | None = None
    seconds: float = 0.0
    kept: list[int] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def line(self) -> str:
        """All of it."""
        ended = f"code {self.code} in {self.seconds:.1f} s" if self.code is not None else "did not end"
        kept = f"checkpoints of steps {self.kept}" if self.kept else "no checkpoint yet"
        text = f"{self.strike.moment:10s} step {self.step:4d}  {self.strike.kind:8s} of {self.ranks}: {ended}, {kept}"
        return "\n".join([text, *(f"    FAULT: {fault}" for fault in self.faults)])


def plan(chance: random.Random, count: int, steps: int, ranks: tuple[int, int]) -> list[Strike]:
    """Strikes of one run, in the order in which they happen.

    Args:
        chance: what is random.
        count: of strikes.
        steps: of the run.
        ranks: least and most of them, on which the run goes on after a strike.
    """
    moments, kinds = (list(deal(chance, cards, count)) for cards in (MOMENTS, KINDS))
    inner = iter(sorted(chance.randrange(1, steps - 1) for _ in range(count)))
    found = []
    for moment, kind in sorted(zip(moments, kinds, strict=True), key=turn):
        step = steps if moment == "end" else next(inner)
        if moment == "evaluation":  # the next one, as long as there is one, is in the step behind this one
            step = min(-(-step // VALIDATE), steps // VALIDATE) * VALIDATE - 1
        found.append(Strike(moment, kind, step, chance.random(), chance.random(), chance.randint(*ranks)))
    return found


def turn(pair: tuple[str, str]) -> int:
    """Strikes at the end come last, and of these last the ones that a run may finish in spite of."""
    moment, kind = pair
    return 0 if moment != "end" else 1 if kind in ("rank", "launcher") else 2


def deal(chance: random.Random, cards: Sequence[str], count: int) -> Iterator[str]:
    """So many cards of decks that are shuffled one by one, which come up evenly."""
    while count > 0:
        deck = chance.sample(cards, len(cards))
        yield from deck[:count]
        count -= len(deck)


def promised(kind: str, stepping: bool, done: bool) -> set[int]:
    """Exit codes that may follow a strike.

    Args:
        kind: of the strike.
        stepping: whether the run had begun or gone on.
        done: whether its summary is there: then it may as well have ended by itself.
    """
    by_itself = {DONE} if done else set[int]()
    killed = set(range(-64, 256)) - {DONE, BAD_INPUT, NON_FINITE, UNWRITABLE, STALLED, STOPPED}  # as launchers like
    if kind == "disk":
        return by_itself | {UNWRITABLE} | (set() if stepping else {BAD_INPUT})
    if kind == "all":  # nobody heeds signals before the run is there
        return by_itself | {STOPPED} | (set() if stepping else killed)
    return by_itself | killed | ({STOPPED} if kind == "mpirun" else set())
