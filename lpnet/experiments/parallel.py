"""16. Layer parallelism: a linear network as one block-bidiagonal system, its solvers, and what they cost on P ranks.

    u_{j+1} − Φ_j u_j = g_j,   j = 0, …, N − 1,   u_0 given

Forward substitution is exact and sequential. Iterations that only exchange neighbours (block Jacobi, GMRES) need as
many steps as there are blocks; MGRIT needs a few cycles, whatever N is.
Times on many ranks are modelled by `lpnet.cost`: critical paths of one training step.
"""

from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lpnet import MGRIT, LayerParallel, Serial, dynamics
from lpnet.cost import UNIT, Costs
from lpnet.experiments import bidiagonal, style
from lpnet.experiments.base import Context, Result
from lpnet.experiments.course import listed
from lpnet.experiments.machine import BANDWIDTH, LATENCY, METHODS, NAMES, crossover, machine, times

PER_TIME, M, CYCLES = 64, 8, 6
WANTED, FLOOR = 1e-10, 1e-17  # residual to reach, and the smallest that is drawn
SOLVER = MGRIT((16, 8), 3, cycles=1)
WIDTH, BATCH, SLAB = 8, 512, 16
SOLVERS = ("GMRES", "GMRES on the C-points", "F-relaxation alone", "MGRIT")
MOST = {"GMRES": 256, "GMRES on the C-points": 1024}
"""Layers up to which GMRES is run: it keeps all its directions."""


def run(context: Context) -> Result:
    """Residuals of the solvers, and modelled times; collective."""
    layers = context.pick((64, 256, 1024, 4096), (64, 256))
    ranks = tuple(2**p for p in range(context.pick(9, 7)))
    N, weak = SLAB * ranks[-1], [SLAB * P for P in ranks]
    costs = _measured(context, N)
    cycles = _cycles(context, layers)
    numbers: dict[str, Any] = {
        "residuals": _compared(context, context.pick(256, 64)),
        "residuals_of_mgrit": cycles,
        "iterations": _iterations(context, layers, cycles["longer"]),
        "ranks": ranks,
        "modelled": {
            "evaluations": {"strong": _strong(ranks, N, UNIT), "weak": _table(ranks, weak, UNIT)},
            "seconds": {"strong": _strong(ranks, N, costs), "weak": _table(ranks, weak, costs)},
        },
        "costs": asdict(costs),
    }
    linear = {"width": bidiagonal.WIDTH, "layers_per_unit_of_time": PER_TIME, "m": M, "tolerance": WANTED}
    net = {"layers": N, "width": WIDTH, "batch": BATCH, "solver": str(SOLVER), "layers_a_rank_weak": SLAB}
    settings = {"linear": linear, "modelled": net | {"latency": LATENCY, "bandwidth": BANDWIDTH}}
    return Result(numbers, _see(numbers, N), lambda: _draw(numbers, N), settings)


# ---- the linear system -----------------------------------------------------------------------------------------------


def _compared(context: Context, N: int) -> dict[str, Any]:
    """Residuals of all solvers on one system."""
    T = N / PER_TIME
    one = bidiagonal.system(context, N, T)
    points = one.reduced(M)
    out, residuals = bidiagonal.solved(context, N, T, bidiagonal.mgrit(M, CYCLES))
    exact = one.substituted()[-1]
    return {
        "layers": N,
        "against_substitution": float(np.abs(out - exact).max() / np.abs(exact).max()),
        "GMRES": bidiagonal.krylov(one, N),
        "GMRES on the C-points": bidiagonal.krylov(points, len(points)),
        "F-relaxation alone": bidiagonal.relaxation(points, len(points) - 1),
        "MGRIT": residuals,
    }


def _cycles(context: Context, layers: tuple[int, ...]) -> dict[str, dict[int, list[float]]]:
    """Residuals of each cycle for several N: longer and longer flows, and one flow in finer and finer steps."""
    longer = {N: bidiagonal.solved(context, N, N / PER_TIME, bidiagonal.mgrit(M, CYCLES))[1] for N in layers}
    T, few = layers[0] / PER_TIME, bidiagonal.mgrit(M, 3)
    finer = {N: bidiagonal.solved(context, N, T, few)[1] for N in layers[1:3]}
    return {"longer": longer, "finer": finer}


