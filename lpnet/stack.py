"""One layer's module as a stack of layers: initial weights, fields, and gradients of the stacked weights."""

import copy
import itertools
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lpnet.dense_field import DenseField
from lpnet.dynamics import Dynamics, described
from lpnet.errors import InputError
from lpnet.fields import DenseWeights, Field
from lpnet.module_field import ModuleField
from lpnet.pool import Pool
from lpnet.slab import Comm
from lpnet.steppers import REGISTRY as STEPPERS
from lpnet.steppers import Stepper, check_layer
from lpnet.weights import TAKEN

Weights = dict[str, Tensor]


def generator(*key: int) -> torch.Generator:
    """A generator of its own for this key, e.g. (seed, layer), equal on every rank and machine."""
    return torch.Generator().manual_seed(seed_of(*key))


def seed_of(*key: int) -> int:
    """A 63-bit seed for a key of non-negative whole numbers."""
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Call(nn.Module):
    """Lets `functional_call` reach the terms of a module, whose parts and weights may be shared."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        named = dict(module.named_parameters())
        first = {id(p): name for name, p in named.items()}
        self._places: dict[str, list[str]] = {name: [] for name in named}
        for path, part in module.named_modules():  # each part once
            for leaf, p in part._parameters.items():
                if p is not None:
                    self._places[first[id(p)]].append(f"module.{path}.{leaf}" if path else f"module.{leaf}")

    def at(self, theta: Weights, term: str, y: Tensor) -> Tensor:
        """The term at y with these weights, each in all its places."""
        named = {place: value for name, value in theta.items() for place in self._places[name]}
        # torch's own way with ties puts back a tensor for the parameter of a part that has two names
        found: Tensor = functional_call(self, named, (term, y), tie_weights=False)
        return found

    def forward(self, term: str, y: Tensor) -> Tensor:
        return self.module(y) if term == "f" else getattr(self.module, term)(y)


class Stack:
    """A module of one layer, whose weights exist once for each layer.

    Args:
        module: the dynamics of one layer; a copy is kept.
        stepper: says which terms are needed.

    Raises:
        InputError: not a module, or one that has batch normalisation, or lacks the terms that the stepper needs.
    """

    def __init__(self, module: nn.Module, stepper: Stepper) -> None:
        if not isinstance(module, nn.Module):
            raise InputError(f"dynamics: {type(module).__name__} given, a torch.nn.Module of one layer needed")
        _check(module, stepper)
        self.module = copy.deepcopy(module)
        self.terms = stepper.terms
        self._described = self.module if described(self.module) else None
        self._call = Call(self.module)
        self._random: dict[bool, bool] = {}
        self.pool = Pool()

    @property
    def fast(self) -> bool:
        """Whether layers are evaluated by the weights of `Dynamics.dense`; else by calls of the module."""
        return self._described is not None

    def agree(self, comm: Comm) -> None:
        """Give the weights and buffers of a user's module those of rank 0; collective."""
        for part in self.module.modules():
            for name, b in part._buffers.items():
                part._buffers[name] = None if b is None else b.contiguous()  # to be written into
        weights = () if self.fast else self.module.parameters()
        for t in itertools.chain(weights, self.module.buffers()):
            comm.bcast_(t.data, 0)

    def share_buffers(self, trunk: nn.Module) -> None:
        """Let a trunk have the buffers of the module, under their paths in it, as its own.

        Both hold the same dictionaries, so that whatever is loaded, moved or assigned is what is evaluated.

        Raises:
            InputError: the name is that of something else.
        """
        for path, part in self.module.named_modules():
            if not part._buffers:
                continue
            owner = trunk
            for name in filter(None, path.split(".")):
                owner = _child(owner, name)
            for name in part._buffers:
                if hasattr(owner, name):
                    raise InputError(f"dynamics: a buffer named {name!r} given, {TAKEN}")
            owner._buffers, owner._non_persistent_buffers_set = part._buffers, part._non_persistent_buffers_set

    def _evaluate(self, training: bool, theta: Weights, term: str, y: Tensor) -> Tensor:
        """f(y) with the weights of one layer, in the mode of the forward pass (an adjoint may come after a switch)."""
        if self.module.training != training:
            self.module.train(training)
        return self._call.at(theta, term, y)

    def fields(
        self, theta: Weights, seeds: list[int] | None = None, batch: int | None = None
    ) -> dict[str, Field]:
        """Fields of these stacked weights, for so many examples at once; memory is lent by the pool of this stack."""
        theta = {name: value.detach() for name, value in theta.items()}
        if self._described is not None:
            dense, activation = self._described.dense(theta), self._described.activation
            return {term: DenseField(w, activation, self.pool, batch) for term, w in dense.items()}
        evaluate = partial(self._evaluate, self.module.training)
        return {term: ModuleField(theta, evaluate, term, seeds) for term in self.terms}

    def gradients(self, theta: Weights, fields: dict[str, Field]) -> list[Tensor]:
        """Gradients of the stacked weights from those that the fields have collected."""
        if self._described is None:
            each = [field.grads() for field in fields.values()]
            return [torch.stack(grads).sum(0) for grads in zip(*each, strict=True)]
        with torch.enable_grad():
            leaves = {name: value.detach().requires_grad_() for name, value in theta.items()}
            dense = self._described.dense(leaves)
        made = [t for term in fields for t in dense[term].tensors]
        bars = [grad for field in fields.values() for grad in field.grads()]
        own = {id(t): bar for t, bar in zip(made, bars, strict=True)}
        # The weights themselves, each in one place:
        if len(own) == len(made) and own.keys() == {id(leaf) for leaf in leaves.values()}:
            return [own[id(leaf)] for leaf in leaves.values()]
        return list(
            torch.autograd.grad(made, list(leaves.values()), bars, materialize_grads=True, allow_unused=True)
        )

    def directions(self, theta: Weights, delta: Weights) -> dict[str, Any]:
        """The change of each term's weights, as its field holds them, for the change `delta` of the stacked weights."""
        if self._described is None:
            return dict.fromkeys(self.terms, delta)
        dense = self._described.dense

        def tensors(theta: Weights) -> dict[str, tuple[Tensor, ...]]:
            return {term: w.tensors for term, w in dense(theta).items()}

        dots = torch.func.jvp(tensors, (theta,), (delta,))[1]
        return {term: DenseWeights(*dot) for term, dot in dots.items()}

    def initial(self, init: str, seed: int, layers: range) -> Weights:
        """Stacked weights of some layers, equal in all layers ("constant") or drawn from (seed, layer) ("random").

        Constant weights of a user's module are its own; random ones come from its ``reset_parameters``. See `start`.
        """
        own = _own(self.module)
        if init == "constant":
            one = start(self.module, seed)
            return {name: one[name].to(p).expand(len(layers), *p.shape).clone() for name, p in own.items()}
        drawn = [start(self.module, seed, layer) for layer in layers]
        return {
            name: torch.stack([d[name].to(p) for d in drawn]) if drawn else p.new_empty(0, *p.shape)
            for name, p in own.items()
        }

    def check_input(self, y: Tensor) -> None:
        """Raise `InputError` for an input that does not fit: no tensor, or one of another shape or type."""
        if not isinstance(y, Tensor):
            raise InputError(f"input: {y!r} given, a tensor (batch, *features) needed")
        if y.ndim < 2:
            raise InputError(f"input: shape {tuple(y.shape)} given, (batch, *features) needed")
        own = next(self.module.parameters(), None)
        if own is not None and y.dtype != own.dtype:
            raise InputError(f"input: dtype {y.dtype} given, {own.dtype} (that of the trunk) needed")
        one = self._described
        if one is not None and (y.ndim != 2 or y.shape[1] != one.width):
            raise InputError(f"input: shape {tuple(y.shape)} given, (batch, {one.width}) needed")

    def check_module(self, y: Tensor) -> None:
        """Evaluate a user's module at y, once in each mode (training or not).

        Raises:
            InputError: it changes the shape, its input or its buffers.
        """
        mode = self.module.training
        if not self.fast and mode not in self._random:
            draws = [self._probe(term, y) for term in self.terms]
            self._random[mode] = any(draws)

    @property
    def is_random(self) -> bool:
        """Whether evaluations in the present mode draw random numbers, as `check_module` has found."""
        return not self.fast and self._random[self.module.training]

    def _probe(self, term: str, y: Tensor) -> bool:
        """Whether the term draws random numbers; `InputError` where it does what it must not."""
        before = [b.clone() for b in self.module.buffers()]
        devices = [y.device] if y.is_cuda else []
        with torch.random.fork_rng(devices), torch.inference_mode(False), torch.no_grad():  # with versions of tensors
            state = _random_state(devices)
            source = y.detach().clone()
            version = source._version
            k = self._call(term, source)
            changed = source._version != version
            drew = not all(torch.equal(a, b) for a, b in zip(state, _random_state(devices), strict=True))
        if not isinstance(k, Tensor) or k.shape != y.shape:
            given = tuple(k.shape) if isinstance(k, Tensor) else type(k).__name__
            raise InputError(f"dynamics: a map of shape {tuple(y.shape)} to {given} given, the same shape is needed")
        if changed:
            name = type(self.module).__name__
            raise InputError(f"dynamics: {name} given, which changes its input in place; a new tensor for dy/dt needed")
        if any(not torch.equal(a, b) for a, b in zip(before, self.module.buffers(), strict=True)):
            raise InputError("dynamics: buffers given that change when it is evaluated, only fixed ones are allowed")
        return drew


