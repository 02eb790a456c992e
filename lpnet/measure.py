"""Costs of the steps of a trunk on this machine, in seconds, for the cost model.

    fine, pull, gradient    t(Φ), its adjoint without weight gradient, and by how much the gradient lengthens it, with
                            what else is done once a step for each layer (weights made ready, gradients handed out)
    fixed                   t(1/Q of the batch) = t(batch) (fixed + (1 − fixed)/Q)
    overhead                t(G) = c t(Φ) + overhead for a coarse step of c evaluations
    call, level, point      what a solve, a coarse level of it, and the residual at a C-point take besides
    batched                 t(G) = p t(Φ) (1 + (s − 1) batched) + overhead for p passes over s parts at once
    latency, message        t(x) = latency + message for a state x, latency alone for one number

All but the last two rows are from whole solves (`lpnet.calibration`). Medians; all measurements take turns, so that a
change of the machine's speed meets all of them. Work is measured in processor time, messages on the wall.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from lpnet.calibration import FITTED, fitted, in_turns, processor_time
from lpnet.coarse_steps import CoarseSteps
from lpnet.cost import Costs
from lpnet.engine import Prepared
from lpnet.fields import Field
from lpnet.module import LayerParallel
from lpnet.options import MGRIT
from lpnet.propagator import Layers
from lpnet.slab import Comm
from lpnet.stack import seed_of
from lpnet.steppers import Picard, Program, Stage

OWN = (*FITTED, "fixed", "batched")
SEGMENT, PARTS, LAYERS = 16, 8, 256
"""Layers of an interval, parts of a coarse step, and layers at most in the measurements."""
SECONDS, ROUNDS = 0.2, (5, 25)
"""About how long one step is measured, within so many rounds."""
LATENCY, BANDWIDTH = 2e-5, 5e9
"""Taken where one rank is alone: seconds of a message, its handling included, and bytes a second."""

Act = Callable[[], object]


def measure(trunk: LayerParallel, batch: Tensor, ranks: int | None = None) -> Costs:
    """Costs in seconds of this trunk's steps on a batch (batch, *features), the same on all ranks; collective.

    All ranks measure the steps at the same time, as they work at the same time and may share caches and memory;
    medians over the ranks count. Ranks 0 and 1 measure the messages. As many layers are run as a rank has if there are
    `ranks` (None: as in the trunk), for how much of their memory is in the cache depends on it.
    """
    comm = trunk.comm
    prepared, x = prepare(trunk, batch)
    found = torch.zeros(len(OWN) + 2, dtype=torch.float64)
    busy = [rank for rank, n in enumerate(trunk._slab.counts) if n]
    own = np.zeros((1, len(OWN)))
    comm.barrier()
    if comm.rank in busy:
        costs = _steps(trunk, prepared, batch, ranks or comm.size)
        own[0] = [getattr(costs, name) for name in OWN]
    found[:-2] = torch.from_numpy(np.median(comm.allgather(own, [1] * comm.size)[busy], axis=0))
    if comm.rank < 2:
        found[-2:] = torch.tensor(_messages(comm, x), dtype=torch.float64)
    comm.barrier(idle=comm.rank > 1)
    return Costs(**dict(zip((*OWN, "latency", "message"), comm.bcast_(found, 0).tolist(), strict=True)))


def prepare(trunk: LayerParallel, y: Tensor) -> tuple[Prepared, Tensor]:
    """The weights ready to run, and (y, 0, …) as they take it; leaves no trace in the trunk, as a call of it would."""
    trunk._stack.module.train(trunk.training)
    trunk._stack.check_module(y)

    def fields(theta: dict[str, Tensor], layers: Sequence[int]) -> dict[str, Field]:
        seeds = [seed_of(trunk.seed, 0, j) for j in layers] if trunk._stack.is_random else None  # no call has 0
        return trunk._stack.fields(theta, seeds, len(y))

    prepared = trunk._engine.prepare(trunk.layer_weights(), fields)
    return prepared, packed(prepared, y)


def packed(prepared: Prepared, y: Tensor) -> Tensor:
    """(y, 0, …) as the fields store states."""
    layers = prepared.layers
    field = next(iter(layers.fields.values()))
    return field.pack(torch.stack([y.detach()] + [torch.zeros_like(y)] * (layers.stepper.memory - 1)))


def _steps(trunk: LayerParallel, prepared: Prepared, batch: Tensor, ranks: int) -> Costs:
    """All but the messages, with as many layers as a rank has."""
    costs, _ = fitted(trunk, batch, min(-(-trunk.layers // ranks), LAYERS))
    return replace(costs, batched=_batched(trunk, prepared, packed(prepared, batch), costs))


def _batched(trunk: LayerParallel, prepared: Prepared, x: Tensor, costs: Costs) -> float:
    """`batched` from a coarse step of several parts at once, linearised and pulled back."""
    layers = prepared.layers
    many = trunk.stepper.coarse((1,) * min(PARTS, layers.n), trunk.h, MGRIT(SEGMENT, samples=PARTS))
    if not isinstance(many, Picard) or len(many.lengths) < 2:
        return 1.0
    seconds = _medians({"many": _coarse(layers, many, x)}, x.device)["many"]
    once = (seconds - 2 * costs.overhead) / (many.passes * (costs.fine + costs.pull))
    return max(0.0, once - 1) / (len(many.lengths) - 1)


def _coarse(layers: Layers, program: Program, x: Tensor) -> Act:
    """A coarse step with weights of the first layers, linearised and pulled back."""
    if not isinstance(program, Picard):  # which may have more weights than there are layers here
        program = tuple(s._replace(part=s.part % layers.n) if isinstance(s, Stage) else s for s in program)
    steps = CoarseSteps(layers.stepper.memory, layers.fields, [program], [layers.n], 0)

    def both() -> object:
        steps.linearize(0, x)
        return steps.pull(0, x)

    return both


def _medians(acts: dict[str, Act], device: torch.device) -> dict[str, float]:
    """Median seconds of each act, which take turns."""
    clock = processor_time(device)
    taken = in_turns([partial(_seconds, act, device, clock) for act in acts.values()], SECONDS, ROUNDS)
    return {name: statistics.median(times) for name, times in zip(acts, taken, strict=True)}


def _seconds(act: Act, device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    act()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def _messages(comm: Comm, x: Tensor) -> tuple[float, float]:
    """latency and message: half the way there and back between ranks 0 and 1."""
    if comm.size == 1:
        return LATENCY, x.numel() * x.element_size() / BANDWIDTH
    times: list[float] = []
    for value in (x.new_zeros(1), x):
        taken = [_seconds(partial(_there_and_back, comm, value), x.device) for _ in range(ROUNDS[1])]
        times.append(statistics.median(taken) / 2)
    return times[0], max(0.0, times[1] - times[0])


def _there_and_back(comm: Comm, x: Tensor) -> None:
    if comm.rank == 0:
        comm.send(x, 1)
        comm.recv(x, 1)
    else:
        comm.recv(x, 0)
        comm.send(x, 0)
