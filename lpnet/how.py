"""What a forward sweep leaves for the adjoint, and which adjoint it is."""

from typing import Literal, NamedTuple, cast, get_args

from lpnet.errors import InputError
from lpnet.steppers import Stepper, is_euler, is_reversible

Store = Literal["all", "cpoints", "reverse"]
Adjoint = Literal["discrete", "continuous"]


class How(NamedTuple):
    """What is kept for the adjoint, and whether the adjoint is the continuous one, discretised on its own."""

    store: Store = "all"
    continuous: bool = False


STORED = How()


def how_of(stepper: Stepper, store: str, gradient: str) -> How:
    """What the stepper can do of this.

    Raises:
        InputError: an unknown name, or what the stepper cannot do.
    """
    name = type(stepper).__name__
    for key, given, names in (("gradient", gradient, get_args(Adjoint)), ("store", store, get_args(Store))):
        if given not in names:
            raise InputError(f"{key}: {given!r} given, one of {', '.join(names)} allowed")
    if gradient == "continuous" and not (stepper.continuous and is_euler(stepper)):
        raise InputError(f"gradient: 'continuous' given with {name}, only 'discrete' allowed (or the stepper Euler)")
    if store == "reverse" and not (stepper.reversible and is_reversible(stepper)):
        raise InputError(
            f"store: 'reverse' given with {name}, which is not reversible; 'all' or 'cpoints' allowed (or the steppers "
            "Verlet and Leapfrog)"
        )
    return How(cast(Store, store), gradient == "continuous")
