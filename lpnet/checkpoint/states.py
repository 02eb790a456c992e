"""What a network, its optimizer and its schedule bring into a checkpoint, and how they take it up on any ranks.

    net/trunk/K                     a parameter or buffer; of the layers all, (N, ...)
    optimizer/exp_avg/trunk/K       what an optimizer keeps of it

Everything else is values of JSON, in `meta` under "net", "optimizer" and "schedule".
"""

from collections.abc import Callable, MutableMapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from lpnet.checkpoint.content import Content, Rows
from lpnet.checkpoint.stored import Stored, believed
from lpnet.checkpoint.values import decoded, encoded
from lpnet.errors import InputError
from lpnet.module import LayerParallel
from lpnet.sharded import NOT_ELEMENTWISE, require_own, slab_of

# How the optimizers of torch do their work, which is the business of the run that goes on.
_MEANS = ("foreach", "fused", "capturable", "differentiable")


# What files of earlier days call the kind of an optimizer whose state was kept.
_KEPT = "Good"


class Kept(Protocol):
    """What an optimizer has, or what was kept of it."""

    @property
    def state(self) -> MutableMapping[Tensor, Any]:
        """By parameter."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Parameters and options."""


# ---- networks --------------------------------------------------------------------------------------------------------


def of_net(net: nn.Module) -> Content:
    """All parameters and buffers of a network.

    Raises:
        InputError: it keeps something else than tensors.
    """
    content = Content()
    own, owners = net.state_dict(), _parameters(net)
    for key, value in own.items():
        if not isinstance(value, Tensor):
            raise InputError(f"net: {key!r} of {type(value).__name__} given, tensors allowed")
        _add(content, _path("net", key), value, owners.get(key))
    content.meta["net"] = {"rows": _rows(net)}
    return content


def for_net(stored: Stored, net: nn.Module) -> Callable[[], object]:
    """What puts the parameters and buffers of a checkpoint into a network of the same form.

    Raises:
        InputError: the network has others; nothing was changed.
    """
    own, owners = net.state_dict(), _parameters(net)
    paths = {_path("net", key): key for key in own}
    found = {name for name in stored.names() if name.startswith("net/")}
    other = sorted(found ^ set(paths))
    if other:
        raise stored.unusable(f"{', '.join(other)} missing or unknown")
    if _of(stored, "net").get("rows") != _rows(net):
        raise stored.unusable("its weights belong to other rows, layers or control points, than those of the network")
    values = {key: taken(stored, path, own[key], owners.get(key)) for path, key in paths.items()}
    return partial(net.load_state_dict, values)


def _parameters(net: nn.Module) -> dict[str, Tensor]:
    return dict(net.named_parameters(remove_duplicate=False))


def _rows(net: nn.Module) -> dict[str, str]:
    """What the rows of the weights of each trunk belong to."""
    return {name: part.grid.kind for name, part in net.named_modules() if isinstance(part, LayerParallel)}


def _path(kind: str, key: str) -> str:
    return f"{kind}/{key.replace('.', '/')}"


def _add(content: Content, path: str, value: Tensor, owner: Tensor | None) -> None:
    """A tensor like its parameter is spread as this is."""
    spread = owner is not None and slab_of(owner) is not None
    if spread and value.shape == owner.shape:  # type: ignore[union-attr]
        content.rows[path] = Rows(value)
    elif spread and value.ndim:
        raise InputError(f"checkpoint: {path!r} of shape {tuple(value.shape)} given, that of its layers allowed")
    else:
        content.whole[path] = value


def taken(stored: Stored, path: str, like: Tensor, owner: Tensor | None) -> Tensor:
    """This rank's share of a tensor, like one that it has, which is spread as its parameter is.

    Raises:
        InputError: it is of another shape or type.
    """
    slab = None if owner is None else slab_of(owner)
    shape = tuple(like.shape) if slab is None else (slab.layers, *like.shape[1:])
    if stored.shape(path) != shape or stored.dtype(path) != like.dtype:
        given = f"{stored.dtype(path)} {stored.shape(path)}"
        raise stored.unusable(f"{path} is {given}, {like.dtype} {shape} needed")
    return stored.whole(path) if slab is None else stored.rows(path, slab.lo, slab.hi)


