"""11. Verlet and leapfrog can be undone, so that no state needs to be stored for the adjoint.

    y_j = y_{j+1} − h drift(z_{j+1}),   z_j = z_{j+1} − h kick(y_j)         the steps of Verlet, backwards

Measured: the error of going through all layers and back, what is kept between forward pass and adjoint, and the
gradient by states that are recomputed backwards (``store="reverse"``) against that by stored ones.
"""

import gc
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lpnet import LayerParallel, Serial, dynamics
from lpnet.experiments import style
from lpnet.experiments.base import Context, Result
from lpnet.experiments.models import F64, smooth
from lpnet.optim import vector
from lpnet.plain import PlainLayer
from lpnet.steppers import Leapfrog, Mix, Stage, Stepper, Verlet

T, WIDTH, EXAMPLES = 10.0, 8, 128
CASES: dict[str, tuple[type[dynamics.Dynamics], type[Stepper]]] = {
    "Hamiltonian, Verlet": (dynamics.Hamiltonian, Verlet),
    "second order, leapfrog": (dynamics.SecondOrder, Leapfrog),
}
STORES = ("all", "cpoints", "reverse")


def run(context: Context) -> Result:
    """Round trips, memory and gradients over the number of layers; collective."""
    layers = context.pick((16, 64, 256, 1024), (16, 128))
    y = torch.from_numpy(context.rng("reversible").standard_normal((EXAMPLES, WIDTH)))
    trips = {name: [_round_trip(context, name, n, y) for n in layers] for name in CASES}
    differences = {name: [_difference(context, name, n, y) for n in layers] for name in CASES}
    verlet = next(iter(CASES))
    held = {store: [_held(context, verlet, n, store, y) for n in layers] for store in STORES}
    numbers = {
        "layers": layers,
        "round_trip_error": trips,
        "gradient_difference": differences,
        "mebibytes_held": held,
        "mebibytes_of_a_state": 2 * y.numel() * 8 / 2**20,
    }
    settings = {"T": T, "width": WIDTH, "examples": EXAMPLES, "dtype": "float64", "solver": "serial"}
    return Result(numbers, _see(numbers), lambda: _draw(numbers), settings)


def _trunk(context: Context, case: str, layers: int, store: Any = "all") -> LayerParallel:
    kind, stepper = CASES[case]
    exact = Serial()
    trunk = LayerParallel(kind(WIDTH), layers, T, stepper(), exact, exact, 0, context.comm, dtype=F64, store=store)
    smooth(trunk, context.rng(f"reversible/{case}"))
    return trunk


@torch.no_grad()
def _round_trip(context: Context, case: str, layers: int, y: Tensor) -> float:
    """Relative error of the state x_0 after all layers and back; collective."""
    trunk = _trunk(context, case, layers)
    modules = [module for module in trunk.as_sequential() if isinstance(module, PlainLayer)]
    x = start = modules[0](torch.stack([y, torch.zeros_like(y)])) if len(modules) > layers else torch.stack([y, 0 * y])
    steps = modules[-layers:]
    for layer in steps:
        x = layer(x)
    for layer in reversed(steps):
        x = _undone(layer)(x)
    return float((x - start).norm() / start.norm())


def _undone(layer: PlainLayer) -> PlainLayer:
    """The layer that undoes a layer whose steps are all in place."""
    return PlainLayer(layer.dynamics, tuple(map(_inverse, reversed(layer.program))), layer.memory)


def _inverse(step: Stage | Mix) -> Stage | Mix:
    if isinstance(step, Stage):
        return step._replace(w=-step.w)
    own = dict(step.terms)[step.target]
    terms = [(slot, 1 / own if slot == step.target else -c / own) for slot, c in step.terms]
    return Mix(step.target, tuple(terms))


def _gradient(trunk: LayerParallel, y: Tensor) -> list[Tensor]:
    trunk.zero_grad()
    x = y.clone().requires_grad_()
    (0.5 * trunk(x).square().mean()).backward()
    assert x.grad is not None
    return [x.grad, *vector.gradients(trunk.parameters())]


