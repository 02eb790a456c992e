"""Two-level MGRIT on networks whose weights are rough in the layer index: which accelerators pay?

    gradient error = the larger of |g − g_exact| / |g_exact| of all weight gradients together and of the input gradient

after k forward and k adjoint cycles, against exact backpropagation in float64, on one process. What was found stands in
docs/notes/hard-networks.md. The networks are those of `peaks_networks.py`; the solver is `two_level.py`, checked here
against `lpnet.LayerParallel`.

    python scripts/notes/hard_networks.py --json FILE --picture FILE
"""

import argparse
import json
import math
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from itertools import islice, pairwise
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from peaks_networks import SETS, WINDOWS, agree, train
from torch import Tensor
from two_level import Adjoint, Forward, Net, Options, Problem, after, coarse, cuts, shifted, solve

from lpnet.plots import OKABE_ITO

MOST = 8  # cycles


# ---- errors ----------------------------------------------------------------------------------------------------------


def error(a: Tensor, b: Tensor) -> float:
    """|a − b| / |b|."""
    return ((a - b).norm() / b.norm()).item()


class Exact:
    """States, adjoints and gradients by the exact chain."""

    def __init__(self, net: Net) -> None:
        f = Forward(net, Options(m=len(net.K)))
        self.end = f.sweep(net.x0[None])[-1]
        z = Adjoint(f, net.bar(self.end))
        self.input = z.sweep(z.x0[None])[-1]
        self.x, self.z = torch.cat([*f.x, self.end[None]]), torch.cat([net.x0[None], *z.z])  # z[j] = z_j for j > 0
        self.grad = torch.cat([g.flatten() for g in z.gradient()])

    def points(self, q: Problem, bounds: list[int]) -> Tensor:
        """The exact values at the C-points of a problem."""
        return self.x[bounds[:-1]] if isinstance(q, Forward) else self.z[bounds[:0:-1]]

    def errors(self, z: Adjoint, F: Tensor) -> tuple[float, float]:
        """Relative errors of all weight gradients together and of the input gradient, after an adjoint sweep."""
        return error(torch.cat([g.flatten() for g in z.gradient()]), self.grad), error(F[-1], self.input)


Row = dict[str, Any]


def study(net: Net, exact: Exact, o: Options, least: int = 3, most: int = MOST, goal: float = 1e-3) -> Row:
    """Errors after k + k cycles, k = 0, …: at least `least`, then on to the goal, and what the goals cost."""
    f, bounds = Forward(net, o), cuts(net, o)
    row: Row = {"options": asdict(o), "c": [], "weights": [], "input": []}
    for k, (c, F, _) in enumerate(solve(f, o)):
        z = Adjoint(f, net.bar(F[-1]))
        _, Fz, _ = after(solve(z, o), k)
        weights, at_input = exact.errors(z, Fz)
        row["c"].append(error(c[1:], exact.points(f, bounds)[1:]))
        row["weights"].append(weights)
        row["input"].append(at_input)
        if k >= most or (k >= least and max(weights, at_input) <= goal) or not math.isfinite(weights):
            break
    row["depth"] = [o.cost(net, k)[1] for k in range(len(row["c"]))]
    return row | {"reach": reach(net, o, [max(e) for e in zip(row["weights"], row["input"], strict=True)])}


def reach(net: Net, o: Options, errors: list[float]) -> Row:
    """Cycles, and costs as of `Options.cost`, to a gradient error of 0.05 and 1e-3."""
    found: Row = {}
    for goal in (0.05, 1e-3):
        k = next((k for k, e in enumerate(errors) if e <= goal), None)
        found[str(goal)] = None if k is None else [k, *o.cost(net, k)]
    return found


def adjoint_study(net: Net, exact: Exact, o: Options, most: int = MOST) -> Row:
    """Errors after k adjoint cycles at exact states: Richardson, or GMRES."""
    f, bounds = Forward(net, o), cuts(net, o)
    f.sweep(exact.points(f, bounds))
    z = Adjoint(f, net.bar(exact.end))
    errors = [exact.errors(z, F) for _, F, _ in islice(solve(z, o), most + 1)]
    return {"options": asdict(o), "weights": [e[0] for e in errors], "input": [e[1] for e in errors],
            "reach": reach(net, o, [max(e) for e in errors])}  # fmt: skip


