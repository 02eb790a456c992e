"""Whether the MPI library reads and writes the memory of GPUs.

The library itself says so: Open MPI, MPICH and MVAPICH have ``int MPIX_Query_cuda_support(void)``. Some must be told
to, by a variable of the environment, whatever they were built for. LPNET_CUDA_AWARE=0 or 1 overrules all of it.
"""

import ctypes
from collections.abc import Mapping

OVERRIDE = "LPNET_CUDA_AWARE"

_WANTS: dict[str, tuple[tuple[str, str], ...]] = {
    "Cray MPICH": (("MPICH_GPU_SUPPORT_ENABLED", "0"),),
    "MPICH": (("MPIR_CVAR_ENABLE_GPU", "1"),),
    "MVAPICH2": (("MV2_USE_CUDA", "0"),),
    "MVAPICH": (("MVP_USE_CUDA", "0"),),
    "Intel MPI": (("I_MPI_OFFLOAD", "0"),),
}
"""Library -> variables that must be on, each with its value where it is not set."""

_SILENT = {"Cray MPICH", "MVAPICH2", "MVAPICH", "Intel MPI"}
"""Libraries that may lack the function; then their variables decide."""


def library_of(vendor: str, version: str) -> str:
    """Name of the library from mpi4py's name of the vendor and from what the library says of itself."""
    return "Cray MPICH" if "CRAY MPICH" in version.upper() else vendor


def queried(path: str) -> bool | None:
    """What the MPI library behind mpi4py's extension module at this path says; None: it has no such function."""
    try:
        query = ctypes.CDLL(path).MPIX_Query_cuda_support
    except (OSError, AttributeError):
        return None
    query.argtypes, query.restype = [], ctypes.c_int
    return bool(query())


def is_cuda_aware(library: str, says: bool | None, environment: Mapping[str, str]) -> bool:
    """Whether tensors on GPUs may be handed to MPI.

    Args:
        library: see `library_of`.
        says: what it says itself, see `queried`.
        environment: variables of the environment.

    Raises:
        ValueError: LPNET_CUDA_AWARE is neither 0 nor 1; with the message of an `lpnet.errors.InputError`.
    """
    forced = environment.get(OVERRIDE, "")
    if forced not in ("", "0", "1"):
        raise ValueError(f"{OVERRIDE}: {forced} given, 0 or 1 allowed")
    if forced:
        return forced == "1"
    needed = _WANTS.get(library, ())
    on = all(environment.get(key, usual).lower() not in ("", "0", "no", "false") for key, usual in needed)
    return on and (library in _SILENT if says is None else says)
