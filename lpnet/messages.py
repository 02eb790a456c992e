"""Messages on their way: receives that were posted, and buffers of sends that are under way.

A posted receive goes on while the rank computes. A message to be sent is copied once, into a buffer of an earlier
message that has arrived where there is one, so that its tensor may be changed at once. Tensors that MPI cannot read are
copied into pinned memory of the host. Knows requests, which can be waited for or tested, and no MPI.
"""

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

FREE, KINDS = 4, 16
"""At most so many buffers of a kind, and kinds of them, are kept for messages to come."""

_Kind = tuple[torch.Size, torch.dtype, torch.device]


class Receiver(Protocol):
    """What receives."""

    def recv(self, like: Tensor, source: int) -> Tensor: ...


class Channel(Receiver, Protocol):
    """What solvers need of a communicator."""

    def send(self, x: Tensor, to: int) -> None: ...
    def post(self, like: Tensor, source: int) -> "Posted": ...


class Posted:
    """A receive that was posted; this one begins when it is waited for."""

    def __init__(self, comm: Receiver, like: Tensor, source: int) -> None:
        self._comm, self._like, self._source = comm, like, source

    def wait(self) -> Tensor:
        """The tensor, as soon as it is there; those from one rank are waited for in the order of their posts."""
        return self._comm.recv(self._like, self._source)


class Incoming(Posted):
    """A receive that is under way into a buffer, for a tensor on this device."""

    def __init__(self, request: Any, wait: Callable[[Any], None], buffer: Tensor, device: torch.device) -> None:
        self._request, self._until, self._buffer, self._device = request, wait, buffer, device

    def wait(self) -> Tensor:
        self._until(self._request)
        return self._buffer.to(self._device, non_blocking=True)


def readable(buffer: Tensor) -> Any:
    """What MPI reads from and writes to."""
    return buffer if buffer.is_cuda else buffer.numpy()


def is_staged(x: Tensor, cuda_aware: bool) -> bool:
    """Whether messages for this tensor go through memory of the host."""
    return x.is_cuda and not cuda_aware


def buffer_for(x: Tensor, cuda_aware: bool) -> Tensor:
    """Contiguous memory that MPI can read, for a tensor like x.

    Pinned memory is torch's, which keeps what was given back, and lends it again as soon as no copy is under way.
    """
    staged = is_staged(x, cuda_aware)
    device = "cpu" if staged else x.device
    return torch.empty(x.shape, dtype=x.dtype, device=device, pin_memory=staged and x.is_cuda)


def in_reach(x: Tensor, cuda_aware: bool, filled: bool) -> Tensor:
    """A contiguous tensor itself where MPI can read it, else memory of the host; `filled`: with the same values."""
    if not is_staged(x, cuda_aware):
        settle(x)
        return x
    buffer = buffer_for(x, cuda_aware)
    return buffer.copy_(x) if filled else buffer


def settle(x: Tensor) -> None:
    """Nothing that the GPU has still to do touches this memory."""
    if x.is_cuda:
        torch.cuda.current_stream(x.device).synchronize()


class Outbox:
    """Sends under way, and the buffers of those that have arrived."""

    def __init__(self, cuda_aware: bool) -> None:
        self._cuda_aware = cuda_aware
        self._going: list[tuple[Any, _Kind, Tensor]] = []
        self._free: dict[_Kind, list[Tensor]] = {}

    def put(self, x: Tensor, begin: Callable[[Any], Any]) -> None:
        """Copy a tensor and begin to send the copy; `begin` takes what MPI reads and returns the request."""
        self._collect()
        kind = (x.shape, x.dtype, x.device)
        free = self._free.get(kind)
        with torch.inference_mode(False):  # whose tensors would be of no use outside it
            buffer = free.pop() if free else buffer_for(x, self._cuda_aware)
        buffer.copy_(x.detach())
        settle(buffer)
        self._going.append((begin(readable(buffer)), kind, buffer))

    def _collect(self) -> None:
        going: list[tuple[Any, _Kind, Tensor]] = []
        for message in self._going:
            request, kind, buffer = message
            if not request.Test():
                going.append(message)
            elif len(self._free.setdefault(kind, [])) < FREE:
                self._free[kind].append(buffer)
        self._going = going
        if len(self._free) > KINDS:
            self._free.clear()
