"""The README's library examples run as they stand, and learn what they should."""

import re
from pathlib import Path
from typing import Any

import torch

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_run() -> None:
    code, oneshot, stepper = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    found: dict[str, Any] = {}
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), found)
    assert found["accuracy"] > 0.9
    assert len([line for line in code.splitlines() if line.strip()]) <= 18
    before = found["loss"].item()
    exec(compile(oneshot, "README.md", "exec"), found)
    assert found["done"].loss < before
    assert found["done"].gradient_error < 0.2
    exec(compile(stepper, "README.md", "exec"), found)
    assert found["report"].accepted
    assert found["report"].after < found["report"].before
    assert found["lpnet"].check(found["lpnet"].dynamics.Antisymmetric(width=16), found["Heun"]()).ok
