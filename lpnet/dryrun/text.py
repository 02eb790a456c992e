"""A forecast in lines to read."""

from collections.abc import Sequence
from itertools import groupby

from lpnet.dryrun.footprint import MIB
from lpnet.dryrun.forecast import GAIN, Forecast, Level, Messages
from lpnet.errors import counted
from lpnet.options import MGRIT, SolverOptions

_MEANING = {
    "halo": "halo",
    "chain": "chain",
    "weights": "weights",
    "states": "states of coarse steps",
}


def lines(one: Forecast) -> list[str]:
    """All of it."""
    subject, head = one.subject, []
    head.append(
        f"{counted(subject.layers, 'layer')}, batch {subject.batch}, width {subject.features}, "
        f"{counted(one.ranks, 'rank')}; {counted(one.steps, 'step')}"
    )
    head.append(f"slabs     {slabs(one.slabs)}")
    both = (("forward", subject.forward, one.levels[0]), ("adjoint", subject.adjoint, one.levels[1]))
    for name, options, levels in both:
        head.append(f"{name:9} {solver(options, levels)}")
        head += [f"            level {depth}: {level_words(level)}" for depth, level in enumerate(levels)]
    body = [*memory(one), *messages(one), *times(one)]
    body += [f"not counted: {note}" for note in one.notes]
    for coarse in one.coarser:
        here = coarse.here
        body.append(
            f"before    {counted(coarse.steps, 'step')} with {counted(coarse.subject.layers, 'layer')}: "
            f"{here.step * 1e3:.4g} ms a step (modelled), {here.memory / MIB:.4g} MiB on the largest rank; "
            f"{_enough(coarse)}"
        )
    return head + body


def _enough(one: Forecast) -> str:
    return f"more than {counted(one.enough, 'rank')} do not help"


def slabs(counts: Sequence[int]) -> str:
    """Layers of each rank, equal neighbours together."""
    found, rank = [], 0
    for n, group in groupby(counts):
        size = len(list(group))
        who = f"rank {rank}" if size == 1 else f"ranks {rank} to {rank + size - 1}"
        found.append(f"{who}: {n}")
        rank += size
    most = 8
    more = [f"… {len(found) - most} more"] if len(found) > most else []
    return ", ".join(found[:most] + more) + " layers"


def solver(options: SolverOptions, levels: Sequence[Level]) -> str:
    """A solver in words."""
    if not isinstance(options, MGRIT) or len(levels) == 1:
        parts = getattr(options, "micro_batches", 1)
        return f"the exact chain, {counted(parts, 'part')} of the batch"
    cycles = counted(options.cycles, "cycle")
    return f"MGRIT, {len(levels)} levels, {cycles}, {options.relaxation}, start {options.initial}"


def level_words(level: Level) -> str:
    """A level in words."""
    coarsening = f", coarsening {level.coarsening}" if level.coarsening else ""
    return f"{counted(level.steps, 'step')} on {counted(level.busy, 'rank')}{coarsening}"


def memory(one: Forecast) -> list[str]:
    """Of the largest rank, by purpose."""
    totals = [f.total for f in one.footprints]
    rank = max(range(len(totals)), key=totals.__getitem__)
    parts = ", ".join(f"{name} {size / MIB:.3g}" for name, size in one.footprints[rank].parts().items() if size)
    return [
        f"memory    {totals[rank] / MIB:.4g} MiB on rank {rank}, the largest (least {min(totals) / MIB:.4g}), "
        "beside the process itself",
        f"            {parts}",
    ]


def messages(one: Forecast) -> list[str]:
    """Of the rank that sends the most bytes, in one step."""
    rank = max(range(one.ranks), key=lambda r: (one.messages[r].volume, one.messages[r].sent))
    found = one.messages[rank]
    kinds = [f"{_MEANING[k]} {_pair(found, k)}" for k in _MEANING if found.counts.get(k)]
    together = [f"{k}s {_pair(found, k)}" for k in ("broadcast", "sum") if found.counts.get(k)]
    what = f"{counted(found.sent, 'message')}, {found.volume / MIB:.3g} MiB" if found.sent else "none to single ranks"
    return [
        f"messages  a step, rank {rank}: {what}" + (f" ({', '.join(kinds)})" if kinds else ""),
        f"            collective: {', '.join(together)}",
    ]


def _pair(found: Messages, kind: str) -> str:
    size = found.bytes[kind]
    return f"{found.counts[kind]} x {size / found.counts[kind] / 1024:.3g} KiB"


def times(one: Forecast) -> list[str]:
    """The table over the ranks, and how far they help."""
    fabric = one.fabric
    found = [
        f"time      modelled: costs of the steps as measured on this machine, messages by the fabric {fabric.name} "
        f"({fabric.latency * 1e6:.3g} us, {fabric.bandwidth / 1e9:.3g} GB/s)",
        "            ranks   solves ms     step ms   speed-up  efficiency  MiB a rank",
    ]
    for p in one.points:
        mark = "  <" if p.ranks == one.ranks else ""
        found.append(
            f"            {p.ranks:5} {p.solves * 1e3:11.4g} {p.step * 1e3:11.4g} {p.speedup:10.3g} "
            f"{p.efficiency:11.0%} {p.memory / MIB:11.4g}{mark}"
        )
    found.append(
        f"            {_enough(one)} (less than {1 - GAIN:.0%}); "
        "speed-up over the exact chain on one rank"
    )
    return found
