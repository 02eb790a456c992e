"""The folder of a gallery: for each experiment NAME.png and NAME.json, and beside the folder a page that shows all."""

import json
import math
import platform
import textwrap
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lpnet import plots
from lpnet.experiments.base import Context, Experiment, Result
from lpnet.experiments.registry import REGISTRY
from lpnet.version import __version__

DIGITS = 6  # of the numbers in the JSON files

_HEAD = """# Gallery

The experiments of the field, reproduced with lpnet. Every picture and every number on this page was made by the command
below it, and `python -m lpnet.experiments all --out {folder}` makes all of them (and this page) anew. The JSON file
beside each picture has its numbers, settings and versions.
"""


def write(folder: Path, experiment: Experiment, context: Context, result: Result, seconds: float) -> None:
    """Write picture and numbers of one experiment."""
    # Writing is no reader of glyphs: a font without one of them is a fault of the picture, so it must not pass.
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Glyph")
        plots.save(result.draw(), folder / f"{experiment.name}.png")
    content = {
        "name": experiment.name,
        "number": experiment.number,
        "title": experiment.title,
        "command": command(experiment.name, context),
        "see": result.see,
        "numbers": result.numbers,
        "settings": result.settings | {"seed": context.seed, "quick": context.quick},
        "ranks": context.comm.size,
        "threads": torch.get_num_threads(),
        "seconds": seconds,
        "lpnet": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
    (folder / f"{experiment.name}.json").write_text(text(plain(content)) + "\n", encoding="utf-8")


def command(name: str, context: Context) -> str:
    """The command that repeats an experiment."""
    launch = f"mpirun -n {context.comm.size} " if context.comm.size > 1 else ""
    seed = f" --seed {context.seed}" if context.seed else ""
    return f"{launch}python -m lpnet.experiments {name}{seed}{' --quick' if context.quick else ''}"


def plain(value: Any) -> Any:
    """As JSON can hold it: arrays and tensors as lists, floats to six digits, None for what is not finite."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def text(value: Any, indent: str = "") -> str:
    """JSON with a line for each entry, and rows of numbers in one line."""
    if isinstance(value, dict) and value:
        rows = [f'{indent} "{key}": {text(item, indent + " ")}' for key, item in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return "[\n" + ",\n".join(f"{indent} {text(item, indent + ' ')}" for item in value) + f"\n{indent}]"
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def page(folder: Path) -> Path | None:
    """Write the page of all experiments of a folder, FOLDER.md; None where there are none."""
    parts = [_HEAD.format(folder=folder.as_posix())]
    for experiment in REGISTRY.values():
        file = folder / f"{experiment.name}.json"
        if file.is_file() and (folder / f"{experiment.name}.png").is_file():
            parts.append(_section(folder.name, json.loads(file.read_text(encoding="utf-8"))))
    if len(parts) == 1:
        return None
    path = folder.with_name(folder.name + ".md")
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _section(folder: str, found: dict[str, Any]) -> str:
    name, title, on = found["name"], found["title"], "1 rank" if found["ranks"] == 1 else f"{found['ranks']} ranks"
    parts = (
        f"## {found['number']}. {title}",
        f"![{title}]({folder}/{name}.png)",
        textwrap.fill(found["see"], 120, break_long_words=False, break_on_hyphens=False),
        f"`{found['command']}` ({found['seconds']:.0f} s on {on}; numbers: [{name}.json]({folder}/{name}.json))",
    )
    return "\n\n".join(parts) + "\n"
