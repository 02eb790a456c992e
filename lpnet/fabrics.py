"""Interconnects as two numbers: what a message takes on the way between two ranks.

    hop(x) = latency + bytes(x) / bandwidth
    broadcast(x) = hop(x) ⌈log₂ P⌉                                      a binomial tree
    gather = latency ⌈log₂ P⌉ + bytes (P − 1)/P / bandwidth             recursive doubling; bytes of all ranks together

Source: Thakur, Rabenseifner, Gropp, Optimization of Collective Communication Operations in MPICH (2005), section 4.
"""

import math
from dataclasses import dataclass

from lpnet.errors import InputError


@dataclass(frozen=True)
class Fabric:
    """An interconnect.

    Attributes:
        name: for tables and pictures.
        latency: seconds of an empty message between two ranks, handling on both sides included.
        bandwidth: bytes a second between two ranks.

    Raises:
        InputError: a latency that is negative or not finite, a bandwidth that is not positive.
    """

    name: str
    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if not _is_number(self.latency) or not 0 <= self.latency < math.inf:
            raise InputError(f"latency: {self.latency!r} given, a finite number of at least 0 allowed")
        if not _is_number(self.bandwidth) or not self.bandwidth > 0:
            raise InputError(f"bandwidth: {self.bandwidth!r} given, a positive number allowed")

    def hop(self, size: float) -> float:
        """Seconds of a message of so many bytes."""
        return self.latency + size / self.bandwidth

    def broadcast(self, size: float, ranks: int) -> float:
        """Seconds until the last rank has so many bytes of one of them."""
        return self.hop(size) * rounds(ranks)

    def gather(self, size: float, ranks: int) -> float:
        """Seconds until all ranks have what all of them bring, so many bytes in all."""
        return self.latency * rounds(ranks) + size * (ranks - 1) / ranks / self.bandwidth


def _is_number(given: object) -> bool:
    return isinstance(given, int | float) and not isinstance(given, bool)


def rounds(ranks: int) -> int:
    """⌈log₂ P⌉, the rounds of a collective."""
    return (ranks - 1).bit_length()


FABRICS = {
    fabric.name: fabric
    for fabric in (
        Fabric("default", 2e-6, 10e9),  # a cluster of today, cautiously
        Fabric("memory", 5e-7, 10e9),  # ranks of one node
        Fabric("infiniband", 1.3e-6, 24e9),  # 200 Gbit/s
        Fabric("ethernet", 3e-5, 1.1e9),  # 10 Gbit/s, TCP
        Fabric("none", 0.0, math.inf),  # messages that take no time, for bounds
    )
}
"""By name; "default" is that of the figures in the documentation."""


def fabric_of(given: "str | Fabric") -> Fabric:
    """A fabric, by its name or as it is.

    Raises:
        InputError: a name that is not in `FABRICS`.
    """
    if isinstance(given, Fabric):
        return given
    if not isinstance(given, str) or given not in FABRICS:
        raise InputError(f"fabric: {given!r} given, one of {', '.join(FABRICS)} allowed")
    return FABRICS[given]