def _of(stored: Stored, path: str) -> dict[str, Any]:
    """What the meta data say of a part.

    Raises:
        InputError: nothing.
    """
    said: Any = stored.meta
    for key in path.split("/"):
        said = said.get(key) if isinstance(said, dict) else None
    if not isinstance(said, dict):
        raise stored.unusable(f"it has no {path}")
    return said


# ---- optimizers ------------------------------------------------------------------------------------------------------


def of_optimizer(
    optimizer: torch.optim.Optimizer, net: nn.Module, kept: Kept | None = None, path: str = "optimizer"
) -> Content:
    """Options and state of an optimizer of parameters of a network.

    Args:
        optimizer: says of what kind and of which parameters they are.
        net: has the parameters.
        kept: what to write; None: what the optimizer has now.
        path: where to, in meta data and tensors.

    Raises:
        InputError: it has other parameters, or keeps something that cannot be cut into layers or written as JSON.
    """
    content, kind, state = Content(), type(optimizer).__name__, {}
    of, names = optimizer if kept is None else kept, _names(optimizer, net)
    for p, name in names.items():
        tensors, host, values = [], [], {}
        for key, value in of.state.get(p, {}).items():
            if isinstance(value, Tensor):
                tensors.append(key)
                host += [key] if value.device != p.device else []
                _add(content, _path(f"{path}/{key}", name), value, p)
            else:
                values[key] = encoded(value, f"optimizer: a {kind}")
        state[name] = {"tensors": tensors, "host": host, "values": values}
    groups = [
        {key: encoded(value, f"optimizer: a {kind}") for key, value in group.items() if key not in ("params", *_MEANS)}
        | {"params": [names[p] for p in group["params"]]}
        for group in of.param_groups
    ]
    said: dict[str, Any] = {"kind": kind, "groups": groups, "state": state}
    for key in reversed(path.split("/")):
        said = {key: said}
    content.meta |= said
    return content


def for_optimizer(
    stored: Stored, optimizer: torch.optim.Optimizer, net: nn.Module, kept: Kept | None = None, path: str = "optimizer"
) -> Callable[[], object]:
    """What puts options and state into an optimizer of the same kind, of the same parameters in the same groups.

    Args:
        stored: the checkpoint.
        optimizer: says of what kind and of which parameters they have to be.
        net: has the parameters.
        kept: what they are put into; None: the optimizer.
        path: where they are, see `of_optimizer`.

    Raises:
        InputError: it is of another kind or of other parameters; nothing was changed.
    """
    said, kind, names = _of(stored, path), type(optimizer).__name__, _names(optimizer, net)
    with believed(stored, "what it says of its optimizer is of another form"):
        groups = [{key: decoded(value) for key, value in group.items()} for group in said["groups"]]
        own = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
        kinds = (kind,) if kept is None else (kind, _KEPT)
        if said["kind"] not in kinds or [group["params"] for group in groups] != own:
            raise stored.unusable(f"it has a {said['kind']} of other parameters, no {kind} of these")
        if not all(_fit(new, group) for new, group in zip(groups, optimizer.param_groups, strict=True)):
            raise stored.unusable(f"it has a {kind} of other options")
        state = {p: _state(stored, said["state"][name], p, path, name) for p, name in names.items()}
        _require_whole(stored, optimizer, state)
    return partial(_put, optimizer if kept is None else kept, groups, state)


def _put(optimizer: Kept, groups: list[dict[str, Any]], state: dict[Tensor, dict[str, Any]]) -> None:
    for p, kept in state.items():
        optimizer.state.pop(p, None)
        if kept:
            optimizer.state[p] = kept
    for group, new in zip(optimizer.param_groups, groups, strict=True):
        for key, value in new.items():
            if isinstance(group.get(key), Tensor):
                group[key].fill_(value)
            elif key != "params":
                group[key] = value


