"""What figures depend on: commit, versions, processor."""

import platform
import subprocess
from functools import cache
from pathlib import Path

import numpy as np
import torch

from lpnet.version import __version__


@cache
def origin() -> dict[str, str]:
    """Names and values."""
    return {
        "commit": _commit(),
        "lpnet": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "processor": _processor(),
    }


def _commit() -> str:
    """Of the folder that lpnet is in, "unknown" where it is in no repository."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "unknown"
    return done.stdout.strip() or "unknown"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
