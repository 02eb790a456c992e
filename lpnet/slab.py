"""Who owns which layers, and how tensors travel between ranks. The only module that imports mpi4py.

Rank r of P owns the layers [starts[r], starts[r + 1]), contiguous and balanced, cut at multiples of a unit (the
coarsening factor) where there are at least P units, else at any layer. Every rank knows all starts, so nothing about
ownership is ever communicated.

Communication is by buffers on a duplicated communicator. Tensors that MPI cannot read (on a GPU, when MPI is not
CUDA-aware) are staged through the host. `Comm` itself is the serial twin: one rank, no MPI.
"""

import os
import time
from bisect import bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lpnet.cuda_aware import is_cuda_aware, library_of, queried
from lpnet.errors import InputError
from lpnet.messages import Incoming, Outbox, Posted, buffer_for, in_reach, readable, settle
from lpnet.phases import Observer, phase

# Set by the process managers of MPICH, Open MPI, MVAPICH, Intel MPI and Cray; srun sets one of the PMI variables.
_LAUNCHERS = {
    "PMIX_RANK": "PMIx",
    "PMI_RANK": "PMI",
    "OMPI_COMM_WORLD_RANK": "Open MPI",
    "MV2_COMM_WORLD_RANK": "MVAPICH",
    "PALS_RANKID": "PALS",
}


def launcher() -> str | None:
    """Name of the MPI launcher that started this process, None where there was none."""
    return next((name for key, name in _LAUNCHERS.items() if key in os.environ), None)


