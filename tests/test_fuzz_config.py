"""Whatever stands in a configuration or on a command line becomes a `Config`, an answer, or one line of refusal."""

import contextlib
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lpnet.commandline import parse
from lpnet.config import Config
from lpnet.errors import InputError
from lpnet.keys import leaves, sections
from lpnet.launch import Answer

FLAGS = {"preset", "config", "ranks", "help"}
KEYS = sorted({part for key in leaves() for part in key.split(".")} | sections() | FLAGS)
WORDS = ("peaks", "digits", "dense", "verlet", "mgrit", "serial", "adam", "lbfgs", "cosine", "simultaneous", "float64")

key = st.one_of(st.sampled_from(KEYS), st.sampled_from(sorted(leaves())), st.text(max_size=6), st.integers(-3, 3))
leaf = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.integers(), st.floats(), st.sampled_from(WORDS),
    st.text(max_size=8), st.dates(), st.binary(max_size=4),
)  # fmt: skip
tree = st.recursive(leaf, lambda one: st.lists(one, max_size=3) | st.dictionaries(key, one, max_size=3), max_leaves=8)
options = st.sampled_from(sorted(leaves()))
usual: st.SearchStrategy[Any] = st.dictionaries(st.sampled_from(sorted(sections())), st.dictionaries(key, tree))
mixed = st.dictionaries(key, tree, max_size=4)
yaml_text = st.text(alphabet="trunklayes:{}[],&*!?|>-# \n\t\"'0123456789.e~<=%@`\0é", max_size=60)


def outcome(arguments: list[str]) -> object:
    """What becomes of the arguments: a configuration, or what is said instead."""
    try:
        return parse(arguments)
    except (InputError, Answer) as said:
        if isinstance(said, InputError):
            text = str(said)
            assert text.isprintable()
            assert len(text) < 5000
            assert ":" in text
            assert any(word in text for word in ("given", "unknown"))
            assert any(word in text for word in ("allowed", "needed", "did you mean"))
        return said


def of_file(text: str) -> object:
    """What becomes of a file with this text."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with contextlib.chdir(folder):
            return outcome(["--config=c.yaml"])


@pytest.mark.parametrize("values", [usual, mixed], ids=["sections", "anything"])
def test_files_of_values(values: st.SearchStrategy[Any]) -> None:
    @given(values)
    @settings(max_examples=50)
    def run(content: Any) -> None:
        assert isinstance(of_file(yaml.safe_dump(content)), Config | InputError | Answer)

    run()


@given(yaml_text)
@settings(max_examples=60)
def test_files_of_text(text: str) -> None:
    assert isinstance(of_file(text), Config | InputError | Answer)


@given(options, leaf | tree | yaml_text)
@settings(max_examples=100)
def test_values_of_options(name: str, value: Any) -> None:
    text = value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).strip()
    assert isinstance(outcome([f"--{name}={text}"]), Config | InputError | Answer)


@given(st.lists(st.sampled_from(KEYS).map("--{}".format) | st.sampled_from(WORDS) | st.text(max_size=8), max_size=4))
@settings(max_examples=60)
def test_words(words: list[str]) -> None:
    assert isinstance(outcome(words), Config | InputError | Answer)
