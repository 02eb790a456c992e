"""A recording of all ranks, from its begin to the file."""

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lpnet import folders
from lpnet.errors import InputError, shown
from lpnet.launch import together, written
from lpnet.phases import leave, observe, observers
from lpnet.slab import Comm, world
from lpnet.trace.alignment import Alignment, aligned
from lpnet.trace.recorder import Event, Recorder, names
from lpnet.version import __version__
from lpnet.virtual import VirtualComm


class Recording:
    """Of what the ranks of a communicator do, between `begin` and `end`.

    Args:
        path: of the file, which rank 0 writes.
        comm: the ranks, as the trunk has them (`trunk.comm`).
    """

    def __init__(self, path: str | Path, comm: Comm) -> None:
        self.path, self.comm = Path(path), comm
        self._recorder: Recorder | None = None
        self._alignment = Alignment(0.0, 0.0)

    def begin(self) -> None:
        """From now on; collective.

        Raises:
            InputError: the file cannot be written, or these ranks are being recorded already.
        """
        with together(self.comm):
            if any(isinstance(one, Recorder) for one in observers(self.comm)):
                raise InputError("comm: one that is being recorded given, one recording at a time allowed")
            if self.comm.rank == 0:
                folders.check_file(self.path, "path")
        clock: Callable[[], float] = time.perf_counter
        if isinstance(self.comm, VirtualComm):
            clock = _virtual(self.comm)
            self.comm.barrier()
            self._alignment = Alignment(self.comm.latest(), 0.0)
        else:
            self._alignment = aligned(self.comm, clock)
        self._recorder = Recorder(self.comm.rank, clock)
        observe(self.comm, self._recorder)

    def drop(self) -> None:
        """No more of it."""
        leave(self.comm, self._recorder)
        self._recorder = None

    def end(self) -> None:
        """Write the file; collective.

        Raises:
            OutputError: the disk refuses; on all ranks.
        """
        recorder = self._recorder
        self.drop()
        assert recorder is not None
        comm, (origin, error) = self.comm, self._alignment
        events = _gathered(comm, recorder.events(origin))
        worst = float(comm.allgather(np.array([error]), [1] * comm.size).max())
        with written(comm, self.path):
            if comm.rank == 0:
                about = _about(comm) | {"clock_error_us": round(worst * 1e6, 3)}
                title = f"lpnet, {about['time']} time"
                content = {"traceEvents": names(comm.size, title) + events, "otherData": about}
                folders.write_text(self.path, json.dumps(content, separators=(",", ":"), allow_nan=False))


@contextmanager
def recording(path: str | Path, comm: Comm | None = None) -> Iterator[None]:
    """Record what all ranks do inside, as one file for Perfetto (ui.perfetto.dev) or chrome://tracing; collective.

    Args:
        path: of the JSON file.
        comm: the ranks, as the trunk has them (`trunk.comm`); None: the world, which is what a trunk has unless given
            another one. Where it is a `VirtualComm`, times are modelled ones.

    Raises:
        InputError: no such communicator, a file that cannot be written, or a recording inside of another one.
        OutputError: at the end the disk refuses.
    """
    if comm is not None and not isinstance(comm, Comm):
        raise InputError(f"comm: {shown(comm)} given, the comm of a trunk or None allowed")
    if not isinstance(path, str | os.PathLike):
        raise InputError(f"path: {shown(path)} given, the name of a file allowed")
    found = Recording(path, world() if comm is None else comm)
    found.begin()
    try:
        yield
    except BaseException:
        found.drop()  # other ranks may not come to the end
        raise
    found.end()


def _about(comm: Comm) -> dict[str, Any]:
    return {
        "time": "modelled" if isinstance(comm, VirtualComm) else "wall",
        "ranks": comm.size,
        "threads": torch.get_num_threads(),
        "lpnet": __version__,
        "torch": torch.__version__,
    }


def _virtual(comm: VirtualComm) -> Callable[[], float]:
    return lambda: comm.now


def _gathered(comm: Comm, events: list[Event]) -> list[Event]:
    """The events of all ranks, on rank 0; collective."""
    raw = np.frombuffer(json.dumps(events, separators=(",", ":")).encode(), dtype=np.uint8)
    sizes = comm.allgather(np.array([len(raw)]), [1] * comm.size)
    if comm.rank:
        comm.send(torch.from_numpy(raw.copy()), 0)
        return []
    for source in range(1, comm.size):
        row = comm.recv(torch.empty(int(sizes[source]), dtype=torch.uint8), source)
        events = events + json.loads(bytes(row.numpy()))
    return events
