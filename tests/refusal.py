"""What every test of bad input asks for: one line that names the key and says what is allowed."""

from collections.abc import Callable

import pytest

from lpnet.errors import InputError


def refused(key: str, words: str, call: Callable[[], object]) -> None:
    """The call raises an `InputError` of one line for ``data.<key>``, with these words in it."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert message.startswith(f"data.{key}: ")
    assert words in message
    assert "allowed" in message
    assert "\n" not in message
