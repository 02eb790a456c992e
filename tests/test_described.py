"""Built-in dynamics that are no longer what they describe are treated as a user's module, in everything."""

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gradients import WIDTH, assert_gradients, data, user_trunk
from reference import ALL_KINDS, F64, dynamics, error
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import lpnet
from lpnet import InputError
from lpnet.dryrun import Subject
from lpnet.dynamics import Antisymmetric, Dense, Hamiltonian, SecondOrder, TwoLayer, described
from lpnet.steppers import Leapfrog, Verlet


class Damped(Dense):
    def forward(self, y: Tensor) -> Tensor:
        return super().forward(y) - y


class Sine(Antisymmetric):
    def sigma(self, u: Tensor) -> Tensor:
        return torch.sin(u)


class Symmetric(Dense):
    def _matrix(self, K: Tensor) -> Tensor:
        return K + K.T


class Slower(Hamiltonian):
    def drift(self, z: Tensor) -> Tensor:
        return 0.5 * super().drift(z)


class Stiff(SecondOrder):
    def kick(self, y: Tensor) -> Tensor:
        return super().kick(y) - y


class Mixin:
    def forward(self, y: Tensor) -> Tensor:
        return 2.0 * super().forward(y)  # type: ignore[misc]


class Doubled(Mixin, TwoLayer):
    pass


class Scaled(Dense):
    """Weights of its own, which are not zero, beside those of `Dense`."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.inner = nn.Linear(width, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.scale * super().forward(y) + self.inner(y)


class Fixed(Dense):
    """b is no parameter."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        del self.b
        self.register_buffer("b", torch.linspace(0.0, 1.0, width))


class Renamed(Dense):
    """The same map, and a start of its own."""

    def draw(self, generator: torch.Generator) -> dict[str, Tensor]:
        return {name: value + 0.5 for name, value in super().draw(generator).items()}

    def extra_repr(self) -> str:
        return "renamed"


class Written(Dense):
    """Says what it computes."""

    def forward(self, y: Tensor) -> Tensor:
        return self.sigma(y @ (2.0 * self.K).T + self.b)

    def dense(self, theta: dict[str, Tensor]) -> Any:
        return super().dense({"K": 2.0 * theta["K"], "b": theta["b"]})


def with_hook(name: str, hook: Callable[..., Any], made: type[Any] = Dense) -> nn.Module:
    one = made(WIDTH)
    getattr(one, f"register_{name}_hook")(hook)
    return one


def patched() -> nn.Module:
    one = Dense(WIDTH)
    one.forward = types.MethodType(lambda self, y: torch.sin(y @ self.K.T + self.b), one)  # type: ignore[method-assign]
    return one


def tied() -> nn.Module:
    one = TwoLayer(WIDTH)
    one.K2 = one.K1
    return one


def without_bias() -> nn.Module:
    one = Dense(WIDTH)
    one.b = None  # type: ignore[assignment]
    return one


CHANGED: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "forward": (lambda: Damped(WIDTH), None),
    "sigma": (lambda: Sine(WIDTH), None),
    "matrix": (lambda: Symmetric(WIDTH), None),
    "drift": (lambda: Slower(WIDTH), Verlet()),
    "kick": (lambda: Stiff(WIDTH), Leapfrog()),
    "mixin": (lambda: Doubled(WIDTH), None),
    "more weights": (lambda: Scaled(WIDTH), None),
    "fixed bias": (lambda: Fixed(WIDTH), None),
    "no bias": (without_bias, None),
    "tied": (tied, None),
    "method of the object": (patched, None),
    "forward hook": (lambda: with_hook("forward", lambda m, args, out: 2 * out), None),
    "forward pre-hook": (lambda: with_hook("forward_pre", lambda m, args: (2 * args[0],)), None),
    "backward hook": (lambda: with_hook("full_backward", lambda m, given, out: (2 * given[0],)), None),
    "parametrization": (lambda: weight_norm(Dense(WIDTH), "K"), None),
}


@pytest.mark.parametrize("how", ["serial", "two levels"])
@pytest.mark.parametrize("init", ["constant", "random"])
@pytest.mark.parametrize("case", CHANGED)
def test_what_is_changed_is_what_is_computed(case: str, init: str, how: str) -> None:
    """Output and gradients are those of the plain copy, from weights that are not zero."""
    make, stepper = CHANGED[case]
    one = make()
    assert not described(one)
    trunk = user_trunk(one, how=how, stepper=stepper, init=init)
    assert all(bool(p.any()) for name, p in trunk.theta.items() if p.ndim > 2), case
    assert_gradients(trunk)


@pytest.mark.parametrize("case", ["drift", "kick"])
def test_reversal_of_changed_dynamics(case: str) -> None:
    make, stepper = CHANGED[case]
    trunk = user_trunk(make(), stepper=stepper, store="reverse")
    assert_gradients(trunk)
    assert trunk.info.round_trip is not None
    assert trunk.info.round_trip < 1e-12


@pytest.mark.filterwarnings("error:lpnet")
def test_the_rest_sees_a_users_module() -> None:
    """Stability foretells nothing, linearised solves, checks and dry runs take the module as it is."""
    trunk, (y, c) = user_trunk(Sine(WIDTH)), data()
    with torch.no_grad():
        trunk.theta["K"].mul_(100)  # a flow that only turns, which Euler makes grow
    trunk(y)
    plain, linear = user_trunk(Damped(WIDTH)).as_sequential(), user_trunk(Damped(WIDTH)).linearize(y)
    assert error(linear.tangent(c, None), torch.func.jvp(plain, (y,), (c,))[1].detach()) < 1e-12
    for one in (Damped(WIDTH), Scaled(WIDTH)):
        report = lpnet.check(one)
        assert report.ok, str(report)
    assert not Subject.of(trunk, (5, WIDTH)).fast
    assert lpnet.plan(trunk, y, 0.1).describe()


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_unchanged_ones_stay_fast(kind: str) -> None:
    one = dynamics(kind)
    assert described(one)
    assert described(copy.deepcopy(one))


@pytest.mark.parametrize("made", [Renamed, Written])
def test_subclasses_that_keep_or_describe_the_map_stay_fast(made: type[Dense]) -> None:
    assert described(made(WIDTH))
    trunk = user_trunk(made(WIDTH))
    assert_gradients(trunk)
    assert bool(trunk.theta["b"].any()) == (made is Renamed)


def test_what_a_subclass_starts_from() -> None:
    """Matrices that are zero are drawn as those of `Dense`, what was given stays."""
    own, built_in = user_trunk(Scaled(WIDTH), init="constant"), user_trunk(Dense(WIDTH), init="constant")
    assert torch.equal(own.theta["K"], built_in.theta["K"])
    assert torch.equal(own.theta["scale"], torch.tensor(0.7).to(F64).expand(13))
    random = user_trunk(Damped(WIDTH), init="random")
    assert torch.equal(random.theta["K"], user_trunk(Dense(WIDTH), init="random").theta["K"])


def test_a_partition_is_needed_by_subclasses_too() -> None:
    with pytest.raises(InputError, match=r"^dynamics: Damped given with stepper Verlet"):
        user_trunk(Damped(WIDTH), stepper=Verlet())
