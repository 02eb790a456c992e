"""Folders that results are written to."""

from pathlib import Path

from lpnet.errors import InputError


def make(path: Path, key: str) -> None:
    """Make the folder that this option names, and see that it can be written.

    Raises:
        InputError: it cannot be made or written to.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        trial = path / ".writable"
        trial.touch()
        trial.unlink()
    except (OSError, ValueError) as error:  # ValueError: a name with a zero byte
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{key}: {str(path)!r} given ({reason}), a folder that can be written allowed") from None
