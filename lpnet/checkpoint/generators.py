"""The generators of torch in a checkpoint, those of rank 0 for all.

    generator/cpu, generator/cuda/0, …      their states, bytes
"""

from collections.abc import Callable
from functools import partial

import torch

from lpnet.checkpoint.content import Content
from lpnet.checkpoint.states import taken
from lpnet.checkpoint.stored import Stored
from lpnet.gradient import random_state, set_random_state


def content() -> Content:
    """What they are now."""
    host, devices = random_state()
    return Content(whole={"generator/cpu": host} | {f"generator/cuda/{i}": state for i, state in enumerate(devices)})


def restoring(stored: Stored) -> Callable[[], None]:
    """What sets them, as far as there are GPUs like those before.

    Raises:
        InputError: what is stored is no state of a generator.
    """
    (own, devices), names = random_state(), set(stored.names())
    host = taken(stored, "generator/cpu", own, None)
    try:
        torch.Generator().set_state(host)
    except RuntimeError as error:
        raise stored.unusable(f"generator/cpu: {error}") from None
    kept = [(f"generator/cuda/{i}", now) for i, now in enumerate(devices)]
    found = [taken(stored, name, now, None) if name in names else now for name, now in kept]
    return partial(set_random_state, (host, found))
