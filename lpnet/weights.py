"""The parameters of a trunk: under their names in the dynamics, a row for each layer (or control point) of this rank.

Norms, optimizers and `lpnet.synchronize` know the layers of a rank by marks on the parameters, so whatever comes into
the place of one, by assignment or ``load_state_dict(assign=True)``, is marked as well. State dicts carry a note of the
rows that they hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lpnet.controls import Grid
from lpnet.errors import InputError
from lpnet.slab import Comm

TAKEN = "which LayerParallel uses itself; another name allowed"
GRID = "lpnet_grid"  # what the metadata of a state dict call the kind of the grid
ROWS = "lpnet_rows"  # and its rows: first, end, and number of all


@dataclass(frozen=True)
class Place:
    """Where the parameters of a trunk belong: their grid, and the ranks that share it."""

    grid: Grid
    comm: Comm

    def __deepcopy__(self, memo: dict[int, Any]) -> "Place":
        return self  # copies of a trunk are on the same ranks

    def mark(self, parameter: nn.Parameter) -> None:
        """Say on a parameter which slab its rows belong to."""
        parameter.lpnet_slab = self.grid.slab  # type: ignore[attr-defined]
        parameter.lpnet_comm = self.comm  # type: ignore[attr-defined]

    def checked(
        self, name: str, shape: torch.Size, before: nn.Parameter | None, given: nn.Parameter | None
    ) -> nn.Parameter:
        """A parameter for the place of one of this shape; `InputError` for what cannot stand there."""
        if given is None or given.shape != shape:
            what = "None" if given is None else f"a parameter of shape {tuple(given.shape)}"
            rows = said(self.grid, self.grid.rows)
            raise InputError(f"{name}: {what} given, {tuple(shape)} ({rows}, on this rank) allowed")
        if before is not None and given.dtype != before.dtype:
            raise InputError(f"{name}: {given.dtype} given, {before.dtype} (that of the trunk) allowed")
        check_dtype(given.dtype, name)
        return given


class Rows(nn.Module):
    """A trunk, or a part of it, which marks the parameters that come in under the names that are its own."""

    def __init__(self) -> None:
        super().__init__()
        self._own: dict[str, tuple[Place, str, torch.Size]] = {}

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As torch's, which assignments call too.

        Raises:
            InputError: another shape or type in the place of a weight of the layers.
        """
        if name not in self._own:
            super().register_parameter(name, param)
            return
        place, path, shape = self._own[name]
        param = place.checked(path, shape, self._parameters.get(name), param)
        super().register_parameter(name, param)
        place.mark(param)

    def _take(self, name: str, parameter: nn.Parameter, place: Place, within: str = "") -> None:
        """Take a parameter whose place this is from now on, under its path in the dynamics, e.g. "0.weight".

        Raises:
            InputError: the name is that of something else.
        """
        part, _, rest = name.partition(".")
        if not rest:
            if hasattr(self, part):
                raise InputError(f"dynamics: a weight named {part!r} given, {TAKEN}")
            self._own[part] = place, within + part, parameter.shape
            self.register_parameter(part, parameter)
            return
        if part not in self._modules:
            if hasattr(self, part):
                raise InputError(f"dynamics: a part named {part!r} given, {TAKEN}")
            self.add_module(part, Rows())
        self._modules[part]._take(rest, parameter, place, f"{within}{part}.")  # type: ignore[union-attr, operator]


def find(owner: nn.Module, name: str) -> Any:
    """The weight of this path, also where `functional_call` has put a tensor in its place."""
    path, _, leaf = name.rpartition(".")
    for part in filter(None, path.split(".")):
        owner = owner._modules[part]  # type: ignore[assignment]
    return getattr(owner, leaf)


def check_dtype(dtype: torch.dtype, key: str = "dtype") -> None:
    """Raise `InputError` for a type that weights cannot have."""
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"{key}: {dtype} given, torch.float32 or torch.float64 allowed")


def note(grid: Grid, rows: range) -> dict[str, Any]:
    """What the metadata of a state dict say of its weights: of what grid, and which of its rows."""
    return {GRID: grid.kind, ROWS: (rows.start, rows.stop, grid.count)}


def check_rows(metadata: Mapping[str, Any], grid: Grid) -> None:
    """Raise `InputError` for a state dict that has neither all rows of the grid nor this rank's; old ones don't say."""
    start, stop, count = metadata.get(ROWS, (0, grid.count, grid.count))
    if count != grid.count:
        raise InputError(f"state dict: weights of {count} {grid.axis}s given, {grid.count} allowed")
    if range(start, stop) not in (range(count), grid.rows):
        theirs, own = said(grid, range(start, stop)), said(grid, grid.rows)
        raise InputError(
            f"state dict: {theirs} given, which another rank has saved, {own} (this rank's) or all of "
            "gather_state_dict() allowed"
        )


def said(grid: Grid, rows: range) -> str:
    """Some rows of a grid in words."""
    return f"{grid.axis}s {rows.start} to {rows.stop - 1} of {grid.count}" if rows else f"no {grid.axis}s"
