"""What the models of a training step need to know of it: sizes and options, no weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lpnet.controls import Controls
from lpnet.cost import slab_unit
from lpnet.dense_field import is_packed
from lpnet.dynamics import described
from lpnet.how import Store
from lpnet.module import LayerParallel
from lpnet.options import MGRIT, SolverOptions
from lpnet.steppers import Stepper


class Term(NamedTuple):
    """Numbers that one term of the dynamics needs.

    Attributes:
        size: entries of the weights of one layer, as the field sees them.
        kept: on the tape, of an evaluation for one example.
        weights: of one layer, as the field holds them beside the parameters (copies of them, and their gradients).
        fast: it is one of ± C σ(M y + b).
    """

    size: int
    kept: int
    weights: int
    fast: bool


@dataclass(frozen=True)
class Subject:
    """A trunk and a batch.

    Attributes:
        stepper, layers, forward, adjoint, store, controls, continuous: of the trunk.
        parameters: numbers of each parameter of one layer.
        terms: name -> what it needs.
        features: numbers of one slot of a state, of one example.
        batch: examples of a batch.
        itemsize: bytes of a number.
    """

    stepper: Stepper
    layers: int
    forward: SolverOptions
    adjoint: SolverOptions
    parameters: tuple[int, ...]
    terms: tuple[tuple[str, Term], ...]
    features: int
    batch: int
    itemsize: int
    store: Store = "all"
    continuous: bool = False
    controls: Controls | None = None

    @classmethod
    def of(
        cls,
        trunk: LayerParallel,
        batch: Sequence[int],
        layers: int | None = None,
        solvers: tuple[SolverOptions, SolverOptions] | None = None,
        controls: Controls | None = None,
    ) -> "Subject":
        """That of a trunk and an input of this shape (batch, *features).

        Args:
            trunk: may have fewer layers than are meant, and other solvers.
            batch: the shape of its input.
            layers: as many as are meant; None: those of the trunk.
            solvers: forward and adjoint; None: those of the trunk.
            controls: of the trunk that is meant, where `layers` are given.
        """
        count, *shape = batch
        features = 1
        for n in shape:
            features *= n
        one = next(iter(trunk.theta.values()))
        forward, adjoint = solvers or (trunk.forward_solver, trunk.adjoint_solver)
        return cls(
            trunk.stepper,
            trunk.layers if layers is None else layers,
            forward,
            adjoint,
            tuple(p[:1].numel() for p in trunk.theta.values()),
            tuple(_terms(trunk, count, features)),
            features,
            count,
            one.element_size(),
            trunk.store,
            trunk.gradient == "continuous",
            trunk.controls if layers is None else controls,
        )

    @cached_property
    def slot(self) -> int:
        """Bytes of one slot of a state of the whole batch."""
        return self.features * self.batch * self.itemsize

    @cached_property
    def state(self) -> int:
        """Bytes of a state of the whole batch."""
        return self.stepper.memory * self.slot

    @cached_property
    def layer(self) -> int:
        """Bytes of the parameters of one layer."""
        return sum(self.parameters) * self.itemsize

    def term(self, name: str) -> Term:
        """What a term needs."""
        return dict(self.terms)[name]

    def kept(self, name: str) -> int:
        """Bytes on the tape of one evaluation of a term, for the whole batch."""
        return self.term(name).kept * self.batch * self.itemsize

    @cached_property
    def together(self) -> bool:
        """Whether equal intervals may go together."""
        return self.store == "all" and not self.continuous and self.fast

    @cached_property
    def fast(self) -> bool:
        """Whether layers of several places can be evaluated at once."""
        return all(term.fast for _, term in self.terms)

    @cached_property
    def fields(self) -> dict[str, Any]:
        """In the place of fields where only the size of their weights is asked for."""
        return {name: SimpleNamespace(size=term.size) for name, term in self.terms}

    @cached_property
    def like(self) -> Tensor:
        """Something of the shape of a state."""
        dtype = {4: torch.float32, 8: torch.float64}[self.itemsize]
        return torch.empty(1, dtype=dtype).expand(self.stepper.memory, self.features * self.batch)

    @cached_property
    def weights(self) -> int:
        """Bytes of the weights of one layer, as the fields see them."""
        return sum(term.size for _, term in self.terms) * self.itemsize

    @cached_property
    def scratch(self) -> int:
        """Bytes in which the fields work."""
        return 2 * sum(self.kept(name) for name, _ in self.terms)

    def unit(self, ranks: int) -> int:
        """Slabs are cut at multiples of this."""
        return slab_unit(self.layers, ranks, self.forward, self.adjoint)

    def parts(self, options: SolverOptions) -> list[int]:
        """Examples in each part of the batch, as chains take them."""
        size = -(-self.batch // options.micro_batches)
        return [min(size, self.batch - a) for a in range(0, self.batch, size)]


def shape_of(options: SolverOptions) -> MGRIT:
    """The levels of a solver."""
    return MGRIT(options.coarsening, options.levels) if isinstance(options, MGRIT) else MGRIT(levels=1)


def _terms(trunk: LayerParallel, batch: int, features: int) -> list[tuple[str, Term]]:
    module = trunk._stack.module
    if not described(module):  # whose tape is f itself, one for each term
        size = sum(p[:1].numel() for p in trunk.theta.values())
        return [(name, Term(size, features, size, False)) for name in trunk.stepper.terms]
    theta = {name: p.detach()[:1] for name, p in trunk.theta.items()}
    own = {p.data_ptr() for p in theta.values()}
    found: list[tuple[str, Term]] = []
    for name, weights in module.dense(theta).items():
        _, hidden, width = weights.M.shape
        beside = sum(t.numel() for t in weights.tensors if _is_new(t, own))
        packed = 2 * hidden * (width + 1) if is_packed(hidden, width, batch) else hidden * (width + 2)
        C = 0 if weights.C is None else weights.C.numel()
        size = sum(t.numel() for t in weights.tensors)
        found.append((name, Term(size, hidden, beside + packed + C, True)))
    return found


def _is_new(t: Tensor, own: set[int]) -> bool:
    return t.data_ptr() not in own
