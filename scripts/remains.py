"""What a run leaves: metrics, checkpoints, results; and how far two of them are apart."""

import json
import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lpnet.checkpoint.store import FOLDER, Checkpoints, steps
from lpnet.folders import PART
from lpnet.rundir import METRICS, MODEL, SUMMARY
from lpnet.slab import Comm

UNLIKE = {"seconds", "wall_s", "ranks", "resumed"}
"""What differs between equal runs."""


class Folder:
    """What a run has left in its folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.metrics, self.summary = path, path / METRICS, path / SUMMARY

    @property
    def version(self) -> int:
        """Changes when the metrics are written anew; 0: there are none."""
        try:
            return self.metrics.stat().st_ino
        except FileNotFoundError:
            return 0

    def step(self) -> int:
        """Of the last whole line of the metrics; 0: there is none."""
        try:
            with self.metrics.open("rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - 2**15))
                lines = file.read().split(b"\n")[:-1]
        except FileNotFoundError:
            return 0
        return int(json.loads(lines[-1])["step"]) if lines else 0

    def records(self) -> list[dict[str, Any]]:
        """All lines of the metrics."""
        return [json.loads(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()]

    def checkpoints(self) -> dict[int, Path]:
        """Files by their steps, oldest first."""
        store = Checkpoints(Comm(), self.path / FOLDER, keep=1)
        try:
            return {step: store.path(step) for step in steps(store.folder)}
        except FileNotFoundError:  # there is no folder yet
            return {}

    def writes(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.path / FOLDER).glob(f"*{PART}"))

    def files(self) -> set[str]:
        """Names of all files, but for checkpoints that are not the newest."""
        old = set(list(self.checkpoints().values())[:-1])
        return {str(path.relative_to(self.path)) for path in self.path.rglob("*") if path not in old}

    def parts(self) -> set[tuple[Path, int]]:
        """Temporary files, with what tells one from another of the same name."""
        found = set()
        for path in self.path.rglob(f"*{PART}"):
            try:
                found.add((path, path.stat().st_ino))
            except FileNotFoundError:
                continue
        return found

    def results(self) -> dict[str, Any]:
        """The summary, and the weights of the model."""
        found = {"summary": json.loads(self.summary.read_text(encoding="utf-8"))}
        with h5py.File(self.path / MODEL) as file:
            file.visititems(lambda name, item: found.update({name: item[()]} if isinstance(item, h5py.Dataset) else {}))
        return found


def difference(a: Any, b: Any) -> float:
    """Largest relative difference of the numbers in both, infinite where anything else differs."""
    if isinstance(a, dict) and isinstance(b, dict):
        keys = (a.keys() | b.keys()) - UNLIKE
        return max((difference(a.get(key), b.get(key)) for key in keys), default=0.0)
    if isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        return max((difference(x, y) for x, y in zip(a, b, strict=True)), default=0.0)
    if isinstance(a, float) and isinstance(b, float):
        return abs(a - b) / max(abs(a), abs(b), 1e-3)
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype.kind == "f":
        return difference(a.tolist(), b.tolist())
    return 0.0 if np.array_equal(a, b) else math.inf
