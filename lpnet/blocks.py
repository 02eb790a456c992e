"""Equal blocks of stacked layers: the p-th layers of all blocks at once, as views."""

from typing import Any, NamedTuple

from torch import Tensor


class Blocks(NamedTuple):
    """Blocks k < number of `length` layers p each: layers first + k every + p of a stack."""

    first: int
    number: int
    every: int
    length: int

    def rows(self) -> list[int]:
        """All their layers."""
        return [self.first + k * self.every + p for k in range(self.number) for p in range(self.length)]

    def together(self, stack: Tensor) -> Tensor:
        """(n, ...) to the view (length, number, ...)."""
        step, *rest = stack.stride()
        shape = (self.length, self.number, *stack.shape[1:])
        return stack[self.first :].as_strided(shape, (step, self.every * step, *rest))

    def kept(self, kept: list[Any]) -> list[Any]:
        """The same of a list over the layers, which holds nothing or is `Stacked`."""
        return list(self.together(kept.whole).unbind()) if isinstance(kept, Stacked) else kept[: self.length]


class Stacked(list[Tensor]):
    """The entries of a stacked tensor, each as a view, and the tensor itself."""

    def __init__(self, whole: Tensor) -> None:
        super().__init__(whole.unbind())
        self.whole = whole