def _child(owner: nn.Module, name: str) -> nn.Module:
    """A part of a trunk, made if there is none."""
    if name not in owner._modules:
        if hasattr(owner, name):
            raise InputError(f"dynamics: a part named {name!r} given, {TAKEN}")
        owner.add_module(name, nn.Module())
    return owner.get_submodule(name)


def start(module: nn.Module, seed: int, layer: int | None = None) -> Weights:
    """Weights from which a layer starts, drawn from (seed, layer); without a layer those from which all start.

    Built-in dynamics draw them (`Dynamics.draw`). A user's module has its own, or those of its ``reset_parameters``. A
    subclass of built-in dynamics that is treated as a user's module draws those of its own weights that are all zero,
    as the built-in ones leave them, unless its ``draw`` is its own.
    """
    if not isinstance(module, Dynamics):
        return _own(module) if layer is None else _reset(module, seed, layer)
    drawn = module.draw(generator(seed, layer or 0))
    if described(module) or type(module).draw is not Dynamics.draw:
        return _own(module) | drawn
    own = _own(module) if layer is None or not _resets(module) else _reset(module, seed, layer)
    return {name: p if p.any() or not _is_at_top(name) else drawn[name] for name, p in own.items()}


def _is_at_top(name: str) -> bool:
    return "." not in name or name.startswith("parametrizations.")


