"""Which MPI libraries are taken to read the memory of GPUs."""

import ctypes.util
from pathlib import Path

import pytest

from lpnet.cuda_aware import is_cuda_aware, library_of, queried


@pytest.mark.parametrize(
    ("library", "says", "environment", "expected"),
    [
        ("Open MPI", True, {}, True),
        ("Open MPI", False, {}, False),
        ("Open MPI", None, {"OMPI_MCA_opal_cuda_support": "true"}, False),  # what was wished for, not what was built
        ("MPICH", True, {}, True),
        ("MPICH", True, {"MPIR_CVAR_ENABLE_GPU": "0"}, False),
        ("MPICH", False, {"MPICH_GPU_SUPPORT_ENABLED": "1"}, False),
        ("Cray MPICH", True, {}, False),
        ("Cray MPICH", True, {"MPICH_GPU_SUPPORT_ENABLED": "1"}, True),
        ("Cray MPICH", None, {"MPICH_GPU_SUPPORT_ENABLED": "1"}, True),
        ("MVAPICH2", None, {"MV2_USE_CUDA": "1"}, True),
        ("MVAPICH2", None, {}, False),
        ("Intel MPI", None, {"I_MPI_OFFLOAD": "1"}, True),
        ("Intel MPI", None, {"I_MPI_OFFLOAD": "0"}, False),
        ("another", None, {}, False),
        ("another", True, {}, True),
        ("another", False, {"LPNET_CUDA_AWARE": "1"}, True),
        ("Open MPI", True, {"LPNET_CUDA_AWARE": "0"}, False),
    ],
)
def test_the_library_says_so_and_its_variables_allow_it(
    library: str, says: bool | None, environment: dict[str, str], expected: bool
) -> None:
    assert is_cuda_aware(library, says, environment) == expected


def test_the_override_is_a_number() -> None:
    with pytest.raises(ValueError, match=r"^LPNET_CUDA_AWARE: yes given, 0 or 1 allowed$"):
        is_cuda_aware("MPICH", True, {"LPNET_CUDA_AWARE": "yes"})


def test_cray_calls_itself_mpich() -> None:
    assert library_of("MPICH", "MPI VERSION    : CRAY MPICH version 8.1.25.17 (ANL base 3.4a2)") == "Cray MPICH"
    assert library_of("MPICH", "MPICH Version:      4.2.0") == "MPICH"


def test_a_library_without_the_function_says_nothing(tmp_path: Path) -> None:
    assert queried(ctypes.util.find_library("c") or "libc.so.6") is None
    assert queried(str(tmp_path / "nothing.so")) is None
