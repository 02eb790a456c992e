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


class Bytes(NamedTuple):
    """How much is done at once: the states of one slot, and the weights."""

    states: int
    weights: int


ON_CPU = Bytes(1 << 18, 1 << 22)
ELSEWHERE = Bytes(1 << 25, 1 << 27)


def most(size: int, x: Tensor) -> int:
    """How many blocks with weights of so many entries go together for states like x, (memory, ...).

    A rule of shapes alone, so that reruns take the same decisions. Measured on one core (one matrix or two, float32
    and float64, width 2 to 256, batch 16 to 5000, 2 to 64 blocks): together they are never slower as long as their
    states stay within a cache of a megabyte, and up to 25 times faster; beyond, they lose up to a third. The work needs
    some ten times the memory of these states, so a quarter of that is the limit. A GPU is bound by launches.
    """
    limit, unit = ON_CPU if x.device.type == "cpu" else ELSEWHERE, x.element_size()
    return max(1, min(limit.states // max(1, unit * x[0].numel()), limit.weights // max(1, unit * size)))


def shared(run: list[int], number: int) -> list[list[int]]:
    """A run in equal parts of at most so many."""
    parts = -(-len(run) // number)
    return [run[len(run) * p // parts : len(run) * (p + 1) // parts] for p in range(parts)]


class Stacked(list[Tensor]):
    """The entries of a stacked tensor, each as a view, and the tensor itself."""

    def __init__(self, whole: Tensor) -> None:
        super().__init__(whole.unbind())
        self.whole = whole