# ---- solves that start from the last training step -------------------------------------------------------------------

STARTS = ("coarse", "one cycle", "warm points", "tau")


def first(q: Problem, points: Tensor, how: str) -> Tensor:
    """What a converged solve leaves to the next one."""
    F = q.sweep(points)
    return F if how == "warm points" else shifted(F - coarse(q, points), torch.zeros_like(q.x0))


def start(q: Problem, o: Options, how: str, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Solve from what the last solve kept; F(c) and what the next one gets. Leaves the problem swept."""
    if how != "warm points":
        run = solve(q, o, kept if how == "tau" else None)
        _, F, tau = next(run)
        return (F, tau) if how != "one cycle" else (next(run)[1], tau)
    F = q.sweep(shifted(kept, q.x0))
    return F, F


def carried(nets: list[Net], exacts: list[Exact], o: Options, how: str) -> list[float]:
    """Gradient error in consecutive training steps, the first solve before them being exact."""
    bounds = cuts(nets[0], o)
    f = Forward(nets[0], o)
    kept = first(f, exacts[0].points(f, bounds), how)
    z = Adjoint(f, nets[0].bar(exacts[0].end))
    kept_z = first(z, exacts[0].points(z, bounds), how)
    errors = []
    for net, exact in zip(nets[1:], exacts[1:], strict=True):
        f = Forward(net, o)
        F, kept = start(f, o, how, kept)
        z = Adjoint(f, net.bar(F[-1]))
        F, kept_z = start(z, o, how, kept_z)
        errors.append(max(exact.errors(z, F)))
    return errors


def change(a: Net, b: Net) -> float:
    """Relative change of all weights of the trunk."""
    return error(torch.cat([b.K, b.b], 2), torch.cat([a.K, a.b], 2))


def frozen(nets: list[Net], options: list[Options]) -> Row:
    """Starts compared over consecutive training steps, and τ of step 0 used in step d; on every fourth example."""
    nets = [net._replace(x0=net.x0[:, ::4].contiguous(), label=net.label[::4]) for net in nets]
    exacts = [Exact(net) for net in nets]
    found: Row = {"change": [change(a, b) for a, b in pairwise(nets)], "runs": [], "jumps": []}
    for o in options:
        for how in STARTS:
            found["runs"].append({"options": asdict(o), "start": how, "errors": carried(nets, exacts, o, how)})
        for d in (1, 4, 16):
            pair, truth = [nets[0], nets[d]], [exacts[0], exacts[d]]
            got = {how: carried(pair, truth, o, how)[0] for how in ("tau", "coarse")}
            found["jumps"].append({"options": asdict(o), "d": d, "change": change(*pair)} | got)
    return found


# ---- what is run -----------------------------------------------------------------------------------------------------


def baseline(few: bool) -> list[Options]:
    """lpnet's own family, and the published scheme: injected Euler with FCF."""
    family = {(m, s, p) for m in (4, 8, 16, 32) for s in (1, 2, 4, m) for p in (1, 2, 3) if p > 1 or s == 1}
    if few:
        family = {(m, s, p) for m, s, p in family if s in (1, 4, m) and p == (2 if s == 1 else 3) and m > 4}
    return [*(Options(m, 1, 1, inject=True, relax=1.0) for m in (4, 8, 16, 32)), *(Options(*o) for o in sorted(family))]


def injected(few: bool) -> list[Options]:
    """Weights of the first layer of a part instead of their mean."""
    some = ((1, 1), (4, 2)) if few else ((1, 1), (1, 2), (2, 2), (4, 2), (4, 3))
    return [Options(m, s, p, inject=True) for m in (8, 16, 32) for s, p in some]


CARRIED = [Options(16), Options(16, 4, 3), Options(16, 16, 3)]


def variants() -> dict[str, list[Options]]:
    """Everything else, each to be compared with the same options without it."""
    plain = [Options(m, s, 2 if s == 1 else 3) for m in (8, 32) for s in (1, 4)]
    kinds = ("jump", "mean", "size")
    return {
        "FCF, ω": [replace(o, relax=w) for o in plain for w in (0.5, 1.0, 1.5)],
        "Anderson, forward and adjoint": [replace(o, mix=how) for o in plain for how in ("all", "each")],
        "unequal intervals": [replace(o, cut=kind) for o in plain for kind in kinds],
        "unequal parts": [replace(o, parts=kind) for o in plain if o.s > 1 for kind in kinds],
        "unequal intervals and parts": [replace(o, cut="jump", parts="jump") for o in plain if o.s > 1],
        "weighted correction": [replace(o, weight=w) for o in plain for w in (0.75, 1.25)],
    }


def run(name: str) -> Row:
    """All numbers of one network."""
    net, windows, facts = train(**SETS[name])
    big, short = SETS[name]["layers"] > 256, SETS[name]["T"] > 5
    now = windows[-1][-1]
    checks = [(Options(16), 1), (Options(8, 4, 3), 2), (Options(12, 5, 3), 1), (Options(8, 8, 2), 0)]
    checks += [(Options(16, relax=1.0), 2), (Options(16, inject=True), 1)]
    found: Row = {"facts": facts, "agree": max(agree(net, now, *check) for check in checks)}
    assert found["agree"] < 1e-11, "not the gradients of lpnet.LayerParallel"
    exact = Exact(now)
    found["baseline, end"] = [study(now, exact, o) for o in baseline(few=big or short) if o.m > 8 or not big]
    found["injected weights"] = [study(now, exact, o) for o in injected(few=big) if o.m > 8 or not big]
    if big or short:
        return found | ({} if big else {"starts, middle": frozen(windows[0], CARRIED)})
    for kind, options in variants().items():
        found[kind] = [study(now, exact, o, most=4 if kind == "weighted correction" else MOST) for o in options]
    plain = [Options(m, s, 2 if s == 1 else 3) for m in (8, 32) for s in (1, 4)]
    found["adjoint"] = [adjoint_study(now, exact, replace(o, mix=how)) for o in plain for how in (None, "all", "each")]
    middle = windows[0][-1]
    found["baseline, middle"] = [study(middle, Exact(middle), o) for o in [*baseline(few=True), *injected(few=True)]]
    for when, nets in zip(WINDOWS, windows, strict=True):
        found[f"starts, {when}"] = frozen(nets, CARRIED if when == "middle" else CARRIED[::2])
    return found


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(found: Row) -> list[str]:
    """The cheapest way of every kind to a gradient error of 0.05 and 1e-3, by each of the four costs."""
    heads = ("one after the other", "depth", "overlapped", "depth, overlapped")
    lines = ["| to | kind | " + " | ".join(heads) + " |", "|---|---|" + "---|" * len(heads)]
    rows = {kind: list(rows) for kind, rows in found.items() if isinstance(rows, list) and kind != "adjoint"}
    base = rows["baseline, end"]
    kinds = {"published": [r for r in base if r["options"]["inject"]]}
    kinds |= {name: [r for r in base if plain(r, s)] for name, s in (("s = 1", 1), ("s = 2", 2), ("s = 4", 4))}
    kinds |= {"s = m": [r for r in base if r["options"]["s"] == r["options"]["m"]]}
    for goal in ("0.05", "0.001"):
        for kind, of in (kinds | {k: v for k, v in rows.items() if not k.startswith("baseline")}).items():
            lines.append(f"| {goal} | {kind} | " + " | ".join(cheapest(of, goal, i) for i in range(len(heads))) + " |")
    return lines


def plain(row: Row, s: int) -> bool:
    """One of the family with so many samples, less than m."""
    o = row["options"]
    return o["s"] == s < o["m"] and not o["inject"]


def cheapest(rows: list[Row], goal: str, i: int) -> str:
    """Least cost i of some rows, and how it is reached."""
    able = [(row["reach"][goal][1 + i], row) for row in rows if row["reach"][goal]]
    if not able:
        return "–"
    cost, row = min(able, key=lambda pair: pair[0])
    o = row["options"]
    return f"{cost:.2f} (m {o['m']}, s {o['s']}, p {o['p']}, k {row['reach'][goal][0]})"


# ---- the picture -----------------------------------------------------------------------------------------------------


def picture(found: Row, path: str) -> None:
    """Error against depth and against cycles for rough weights; starts over 20 training steps."""
    figure = Figure(figsize=(11, 8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    rough = found["rough, T=5"]
    for i, (s, label) in enumerate(((1, "s = 1"), (4, "s = 4"), (16, "s = m"))):
        row = pick(rough["baseline, end"], Options(16, s, 2 if s == 1 else 3))
        curve(axes[0, 0], row["depth"], row, i, label)
    published = pick(rough["baseline, end"], Options(16, 1, 1, inject=True, relax=1.0))
    curve(axes[0, 0], published["depth"], published, 5, "injected Euler, FCF")
    axes[0, 0].axvline(1, color="0.6", linestyle=":")
    axes[0, 0].set(
        title="rough, T = 5, m = 16, k = 0, 1, …", xlabel="depth / exact chain, 32 ranks", xlim=(0, 2), ylim=(1e-9, 1e3)
    )
    o = Options(32)
    others = [("FCF, ω", replace(o, relax=1.0), "FCF"), ("FCF, ω", replace(o, relax=1.5), "FCF, ω = 1.5")]
    others += [("Anderson, forward and adjoint", replace(o, mix="each"), "Anderson, GMRES")]
    others += [("unequal intervals", replace(o, cut="jump"), "unequal intervals")]
    others += [("weighted correction", replace(o, weight=0.75), "correction × 0.75")]
    for i, (group, options, label) in enumerate([("baseline, end", o, "plain cycles"), *others]):
        row = pick(rough[group], options)
        curve(axes[0, 1], range(len(row["c"])), row, i, label)
    axes[0, 1].set(title="rough, T = 5, m = 32, s = 1", xlabel="cycles k + k", ylim=(1e-9, 1e3))
    for ax, name in zip(axes[1], ("smooth, T=5", "rough, T=5"), strict=True):
        kinds = [(CARRIED[0], "coarse"), (CARRIED[0], "tau"), (CARRIED[2], "coarse"), (CARRIED[2], "tau")]
        for i, (o, how) in enumerate([*kinds, (CARRIED[0], "warm points")]):
            runs = found[name]["starts, middle"]["runs"]
            (one,) = (r for r in runs if r["options"] == asdict(o) and r["start"] == how)
            label = how if how == "warm points" else f"{how}, s = {'m' if o.s > 1 else 1}"
            ax.semilogy(range(1, 21), one["errors"], color=OKABE_ITO[i], label=label)
        ax.set_xticks(range(0, 21, 5))
        ax.set_ylim(1e-10, 30)
        ax.set(title=f"{name}, m = 16: one sweep a training step", xlabel="training step")
    for ax in axes.flat:
        ax.set_ylabel("gradient error")
        ax.grid(True, color="0.9")
        ax.legend(frameon=False, fontsize=8)
    figure.savefig(path, metadata={"Software": None})


def pick(rows: list[Row], o: Options) -> Row:
    """The row of these options."""
    return next(row for row in rows if row["options"] == asdict(o))


def curve(ax: Axes, x: Iterable[float], row: Row, i: int, label: str) -> None:
    """Gradient error of a row."""
    errors = [max(e) for e in zip(row["weights"], row["input"], strict=True)]
    ax.semilogy(list(x), errors, "o-", color=OKABE_ITO[i], markersize=4, label=label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", metavar="FILE", help="all numbers")
    parser.add_argument("--picture", metavar="FILE", help="the picture of the note")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found: Row = {}
    for name in SETS:
        begin = time.perf_counter()
        found[name] = run(name)
        print(f"{name}: {found[name]['facts']}, {time.perf_counter() - begin:.0f} s", flush=True)
        print(*table(found[name]), "", sep="\n", flush=True)
    if args.picture:
        picture(found, args.picture)
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(found, file, indent=1)


if __name__ == "__main__":
    main()
