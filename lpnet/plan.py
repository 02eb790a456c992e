"""Which solvers a training step should use: the fastest by the cost model whose gradient is good enough.

    choice = argmin over candidates { T(candidate; N, P) : |g − g*| ≤ ½ tol |g*| }

The time T is modelled (`lpnet.cost`, with the costs of the steps as measured on this machine), since it is wanted for
any number of ranks. The error is not: every candidate that comes into question is solved on the given trunk and batch,
and its gradient g compared with that of the exact chain, g*. Candidates are tried in the order of their time, so the
first that is good enough is the choice. The half is room for what changes in training, where errors grow and fall.

A plan depends on timings, so it belongs into the configuration of a run, never into the run itself.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lpnet import hierarchy
from lpnet.controls import squares
from lpnet.cost import Costs, critical_path
from lpnet.errors import InputError
from lpnet.measure import measure, packed, prepare
from lpnet.module import LayerParallel
from lpnet.options import MGRIT, Serial, SolverOptions
from lpnet.residuals import relative
from lpnet.steppers import Stepper

SAFETY = 0.5
"""Share of the tolerance that the error may have when the plan is made."""
COARSENINGS: tuple[int | tuple[int, ...], ...] = (
    *(4, 8, 16, 32, 64),
    *((4, 4), (4, 8), (8, 4), (8, 8), (16, 4), (16, 8), (16, 16), (32, 4)),
    (16, 4, 4),
)
"""Two levels, three, and four."""
CYCLES = ((0, 0), (1, 0), (1, 1), (2, 1), (2, 2), (3, 2), (3, 3), (4, 4))
"""Of the forward and the adjoint solve, in the order of their work (a gradient is no better than the states are)."""
RUNNERS_UP = 4

Loss = Callable[[Tensor], Tensor]
"""y_N (batch, *features) -> the loss, one number."""


@dataclass(frozen=True)
class Candidate:
    """Solvers with their predicted time of a step, in the unit of the costs, and their gradient error.

    The error is None where it was not measured.
    """

    forward: SolverOptions
    adjoint: SolverOptions
    predicted: float
    gradient_error: float | None = None


@dataclass(frozen=True)
class Plan:
    """Solvers that were chosen, and why.

    Attributes:
        forward, adjoint: the choice.
        ranks: for so many ranks.
        predicted: seconds of a step at `ranks` (where costs were given: in their unit).
        gradient_error: of the choice, as measured: relative to the exact gradient, the larger of weights and input.
        costs: of the steps, from which the times are predicted.
        runners_up: the next candidates by time, and the best exact chain where it is not the choice.
    """

    forward: SolverOptions
    adjoint: SolverOptions
    ranks: int
    predicted: float
    gradient_error: float
    costs: Costs
    runners_up: tuple[Candidate, ...]

    def describe(self) -> list[str]:
        """Lines of a small table: the choice, the runners-up, among them the exact chain."""
        chosen = Candidate(self.forward, self.adjoint, self.predicted, self.gradient_error)
        names = [_name(c) for c in (chosen, *self.runners_up)]
        width = max(map(len, names))
        lines = [f"{f'solver on {self.ranks} ranks':{width}}  predicted ms  gradient error"]
        for name, c in zip(names, (chosen, *self.runners_up), strict=True):
            error = "not measured" if c.gradient_error is None else f"{c.gradient_error:.1e}"
            lines.append(f"{name:{width}}  {1e3 * c.predicted:12.4g}  {error:>14}")
        return lines


def plan(
    trunk: LayerParallel,
    batch: Tensor,
    gradient_tol: float,
    plan_ranks: int | None = None,
    loss: Loss | None = None,
    costs: Costs | None = None,
) -> Plan:
    """The fastest solvers of a trunk whose gradient error is at most half of `gradient_tol`; collective.

    Nothing in the trunk changes: neither its options, weights and gradients, nor what its solves remember.

    Args:
        trunk: N layers with the weights for which to plan; its own options do not matter.
        batch: input (batch, *features), as in training, the same on all ranks.
        gradient_tol: allowed relative error of the gradient, the larger of those of weights and input.
        plan_ranks: number of ranks for which to plan; None: those of the trunk.
        loss: of the trunk's output, for its cotangent; None: a fixed random cotangent.
        costs: of the steps; None: measured.

    Raises:
        InputError: a tolerance outside (0, 1), `plan_ranks` below 1, or a batch that the trunk does not take.
    """
    _check(trunk, batch, gradient_tol, plan_ranks)
    ranks = trunk.comm.size if plan_ranks is None else int(plan_ranks)
    costs = costs if costs is not None else measure(trunk, batch, ranks)
    ordered = candidates(trunk.stepper, trunk.layers, len(batch), ranks, costs)
    search = _Search(_Gradients(trunk, batch, loss), SAFETY * gradient_tol, ordered)
    place = search.first()
    error = search.error(ordered[place])
    after = [replace(c, gradient_error=search.known(c)) for c in ordered[place + 1 :]]
    chain = next((c for c in after if isinstance(c.forward, Serial)), None)
    others = after[:RUNNERS_UP]
    if chain is not None and chain not in others:
        others.append(chain)
    best = ordered[place]
    return Plan(best.forward, best.adjoint, ranks, best.predicted, error, costs, tuple(others))


def _check(trunk: Any, batch: Any, gradient_tol: Any, plan_ranks: Any) -> None:
    if isinstance(gradient_tol, bool) or not isinstance(gradient_tol, float | int) or not 0 < gradient_tol < 1:
        raise InputError(f"gradient_tol: {gradient_tol!r} given, a number above 0 and below 1 allowed")
    if plan_ranks is not None and (isinstance(plan_ranks, bool) or not isinstance(plan_ranks, int) or plan_ranks < 1):
        raise InputError(f"plan_ranks: {plan_ranks!r} given, a whole number of at least 1 or None allowed")
    if not isinstance(trunk, LayerParallel):
        raise InputError(f"trunk: a {type(trunk).__name__} given, an lpnet.LayerParallel allowed")
    if not isinstance(batch, Tensor):
        raise InputError(f"batch: {type(batch).__name__} given, a tensor (batch, *features) allowed")
    trunk._stack.check_input(batch)
    if not len(batch):
        raise InputError("batch: no examples given, at least one allowed")


# ---- candidates ------------------------------------------------------------------------------------------------------


def candidates(stepper: Stepper, layers: int, batch: int, ranks: int, costs: Costs) -> list[Candidate]:
    """All solvers to choose from that are no slower than the fastest exact chain, and all chains, fastest first."""
    most = max(1, min(batch, 4 * ranks) if ranks > 1 else 1)
    chains = [Serial(2**i) for i in range(most.bit_length())]
    found = [Candidate(s, s, _time(stepper, layers, ranks, (s, s), costs), 0.0) for s in chains]
    limit = min(c.predicted for c in found)
    for base in shapes(layers):
        if stepper.refusal(base) is not None:
            continue
        base = _parted(base, most, lambda one: _time(stepper, layers, ranks, (one, one), costs))
        for forward, adjoint in CYCLES:
            if base.relaxation == "FCF" and not forward:
                continue  # without a cycle, relaxation is the same sweep
            pair = replace(base, cycles=forward), replace(base, cycles=adjoint)
            time = _time(stepper, layers, ranks, pair, costs)
            if time >= limit:
                break  # more cycles take longer
            found.append(Candidate(*pair, time))
    return sorted(found, key=lambda c: c.predicted)


def _parted(base: MGRIT, most: int, time: Callable[[MGRIT], float]) -> MGRIT:
    """With the coarsest level in as many parts of the batch, but at most so many, as shorten a solve without cycles."""
    best, least = base, time(base) if most > 1 else 0.0
    for Q in (2, 4, 8):
        other = replace(base, micro_batches=Q)
        taken = time(other) if most >= Q else least
        if taken >= least:
            break
        best, least = other, taken
    return best


def shapes(layers: int) -> Iterator[MGRIT]:
    """Options of all candidates but for the cycles."""
    for m in COARSENINGS:
        levels = 1 + len(m) if isinstance(m, tuple) else 2
        base = MGRIT(m, levels, cycles=0)
        if len(hierarchy.bounds(layers, base)) < levels:
            continue
        for relaxation in ("F", "FCF"):
            for weights in ("mean", "inject"):
                yield replace(base, relaxation=relaxation, coarse_weights=weights)
        # One evaluation instead of two: for many ranks, where the chains are long, and tolerances that are not small.
        yield replace(base, coarse="rediscretized")
        if levels > 2:
            yield replace(base, initial="nested")
        # Mean weights of short parts are close to injected ones, those of a part of one layer are the same.
        smallest = min(m) if isinstance(m, tuple) else m
        for samples in sorted({2, 4, smallest}):
            yield replace(base, samples=samples)


def _time(
    stepper: Stepper, layers: int, ranks: int, solvers: tuple[SolverOptions, SolverOptions], costs: Costs
) -> float:
    forward, adjoint = (replace(s, coarse_weights="mean") if isinstance(s, MGRIT) else s for s in solvers)
    return critical_path(stepper, layers, ranks, forward, adjoint, costs).total


# ---- search ----------------------------------------------------------------------------------------------------------


class _Search:
    """The fastest candidate with a small enough error; only what must be known is measured.

    Args:
        gradients: measures errors.
        allowed: the largest error.
        ordered: candidates, fastest first; one of them is exact.
    """

    def __init__(self, gradients: "_Gradients", allowed: float, ordered: list[Candidate]) -> None:
        self.gradients, self.allowed, self.ordered = gradients, allowed, ordered
        self._errors: dict[tuple[SolverOptions, SolverOptions], float] = {}

    def known(self, c: Candidate) -> float | None:
        """The error, if it has been measured or is none."""
        return self._errors.get((c.forward, c.adjoint), c.gradient_error)

    def error(self, c: Candidate) -> float:
        """The error, measured once; collective."""
        found = self.known(c)
        if found is None:
            found = self._errors[c.forward, c.adjoint] = self.gradients.error(c.forward, c.adjoint)
        return found

    def first(self) -> int:
        """Place of the first candidate whose error is allowed; collective.

        Where one fails, the same options with the most cycles are tried at once: if they fail too, none is left.
        """
        hopeful: dict[MGRIT, bool] = {}
        for place, c in enumerate(self.ordered):
            shape = _shape(c)
            if shape is not None and not hopeful.get(shape, True):
                continue
            if self.error(c) <= self.allowed:
                return place
            if shape is not None and shape not in hopeful:
                most = next(d for d in reversed(self.ordered) if _shape(d) == shape)
                hopeful[shape] = self.error(most) <= self.allowed
        raise AssertionError("no exact chain among the candidates")


def _shape(c: Candidate) -> MGRIT | None:
    return replace(c.forward, cycles=0) if isinstance(c.forward, MGRIT) else None


class _Gradients:
    """Gradients of a trunk on one batch by any solvers, next to the exact one; all collective."""

    def __init__(self, trunk: LayerParallel, batch: Tensor, loss: Loss | None) -> None:
        self.trunk, self.loss = trunk, loss
        self.prepared, self.x = prepare(trunk, batch)
        self.field = next(iter(self.prepared.layers.fields.values()))
        drawn = torch.randn(batch.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.bar = drawn.to(batch)
        self.weights, self.inputs = self._solve(Serial(), Serial())
        self.size = self._norms(self.weights, self.inputs)

    def error(self, forward: SolverOptions, adjoint: SolverOptions) -> float:
        """Relative error, the larger of those of all weights and of the input; the same on all ranks."""
        weights, inputs = self._solve(forward, adjoint)
        differences = [a - b for a, b in zip(weights, self.weights, strict=True)]
        pairs = zip(self._norms(differences, inputs - self.inputs), self.size, strict=True)
        worst = max(relative(part, whole) for part, whole in pairs)
        return float(self.trunk.comm.bcast_(torch.tensor([worst], dtype=torch.float64), 0))

    def _solve(self, forward: SolverOptions, adjoint: SolverOptions) -> tuple[list[Tensor], Tensor]:
        engine, prepared = self.trunk._engine, self.prepared
        prepared.coarse.clear()  # else the coarse weights of all candidates would add up
        out, solution, _ = engine.forward(prepared, self.x, forward, True)
        z = packed(prepared, self._cotangent(self.field.unpack(out[None])[0]))
        inputs, _, _ = engine.adjoint(prepared, solution, z, adjoint)
        found = self.trunk._gradients(prepared)
        trained = [p.requires_grad for p in self.trunk.theta.values()]
        return [g.clone() for g, wanted in zip(found, trained, strict=True) if wanted], inputs.clone()

    def _cotangent(self, y: Tensor) -> Tensor:
        if self.loss is None:
            return self.bar
        leaf = y.detach().requires_grad_()
        with torch.enable_grad():
            (bar,) = torch.autograd.grad(self.loss(leaf), leaf)
        return bar

    def _norms(self, weights: list[Tensor], inputs: Tensor) -> tuple[float, float]:
        total = float(squares(self.trunk.grid, [weights]))
        return math.sqrt(total), float(torch.linalg.vector_norm(inputs.double()))


# ---- description -----------------------------------------------------------------------------------------------------


def _name(c: Candidate) -> str:
    """The solvers in a few words."""
    parts = [_words(c.forward)]
    if isinstance(c.forward, MGRIT) and isinstance(c.adjoint, MGRIT):
        parts.append(f"{c.forward.cycles} + {c.adjoint.cycles} cycles")
    return ", ".join(parts)


def _words(options: SolverOptions) -> str:
    if isinstance(options, Serial):
        return f"exact chain, micro_batches {options.micro_batches}"
    m = options.coarsening
    words = ["coarsening " + (" · ".join(map(str, m)) if isinstance(m, tuple) else str(m)), options.relaxation]
    if options.samples > 1:
        words.append(f"samples {options.samples}")
    if options.coarse_weights == "inject":
        words.append("injected")
    if options.coarse != "matched":
        words.append(options.coarse)
    if options.micro_batches > 1:
        words.append(f"micro_batches {options.micro_batches}")
    return "MGRIT, " + ", ".join(words)