def _own(module: nn.Module) -> Weights:
    return {name: p.detach() for name, p in module.named_parameters()}


def _resets(module: nn.Module) -> list[Any]:
    found = [getattr(m, "reset_parameters", None) for m in module.modules()]
    return [reset for reset in found if callable(reset)]


def _reset(module: nn.Module, seed: int, layer: int) -> Weights:
    module = copy.deepcopy(module)
    if not (resets := _resets(module)):
        raise InputError('init: "random" given, but the dynamics has no reset_parameters(); "constant" allowed')
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, layer))
        for reset in resets:
            reset()
    return _own(module)


def _random_state(devices: list[torch.device]) -> list[Tensor]:
    """States of the generators that modules draw from."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def terms_of(module: nn.Module) -> tuple[str, ...]:
    """What a module says of dy/dt: "kick" and "drift", one of them, or "f" for ``forward``."""
    own: tuple[str, ...] = getattr(module, "terms", ())
    return own or tuple(t for t in ("kick", "drift") if callable(getattr(module, t, None))) or ("f",)


def _check(module: nn.Module, stepper: Stepper) -> None:
    if next(module.parameters(), None) is None:
        raise InputError(f"dynamics: {type(module).__name__} given, which has no parameters; at least one needed")
    for name, part in module.named_modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            raise InputError(
                f"dynamics: {type(part).__name__} ({name or 'itself'}) given; its statistics would change with every "
                "relaxation, LayerNorm or GroupNorm allowed"
            )
    require_terms(module, stepper)
    check_layer(stepper)


def require_terms(module: nn.Module, stepper: Stepper) -> None:
    """Raise `InputError` unless the stepper uses just the terms that the module gives."""
    has = terms_of(module)
    if set(stepper.terms) == set(has):
        return
    needs = " and ".join(f"{t}()" for t in stepper.terms) if stepper.terms != ("f",) else "forward()"
    if set(stepper.terms) < set(has):
        needs += " alone and would leave out the rest"
    fitting = [f"lpnet.steppers.{kind.__name__}()" for kind in STEPPERS.values() if set(kind.terms) == set(has)]
    if fitting:
        needs += f"; stepper={' or '.join(fitting)} allowed"
    raise InputError(
        f"dynamics: {type(module).__name__} given with stepper {type(stepper).__name__}, which needs {needs}"
    )
