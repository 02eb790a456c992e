"""The README's library example runs as it stands, and learns what it should."""

import re
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs():
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.S)
    found: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), found)
    assert found["accuracy"] > 0.9
    assert len([line for line in code.splitlines() if line.strip()]) <= 17
