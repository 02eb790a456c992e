"""What a command line of ``lpnet.train`` asks for beside a configuration: a dry run, or to go on with a run."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from lpnet.config import Config
from lpnet.errors import InputError, shown

CHANGEABLE = (
    *(
        f"run.{key}"
        for key in ("device", "threads", "progress", "profile", "profile_steps", "checkpoint_every", "keep", "stall")
    ),
    "training.on_nan",
)
"""Keys that may be given anew for a run that goes on: those that change none of its numbers which are finite."""


class Trial(NamedTuple):
    """A dry run: on how many ranks, and over which interconnect; None: as many as there are."""

    ranks: int | None
    fabric: str


class Resume(NamedTuple):
    """To go on with the run of a folder: what is to change, "run.threads" -> value."""

    folder: str
    changes: dict[str, Any]

    def of(self, config: Config) -> Config:
        """The configuration of the run with these changes.

        Raises:
            InputError: a value is impossible.
        """
        for key, value in self.changes.items():
            section, _, name = key.partition(".")
            config = replace(config, **{section: replace(getattr(config, section), **{name: value})})
        return config


def trial_of(given: dict[str, Any]) -> Trial | None:
    """The dry run that is asked for, whose keys are taken out of what was given; None: none."""
    dry = given.pop("dry_run", False)
    ranks, fabric = given.pop("ranks", None), given.pop("fabric", None)
    for key, value in (("ranks", ranks), ("fabric", fabric)):
        if value is not None and not dry:
            raise InputError(f"--{key}: {shown(value)} given without --dry-run, only with it allowed")
    if ranks is not None and not re.fullmatch(r"\d{1,9}", ranks):
        raise InputError(f"--ranks: {shown(ranks)} given, a whole number allowed")
    return Trial(None if ranks is None else int(ranks), fabric or "default") if dry else None


def resume_of(given: Mapping[str, Any]) -> Resume | None:
    """The run that is to go on; None: none.

    Raises:
        InputError: something is given with it that would change its numbers, or a value is impossible.
    """
    folder = given.get("resume")
    if folder is None:
        return None
    if not folder.strip():
        raise InputError(f"--resume: {shown(folder)} given, the folder of a run allowed")
    changes = {key: value for key, value in given.items() if key != "resume" and (key, value) != ("preset", None)}
    for key, value in changes.items():
        if key not in CHANGEABLE:
            name = key if key == "preset" or "." in key else f"--{key.replace('_', '-')}"
            what = f"{shown(value)} given with --resume"
            raise InputError(f"{name}: {what}, only {', '.join(CHANGEABLE)} allowed (all else is as the run began)")
    resume = Resume(folder, changes)
    resume.of(Config())  # of a run that is finished, nothing else would look at them
    return resume
