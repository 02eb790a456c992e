"""A network with one trunk in an ordered chain, taken apart:

    logits = after(trunk(before(x)))
"""

from dataclasses import dataclass

from torch import nn

from lpnet.errors import InputError
from lpnet.module import LayerParallel
from lpnet.sharded import trunks


@dataclass(frozen=True)
class Chain:
    """The parts, which are those of the network itself and no copies; an absent one is an `nn.Identity`."""

    before: nn.Module
    trunk: LayerParallel
    after: nn.Module


def split(net: nn.Module) -> Chain:
    """The parts of a network.

    Args:
        net: a `LayerParallel`, an `nn.Sequential` (of others) with one in it, or a module that computes
            ``classifier(trunk(opening(x)))`` with parts of these names, such as `lpnet.network.Network`.

    Raises:
        InputError: a network of another form.
    """
    parts = _parts(net)
    places = [i for i, part in enumerate(parts) if isinstance(part, LayerParallel)]
    if len(places) != 1 or len({id(t) for part in parts for t in trunks(part)}) != 1:
        raise InputError(
            f"net: a {type(net).__name__} given, only a torch.nn.Sequential with exactly one lpnet.LayerParallel in "
            "it, or a module with the parts opening, trunk and classifier allowed"
        )
    trunk = parts[places[0]]
    assert isinstance(trunk, LayerParallel)
    return Chain(_joined(parts[: places[0]]), trunk, _joined(parts[places[0] + 1 :]))


def is_plain(net: nn.Module) -> bool:
    """Whether nothing but the classes tells that a net is its parts one after the other."""
    if isinstance(net, nn.Sequential) and trunks(net):
        return type(net).forward is nn.Sequential.forward and all(map(is_plain, net))
    return isinstance(net, LayerParallel) or not trunks(net)


def _parts(net: nn.Module) -> list[nn.Module]:
    """The modules that are called one after the other; a Sequential with a forward of its own may be one without."""
    if isinstance(net, nn.Sequential) and (type(net).forward is nn.Sequential.forward or trunks(net)):
        return [part for one in net for part in _parts(one)]
    named = [getattr(net, name, None) for name in ("opening", "trunk", "classifier")]
    modules = [part for part in named if isinstance(part, nn.Module)]
    return modules if len(modules) == 3 and isinstance(named[1], LayerParallel) else [net]


def _joined(parts: list[nn.Module]) -> nn.Module:
    if not parts:
        return nn.Identity()
    return parts[0] if len(parts) == 1 else nn.Sequential(*parts)
