"""What goes into a checkpoint, as each rank has it: values of JSON, tensors that all ranks have, and rows of others."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Rows:
    """This rank's consecutive rows (n, ...) of a tensor whose first axis is spread over the ranks, in rank order."""

    local: Tensor


@dataclass
class Content:
    """What a checkpoint holds; names such as "net/trunk/K" are paths in the file, the same on all ranks.

    Args:
        meta: values of JSON, and numbers that are not finite; equal on all ranks, that of rank 0 is written.
        whole: tensors that all ranks have; that of rank 0 is written.
        rows: this rank's rows of tensors that are spread; a rank without any has (0, ...) of them.
    """

    meta: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)

    def __or__(self, other: "Content") -> "Content":
        """Both together.

        Raises:
            ValueError: something of the same name is in both.
        """
        mine = {*self.whole, *self.rows}
        twice = sorted((mine & {*other.whole, *other.rows}) | (set(self.meta) & set(other.meta)))
        if twice:
            raise ValueError(f"checkpoint: {', '.join(twice)} given twice")
        return Content(self.meta | other.meta, self.whole | other.whole, self.rows | other.rows)