def _difference(context: Context, case: str, layers: int, y: Tensor) -> float:
    """Relative difference of the gradients by states undone and by stored ones; collective."""
    undone, stored = (_trunk(context, case, layers, store) for store in ("reverse", "all"))
    like = [y, *stored.parameters()]
    one, other = _gradient(undone, y), _gradient(stored, y)
    return vector.norm(like, vector.axpy(-1.0, other, one)) / vector.norm(like, other)


def _held(context: Context, case: str, layers: int, store: str, y: Tensor) -> float:
    """Mebibytes that this rank holds of these examples between forward pass and adjoint.

    What as many examples need is taken off those of twice as many: with it go the weights, which the trunk may hold
    once more as it computes.
    """
    trunk = _trunk(context, case, layers, store)
    trunk(y[:1].clone().requires_grad_())  # makes memory for weights, which all calls share
    found = []
    for x in (torch.cat([y, y]), y):
        x = x.clone().requires_grad_()
        gc.collect()
        gc.freeze()  # what is there already is not looked at
        out = trunk(x)
        found.append(_bytes() - out.nbytes)
        del out
        gc.unfreeze()
    return (found[0] - found[1]) / 2**20


def _bytes() -> int:
    """Of all new tensors that are alive, each storage once."""
    gc.collect()
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if _is(t)}
    return sum(storages.values())


def _is(thing: object) -> bool:
    return issubclass(type(thing), Tensor)


def _see(numbers: dict[str, Any]) -> str:
    trips, held, layers = numbers["round_trip_error"], numbers["mebibytes_held"], numbers["layers"]
    worst = {name: max(row) for name, row in trips.items()}
    gradients = max(max(row) for row in numbers["gradient_difference"].values())
    return (
        f"Left: relative error of the state after N layers forward and N back, in float64; with {layers[-1]} layers "
        + " and ".join(f"{trips[name][-1]:.0e} ({name})" for name in trips)
        + f", at most {max(worst.values()):.0e} anywhere. Middle: what is kept of {EXAMPLES} examples between forward "
        f"pass and adjoint. Stored activations grow with N, to {held['all'][-1]:.1f} MiB; with `store=\"reverse\"` "
        f"it is {held['reverse'][-1]:.2f} MiB for {layers[-1]} layers and {held['reverse'][0]:.2f} MiB for "
        f"{layers[0]}: memory does not depend on depth. Right: the gradients of all weights by states undone and by "
        f"stored states differ by at most {gradients:.0e}."
    )


def _draw(numbers: dict[str, Any]) -> Figure:
    figure, axes = style.figure("Verlet and leapfrog are reversible: depth without memory", (1, 3), (13.5, 4.4))
    left, middle, right = axes[0]
    layers = numbers["layers"]
    for i, name in enumerate(CASES):
        left.plot(layers, numbers["round_trip_error"][name], **style.look(i), label=name)
        right.plot(layers, numbers["gradient_difference"][name], **style.look(i), label=name)
    for i, store in enumerate(STORES):
        look = style.look(i + 2, linestyle=style.LINES[i])
        middle.plot(layers, numbers["mebibytes_held"][store], **look, label=f'store="{store}"')
    for ax in (left, right):
        ax.set_ylim(1e-17, 1e-11)
        ax.axhline(np.finfo(float).eps, color="0.5", linewidth=0.8, linestyle=":")
    for ax in (left, middle, right):
        style.log(ax)
        ax.set_xticks(layers, [str(n) for n in layers])
        ax.minorticks_off()
    style.axis(left, "Round trip", "layers N", "relative error of the state")
    style.axis(middle, "Kept between forward pass and adjoint", "layers N", f"memory of {EXAMPLES} examples (MiB)")
    style.axis(right, "Gradient: states undone or stored", "layers N", "relative difference")
    for ax, title in zip(axes[0], ("dotted: rounding unit", None, "dotted: rounding unit"), strict=True):
        style.legend(ax, loc="upper left", title=title, title_fontsize=9)
    return figure
