"""What lpnet runs on: versions, MPI, ranks and hosts, threads, devices.

    python -m lpnet.info              one line per fact
    python -m lpnet.info --json       the same as JSON
    mpirun -n 4 python -m lpnet.info  rank 0 speaks for all ranks

Works without MPI too, and then says so.
"""

import argparse
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import numpy as np
import torch

from lpnet import cores, folders, launch, outputs, slab
from lpnet.arguments import Parser
from lpnet.errors import InputError
from lpnet.version import __version__

_PACKAGES = ("torch", "numpy", "h5py", "mpi4py")
# What a launcher says the number of ranks is, whether or not the MPI library understood it.
_SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_NAME_BYTES = 64


def collect() -> dict[str, Any]:
    """Everything that `python -m lpnet.info` prints; collective, the same on every rank but for the devices.

    Returns:
        A dict that JSON can hold: the versions by name, ``mpi`` (see `lpnet.slab.mpi_details`; None where no library
        can be loaded, with the reason in ``mpi_error``), ``launcher``, ``ranks``, ``hosts`` (name -> ranks on it),
        ``cores`` and ``threads`` (of this process), ``devices`` (of this rank), ``dtype``, and ``warnings``.
    """
    mpi, mpi_error = _mpi()
    comm = slab.world() if mpi else slab.Comm()
    return {
        "lpnet": __version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in _PACKAGES},
        "mpi": mpi,
        "mpi_error": mpi_error,
        "launcher": slab.launcher(),
        "ranks": comm.size,
        "hosts": _hosts(comm),
        "cores": len(cores.affinity()),
        "threads": torch.get_num_threads(),
        "devices": _devices(),
        "dtype": str(torch.get_default_dtype()).removeprefix("torch."),
        "warnings": _warnings(comm),
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _mpi() -> tuple[dict[str, Any] | None, str | None]:
    try:
        return slab.mpi_details(), None
    except InputError as error:
        return None, str(error)


def _hosts(comm: slab.Comm) -> dict[str, int]:
    name = platform.node().encode()[:_NAME_BYTES]
    row = np.frombuffer(name.ljust(_NAME_BYTES, b"\0"), dtype=np.uint8)[None]
    names = comm.allgather(row, [1] * comm.size)
    return dict(Counter(bytes(name).rstrip(b"\0").decode(errors="replace") for name in names))


def _devices() -> list[str]:
    cuda = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return [f"cpu {platform.machine()}", *cuda]


def _warnings(comm: slab.Comm) -> list[str]:
    started = next((int(os.environ[key]) for key in _SIZES if os.environ.get(key, "").isdigit()), comm.size)
    if started == comm.size:
        return []
    return [
        f"the launcher started {started} ranks, MPI sees {comm.size}: "
        "mpirun belongs to another MPI than the one that mpi4py loads"
    ]


def as_text(facts: dict[str, Any]) -> str:
    """The facts of `collect` as lines of a name and a value."""
    mpi, reason = facts["mpi"], facts["mpi_error"]
    rows = {name: facts[name] for name in ("lpnet", "python", *_PACKAGES)}
    rows["MPI"] = f"{mpi['name']} {mpi['version']} (standard {mpi['standard']})" if mpi else f"none: {reason}"
    rows["CUDA-aware MPI"] = "yes" if mpi and mpi["cuda_aware"] else "no"
    rows["launcher"] = facts["launcher"] or "none (serial)"
    rows["ranks"] = facts["ranks"]
    rows["hosts"] = ", ".join(f"{name} ({count})" for name, count in facts["hosts"].items())
    rows["cores"] = f"{facts['cores']} available to this process"
    rows["torch threads"] = facts["threads"]
    rows["devices"] = ", ".join(facts["devices"])
    rows["default dtype"] = facts["dtype"]
    lines = [f"{name:<15} {value}" for name, value in rows.items()]
    return "\n".join(lines + [f"warning: {text}" for text in facts["warnings"]])


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m lpnet.info", description="Print what lpnet runs on.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--version", action="store_true", help="print the version of lpnet alone")
    return parser.parse_args(arguments)


def _rank() -> int:
    """This process's rank; 0 where a launcher runs but no MPI can be loaded."""
    try:
        return slab.world().rank
    except InputError:
        return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the facts on rank 0; the exit code: 0, 2 for an unknown argument, 4 if they cannot be written."""
    try:
        options = _parse(arguments)
    except InputError as error:
        return _fail(str(error), launch.BAD_INPUT)
    if options.version:
        text = f"lpnet {__version__}"
    else:
        facts = collect()
        text = json.dumps(facts, indent=2) if options.json else as_text(facts)
    try:
        if _rank() == 0:
            outputs.tell(text)
    except OSError as error:
        return _fail(f"standard output cannot be written ({folders.reason(error)})", launch.UNWRITABLE)
    return launch.DONE


def _fail(why: str, code: int) -> int:
    """Rank 0 says why; the exit code."""
    if _rank() == 0:
        with outputs.lenient():
            print(f"lpnet.info: error: {why}", file=sys.stderr)
    return code


if __name__ == "__main__":
    launch.command(main)