def _fit(new: dict[str, Any], group: dict[str, Any]) -> bool:
    """Whether these options can take the place of those of a group; lists grow as they like."""
    return all(
        isinstance(value, list) if isinstance(group[key], list) else _is_like(value, group[key])
        for key, value in new.items()
        if key in group
    )


def _state(stored: Stored, said: dict[str, Any], p: Tensor, path: str, name: str) -> dict[str, Any]:
    """What is kept of one parameter."""
    kept = {key: decoded(value) for key, value in said["values"].items()}
    for key in said["tensors"]:
        place, slab = _path(f"{path}/{key}", name), slab_of(p)
        if slab is None or not stored.shape(place):
            value = stored.whole(place)
        elif stored.shape(place) == (slab.layers, *p.shape[1:]):
            value = stored.rows(place, slab.lo, slab.hi)
        else:
            raise stored.unusable(f"{place} is of another shape than its layers")
        kept[key] = value if key in said["host"] else value.to(p.device)
    return kept


def _require_whole(stored: Stored, optimizer: torch.optim.Optimizer, state: dict[Tensor, dict[str, Any]]) -> None:
    """Require of what an elementwise optimizer keeps that it is the same of all parameters, and in their form.

    Raises:
        InputError: it is not.
    """
    kind = type(optimizer)
    if not kind.__module__.startswith("torch.optim.") or kind.__name__ in NOT_ELEMENTWISE:
        return
    for group in optimizer.param_groups:
        kept = [(p, state[p]) for p in group["params"] if state[p]]
        if any(of_one.keys() != kept[0][1].keys() for _, of_one in kept):
            raise stored.unusable(f"it has not the same of all parameters for a {kind.__name__}")
        for p, of_one in kept:
            tensors = [value for value in of_one.values() if isinstance(value, Tensor) and value.ndim]
            if any((value.shape, value.dtype) != (p.shape, p.dtype) for value in tensors):
                raise stored.unusable(f"it has something else for a {kind.__name__} than tensors like the parameters")


def _names(optimizer: torch.optim.Optimizer, net: nn.Module) -> dict[Tensor, str]:
    """The optimizer's parameters, in its order, with their names in the network."""
    require_own(optimizer, net)
    known: dict[Tensor, str] = {p: name for name, p in net.named_parameters()}
    return {p: known[p] for group in optimizer.param_groups for p in group["params"]}


# ---- schedules -------------------------------------------------------------------------------------------------------


def of_schedule(schedule: LRScheduler) -> Content:
    """The state of a schedule, without functions that it was made from.

    Raises:
        InputError: it keeps something that cannot be written as JSON.
    """
    kind = type(schedule).__name__
    return Content({"schedule": {"kind": kind, "state": encoded(schedule.state_dict(), f"schedule: a {kind}")}})


def for_schedule(stored: Stored, schedule: LRScheduler) -> Callable[[], object]:
    """What puts the state into a schedule of the same kind, made with the same options.

    Raises:
        InputError: it is of another kind; nothing was changed.
    """
    said, kind = _of(stored, "schedule"), type(schedule).__name__
    with believed(stored, "what it says of its schedule is of another form"):
        state = decoded(said["state"])
        if said["kind"] != kind or not _is_like(state, schedule.state_dict()):
            raise stored.unusable(f"it has a {said['kind']} of other options, no {kind} like this")
    return partial(schedule.load_state_dict, state)


def _is_like(state: Any, own: Any) -> bool:
    """Whether a state has the form of another one: the same keys and types, all the way down."""
    if isinstance(own, Tensor):
        own = own.item()
    if own is None:
        return not isinstance(state, list | tuple | dict)
    if isinstance(own, bool | str):
        return type(state) is type(own)
    if isinstance(own, int | float):
        return isinstance(state, int | float)
    if type(state) is not type(own) or len(state) != len(own):
        return False
    if isinstance(own, dict):
        return state.keys() == own.keys() and all(_is_like(state[key], own[key]) for key in own)
    return all(_is_like(a, b) for a, b in zip(state, own, strict=True))