def partition(layers: int, ranks: int, unit: int = 1) -> tuple[int, ...]:
    """Start of every rank's slab, and `layers` at the end: P + 1 numbers.

    Cuts lie at multiples of `unit` if that leaves every rank something, else anywhere. Ranks beyond the number of
    layers own nothing.
    """
    units = -(-layers // unit)
    if units < ranks:
        busy = min(ranks, layers)
        return tuple(min(r, busy) * layers // busy for r in range(ranks)) + (layers,)
    return tuple(min(layers, unit * (r * units // ranks)) for r in range(ranks)) + (layers,)


class Comm:
    """The serial twin: one rank, nothing to send. `MPIComm` has the same methods."""

    rank = 0
    size = 1
    observer: Observer | None = None

    def handle(self) -> Any:
        """The mpi4py communicator of these ranks, for libraries that use MPI themselves; None without MPI."""
        return None

    def barrier(self, idle: bool = False) -> None:
        """Wait for all ranks; `idle`: leave the core to others meanwhile."""

    def all_here(self, seconds: float) -> bool:
        """Whether all ranks call this within some seconds; for their common end, whatever else is under way."""
        return True

    def abort(self, code: int) -> None:
        """End the whole job at once with this exit code."""
        os._exit(code)

    def send(self, x: Tensor, to: int) -> None:
        """Send a tensor without waiting for the receiver; the tensor may be changed afterwards."""
        raise RuntimeError("send on a single rank")

    def recv(self, like: Tensor, source: int) -> Tensor:
        """Receive a tensor of the shape, dtype and device of `like` (which is not changed)."""
        raise RuntimeError("receive on a single rank")

    def post(self, like: Tensor, source: int) -> Posted:
        """Begin to receive a tensor of the shape, dtype and device of `like`, and go on."""
        return Posted(self, like, source)

    def bcast_(self, x: Tensor, root: int) -> Tensor:
        """Overwrite `x` on all ranks by that of `root`."""
        return x

    def agree(self, value: int) -> int:
        """The largest of all ranks' values."""
        return value

    def allgather(self, row: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        """Concatenate the ranks' arrays along the first axis, in rank order; rank r brings counts[r] rows."""
        return row.copy()


class MPIComm(Comm):
    """Ranks of an MPI communicator, which is duplicated so that messages never meet the user's."""

    def __init__(self, comm: Any) -> None:
        from mpi4py import MPI

        self.mpi, self._last = comm.Dup(), comm.Dup()
        self.rank, self.size = self.mpi.Get_rank(), self.mpi.Get_size()
        local = self.mpi.Split_type(MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = local.Get_rank(), local.Get_size()
        local.Free()
        # More ranks than cores: a rank that spins in MPI would hold the core that its peer needs.
        self._patient = self.local_size > len(os.sched_getaffinity(0))
        self._cuda_aware = bool(mpi_details()["cuda_aware"])
        self._outbox = Outbox(self._cuda_aware)

    def _wait(self, request: Any, why: str) -> None:
        with phase(self, why):
            tries = 0
            while self._patient and not request.Test():
                tries += 1
                time.sleep(0 if tries < 200 else 2e-5)
            request.Wait()  # at once where it is done

    def __reduce__(self) -> tuple[type[Comm], tuple[()]]:
        """One rank becomes the serial twin; of more no file can hold more than a part."""
        if self.size > 1:
            raise InputError(
                f"pickle: layers of {self.size} ranks given, of which this one holds a part; "
                "trunk.gather_state_dict(), trunk.as_sequential() or lpnet.checkpoint.save allowed"
            )
        return Comm, ()

    def handle(self) -> Any:
        return self.mpi

    def barrier(self, idle: bool = False) -> None:
        request = self.mpi.Ibarrier()
        while idle and not request.Test():
            time.sleep(1e-4)
        if not idle:
            self._wait(request, "barrier")

    def all_here(self, seconds: float) -> bool:
        request, until = self._last.Ibarrier(), time.monotonic() + seconds
        while not request.Test():
            if time.monotonic() > until:
                return False
            time.sleep(1e-3)
        return True

    def abort(self, code: int) -> None:
        self.mpi.Abort(code)

    def send(self, x: Tensor, to: int) -> None:
        if self.observer is not None:
            self.observer.sent(to, x.numel() * x.element_size())
        self._outbox.put(x, lambda buffer: self.mpi.Isend(buffer, to))

    def recv(self, like: Tensor, source: int) -> Tensor:
        return self.post(like, source).wait()

    def post(self, like: Tensor, source: int) -> Posted:
        buffer = buffer_for(like, self._cuda_aware)
        settle(buffer)
        return Incoming(self.mpi.Irecv(readable(buffer), source), partial(self._arrive, source), buffer, like.device)

    def _arrive(self, source: int, request: Any) -> None:
        self._wait(request, "wait")
        if self.observer is not None:
            self.observer.received(source)

    def bcast_(self, x: Tensor, root: int) -> Tensor:
        held = in_reach(x.detach().contiguous(), self._cuda_aware, self.rank == root)
        self._wait(self.mpi.Ibcast(readable(held), root), "broadcast")
        if held.data_ptr() != x.data_ptr():
            x.detach().copy_(held, non_blocking=True)
        return x

    def agree(self, value: int) -> int:
        return int(self.allgather(np.array([value], dtype=np.int64), [1] * self.size).max())

    def allgather(self, row: np.ndarray, counts: Sequence[int]) -> np.ndarray:
        width = int(np.prod(row.shape[1:], dtype=np.int64))
        out = np.empty((sum(counts), *row.shape[1:]), row.dtype)
        sizes = [count * width for count in counts]
        self._wait(self.mpi.Iallgatherv(np.ascontiguousarray(row), [out, sizes]), "gather")
        return out


def mpi_details() -> dict[str, Any]:
    """The MPI library (initialises MPI): name, version, standard, and whether it reads GPU memory."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise InputError(
            f"MPI: no library that mpi4py can load ({str(error).splitlines()[0]}); "
            "pip install 'lpnet[mpi]' brings one, or load the module of your cluster"
        ) from error
    vendor, version = MPI.get_vendor()
    library = library_of(vendor, MPI.Get_library_version())
    try:
        cuda_aware = is_cuda_aware(library, queried(MPI.__file__), os.environ)
    except ValueError as error:
        raise InputError(str(error)) from None
    return {
        "name": vendor,
        "version": ".".join(map(str, version)),
        "standard": "{}.{}".format(*MPI.Get_version()),
        "library": MPI.Get_library_version().splitlines()[0].strip(),
        "cuda_aware": cuda_aware,
    }


_WORLD: Comm | None = None


def world() -> Comm:
    """All ranks under an MPI launcher, the serial twin otherwise; made once."""
    global _WORLD
    if _WORLD is None:
        _WORLD = _mpi_world() if launcher() else Comm()
    return _WORLD


def started() -> Comm:
    """The world if `world` was called before, else the serial twin; starts nothing."""
    return _WORLD or Comm()


def _mpi_world() -> Comm:
    mpi_details()
    from mpi4py import MPI

    return MPIComm(MPI.COMM_WORLD)


def as_comm(comm: Any) -> Comm:
    """A `Comm` from None (the world), a `Comm`, or an mpi4py communicator.

    Raises:
        InputError: anything else.
    """
    if comm is None:
        return world()
    if isinstance(comm, Comm):
        return comm
    if isinstance(comm, type) or not hasattr(comm, "Dup"):
        raise InputError(f"comm: {comm!r} given, an mpi4py communicator, an lpnet.slab.Comm or None allowed")
    return MPIComm(comm)


class Slab:
    """The layers of one rank among N, and sums over layers that do not depend on the number of ranks."""

    def __init__(self, layers: int, comm: Comm, unit: int = 1) -> None:
        self.layers, self.comm = layers, comm
        self.starts = partition(layers, comm.size, unit)
        self.lo, self.hi = self.starts[comm.rank], self.starts[comm.rank + 1]
        self.counts = [b - a for a, b in pairwise(self.starts)]

    @property
    def first(self) -> int:
        """The rank that owns layer 0."""
        return next(r for r, n in enumerate(self.counts) if n)

    @property
    def last(self) -> int:
        """The rank that owns layer N - 1."""
        return max(r for r, n in enumerate(self.counts) if n)

    @property
    def beside(self) -> tuple[int | None, int | None]:
        """The ranks of the layers before and behind this rank's, where it has any, and they exist."""
        busy = [r for r, n in enumerate(self.counts) if n]
        if self.comm.rank not in busy:
            return None, None
        place = busy.index(self.comm.rank)
        return (busy[place - 1] if place else None), (busy[place + 1] if place + 1 < len(busy) else None)

    def owner(self, layer: int) -> int:
        """The rank that owns this layer."""
        return bisect_right(self.starts, layer) - 1

    def gather(self, local: Tensor) -> Tensor:
        """All layers of a stacked tensor, (n, ...) -> (N, ...), on every rank; collective."""
        rows = local.detach().cpu().contiguous().numpy()
        return torch.from_numpy(self.comm.allgather(rows, self.counts)).to(local.device)

    def to_columns(self, local: Tensor) -> Tensor:
        """This rank's share of the columns, with all layers: (n, c) -> (N, c_r); collective."""
        cuts, comm = partition(local.shape[1], self.comm.size), self.comm
        for r, (a, b) in enumerate(pairwise(cuts)):
            if r != comm.rank and len(local) and b > a:
                comm.send(local[:, a:b], r)
        a, b = cuts[comm.rank], cuts[comm.rank + 1]
        parts = [local[:, a:b] if r == comm.rank else local.new_empty(n, b - a) for r, n in enumerate(self.counts)]
        for r, part in enumerate(parts):
            if r != comm.rank and part.numel():
                parts[r] = comm.recv(part, r)
        return torch.cat(parts)

    def to_layers(self, columns: Tensor, c: int) -> Tensor:
        """The inverse of `to_columns`: (N, c_r) -> (n, c) of c columns in all; collective."""
        cuts, comm = partition(c, self.comm.size), self.comm
        mine = columns[self.lo : self.hi]
        for r, (a, b) in enumerate(pairwise(self.starts)):
            if r != comm.rank and b > a and columns.shape[1]:
                comm.send(columns[a:b], r)
        widths = [b - a for a, b in pairwise(cuts)]
        parts = [mine if r == comm.rank else mine.new_empty(len(mine), w) for r, w in enumerate(widths)]
        for r, part in enumerate(parts):
            if r != comm.rank and part.numel():
                parts[r] = comm.recv(part, r)
        return torch.cat(parts, dim=1)

    def sums(self, per_layer: Tensor) -> Tensor:
        """Sum (n, k) over all layers in float64 and in layer order: (k,), the same bits for every P; collective."""
        rows = per_layer.detach().to("cpu", torch.float64).numpy()
        total = np.zeros(rows.shape[1:])
        for row in self.comm.allgather(rows, self.counts):
            total = total + row
        return torch.from_numpy(total)