def _iterations(
    context: Context, layers: tuple[int, ...], cycles: dict[int, list[float]]
) -> dict[str, dict[int, int | None]]:
    """Solver -> N -> iterations to the wanted residual (of forward substitution: layers, one after the other)."""
    found: dict[str, dict[int, int | None]] = {"forward substitution": {N: N for N in layers}}
    found |= {name: {} for name in SOLVERS}
    for N in layers:
        one = bidiagonal.system(context, N, N / PER_TIME)
        points = one.reduced(M)
        curves = {"F-relaxation alone": bidiagonal.relaxation(points, len(points)), "MGRIT": cycles[N]}
        for name, of in (("GMRES", one), ("GMRES on the C-points", points)):
            if MOST[name] >= N:
                curves[name] = bidiagonal.krylov(of, len(of))
        for name, curve in curves.items():
            found[name][N] = bidiagonal.count(curve, WANTED)
    return found


# ---- modelled times --------------------------------------------------------------------------------------------------


def _measured(context: Context, layers: int) -> Costs:
    """What layers as those of experiment 17 cost on the ranks at hand; collective."""
    n = min(layers, 64 * context.comm.size)
    trunk = LayerParallel(dynamics.Dense(WIDTH), n, 1.0, None, Serial(), Serial(), comm=context.comm)
    batch = torch.from_numpy(context.rng("parallel/batch").standard_normal((BATCH, WIDTH))).float()
    return machine(trunk, batch, context.pick(5, 3))


def _table(ranks: tuple[int, ...], layers: list[int], costs: Costs) -> dict[str, list[float]]:
    rows = [times(N, P, SOLVER, costs, BATCH) for N, P in zip(layers, ranks, strict=True)]
    return {name: [row[name] for row in rows] for name in METHODS}


def _strong(ranks: tuple[int, ...], N: int, costs: Costs) -> dict[str, Any]:
    """Times on more and more ranks, speed-up on the most, and from how many ranks on which method is the faster."""
    table = _table(ranks, [N] * len(ranks), costs)
    found: dict[str, Any] = {"time": table}
    found["speed_up"] = {name: table["serial"][-1] / table[name][-1] for name in METHODS}
    for other in ("serial", "pipelined"):
        found[f"faster_than_{other}_from"] = {k: crossover(ranks, table[k], table[other]) for k in ("sgd", "oneshot")}
    return found


# ---- words and picture -----------------------------------------------------------------------------------------------


def _see(numbers: dict[str, Any], N: int) -> str:
    need, n = numbers["iterations"], numbers["residuals"]["layers"]
    layers = list(need["MGRIT"])
    unit, timed = (numbers["modelled"][kind]["strong"] for kind in ("evaluations", "seconds"))
    P, fixed = numbers["ranks"][-1], numbers["costs"]["fixed"]
    grown = numbers["modelled"]["seconds"]["weak"]
    return (
        f"Above: {n} linear layers are one block-bidiagonal system. Forward substitution solves it in {n} sequential "
        f"steps. GMRES carries information one layer further with each iteration and needs {need['GMRES'][n]} to a "
        f"residual of {WANTED:.0e}; sweeps of the intervals between C-points (F-relaxation, block Jacobi), or GMRES on "
        f"the C-points, need {need['F-relaxation alone'][n]}, one for each interval of {M} layers. MGRIT with two "
        f"levels needs {listed(list(need['MGRIT'].values()))} cycles for {listed(layers)} layers of one step size; for "
        "a fixed T it becomes better with N. Below: critical paths of a training step, modelled, not run. In "
        f"evaluations of a layer, {N} layers on {P} ranks are {unit['speed_up']['sgd']:.0f} times faster than the "
        f"serial chain with (i) MGRIT forward and back and {unit['speed_up']['oneshot']:.0f} times with (ii) one sweep "
        f"each way; faster than serial {_from(unit, 'serial')}. The pipelined chain would beat both "
        f"({unit['speed_up']['pipelined']:.0f} times) if half a batch took half the time. Here it takes "
        f"{0.5 + 0.5 * fixed:.2f} of it, so with measured layers and a network of 2 µs and 10 GB/s the chain gains "
        f"{timed['speed_up']['pipelined']:.1f}, (i) {timed['speed_up']['sgd']:.0f} and (ii) "
        f"{timed['speed_up']['oneshot']:.0f}; faster than the pipelined chain {_from(timed, 'pipelined')}. With "
        f"{SLAB} layers a rank (weak scaling) {P} ranks take {grown['oneshot'][-1] / grown['oneshot'][0]:.1f} times as "
        f"long as one in (ii), {grown['sgd'][-1] / grown['sgd'][0]:.0f} times in (i), and the serial chain {P} times."
    )


def _from(found: dict[str, Any], other: str) -> str:
    texts = []
    for name, label in (("sgd", "(i)"), ("oneshot", "(ii)")):
        ranks = found[f"faster_than_{other}_from"][name]
        texts.append(f"{label} never" if ranks is None else f"{label} from {ranks} ranks on")
    return " and ".join(texts)


def _draw(numbers: dict[str, Any], N: int) -> Figure:
    title = "Layer parallelism: cycles that do not grow with N, and what a training step costs on P ranks"
    figure, axes = style.figure(title, (2, 3), (15.5, 9.2))
    _draw_compared(axes[0, 0], numbers["residuals"])
    _draw_iterations(axes[0, 1], numbers["iterations"])
    _draw_cycles(axes[0, 2], numbers["residuals_of_mgrit"])
    found, ranks = numbers["modelled"], numbers["ranks"]
    unit, timed = found["evaluations"], found["seconds"]
    left, middle, right = axes[1]
    _draw_times(left, ranks, unit["strong"]["time"], 1.0, 1 / np.array(ranks))
    _draw_times(middle, ranks, timed["strong"]["time"], 1e3, 1 / np.array(ranks))
    _draw_times(right, ranks, timed["weak"], 1e3, np.ones(len(ranks)))
    y = "modelled critical path of a step"
    style.axis(left, f"Strong scaling, {N} layers, no network", "ranks P", f"{y} (evaluations of a layer)")
    network = "measured layers, 2 µs, 10 GB/s"
    style.axis(middle, f"Strong scaling, {N} layers\n{network}", "ranks P", f"{y} (ms)")
    style.axis(right, f"Weak scaling, {SLAB} layers a rank\n{network}", "ranks P", f"{y} (ms)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False, fontsize=10)
    return figure


LOOKS: dict[str, dict[str, Any]] = {
    "forward substitution": {"color": "black", "linestyle": "--", "marker": None},
    "GMRES": style.look(7, linewidth=1.2),
    "F-relaxation alone": style.look(5, markersize=7.5),
    "GMRES on the C-points": style.look(1, linestyle=":", linewidth=2.2, markersize=4),
    "MGRIT": style.look(0),
}


def _draw_compared(ax: Axes, found: dict[str, Any]) -> None:
    for name, more in LOOKS.items():
        if name in found:
            r = np.maximum(found[name], FLOOR)
            ax.plot(range(1, len(r)), r[1:], **more | ({"marker": None} if len(r) > 12 else {}))
    ax.axvline(found["layers"], **LOOKS["forward substitution"])
    style.log(ax)
    title = f"One linear system, {found['layers']} layers (legend: next panel)"
    style.axis(ax, title, "iteration (dashed: exact after so many layers)", "relative residual")


def _draw_cycles(ax: Axes, found: dict[str, dict[int, list[float]]]) -> None:
    for i, (N, r) in enumerate(found["longer"].items()):
        ax.plot(range(len(r)), np.maximum(r, FLOOR), **style.look(i), label=f"N = {N}, T = {N / PER_TIME:g}")
    T = next(iter(found["longer"])) / PER_TIME
    for i, (N, r) in enumerate(found["finer"].items(), 1):
        more = style.look(i, linestyle="--", markerfacecolor="white", linewidth=1.0)
        ax.plot(range(len(r)), np.maximum(r, FLOOR), **more, label=f"N = {N}, T = {T:g}")
    style.log(ax, "y")
    style.axis(ax, f"MGRIT, two levels, m = {M}", "cycle", "relative residual")
    style.legend(ax, title=f"filled: h = 1/{PER_TIME}, longer flows\nopen: one flow, finer steps", title_fontsize=9)


def _draw_iterations(ax: Axes, found: dict[str, dict[int, int | None]]) -> None:
    for name, more in LOOKS.items():
        there = [(N, k) for N, k in found[name].items() if k is not None]
        ax.plot(*zip(*there, strict=True), **more, label=name)
    style.log(ax)
    _powers(ax, list(found["MGRIT"]))
    style.axis(ax, f"Iterations to a residual of {WANTED:.0e}", "layers N (h fixed)", "iterations, or sequential steps")
    style.legend(ax)


def _draw_times(
    ax: Axes, ranks: tuple[int, ...], table: dict[str, list[float]], unit: float, ideal: np.ndarray
) -> None:
    for i, name in enumerate(METHODS):
        more = style.look((7, 1, 5, 0)[i])
        ax.plot(ranks, unit * np.array(table[name]), **more, label=NAMES[name])
    style.log(ax)
    ax.plot(ranks, unit * table["serial"][0] * ideal, color="black", linestyle=":", linewidth=1.2, label="ideal")
    _powers(ax, ranks)


def _powers(ax: Axes, values: tuple[int, ...] | list[int]) -> None:
    """Ticks at these numbers."""
    ax.set_xscale("log", base=2)
    ax.set_xticks(values, [str(v) for v in values])
    ax.minorticks_off()
