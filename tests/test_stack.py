"""Layers of a user's own: any `nn.Module` that maps y to dy/dt, and what is refused."""

from typing import Any

import pytest
import torch
from gradients import WIDTH, assert_gradients, data, gradients, user_trunk
from reference import F64, error, normal
from torch import Tensor, nn

import lpnet
from lpnet import MGRIT, InputError
from lpnet.stack import Stack, generator, seed_of
from lpnet.steppers import Euler, Verlet


class Nested(nn.Module):
    """Names with dots, a fixed buffer, a scalar weight, one weight used twice and one not used at all."""

    def __init__(self) -> None:
        super().__init__()
        inner = nn.Sequential(nn.Tanh(), nn.Linear(6, WIDTH))
        self.body = nn.Sequential(nn.Linear(WIDTH, 6), inner, nn.LayerNorm(WIDTH))
        self.scale = nn.Parameter(torch.tensor(0.7))
        self.unused = nn.Parameter(torch.ones(3))
        self.tied = nn.Linear(6, WIDTH)
        self.tied.weight = self.body[1][1].weight
        self.register_buffer("shift", torch.tensor([0.1, 0.2, 0.3, 0.4]))

    def forward(self, y: Tensor) -> Tensor:
        return self.scale * self.body(y + self.shift) + 0.1 * self.tied(torch.sin(self.body[0](y)))


class Partitioned(nn.Module):
    """kick and drift of different forms."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def kick(self, y: Tensor) -> Tensor:
        return -torch.sin(self.a(y))

    def drift(self, z: Tensor) -> Tensor:
        return torch.tanh(self.b(z))


@pytest.mark.parametrize("how", ["serial", "micro-batches", "two levels", "three levels", "mixed"])
@pytest.mark.parametrize(
    ("module", "stepper"), [(Nested, Euler()), (Partitioned, Verlet()), (Partitioned, Verlet("zero"))]
)
def test_user_modules(module: type[nn.Module], stepper: Any, how: str) -> None:
    trunk = user_trunk(module(), how=how, stepper=stepper)
    y, c = data()
    if module is Partitioned:
        assert_gradients(trunk)
        return
    out, y_bar = gradients(trunk, y, c)
    plain = trunk.as_sequential()
    expected, expected_bar = gradients(plain, y, c)
    assert error(out, expected) < 1e-10
    assert error(y_bar, expected_bar) < 1e-10
    assert not trunk.get_parameter("unused").grad.any()
    for name, p in trunk.theta.items():
        if name != "unused":
            assert error(p.grad, torch.stack([m.dynamics.get_parameter(name).grad for m in plain])) < 1e-10, name


def test_names_are_those_of_the_module() -> None:
    trunk, one = user_trunk(Nested()), Nested()
    assert list(trunk.theta) == [n for n, _ in one.named_parameters()] == [n for n, _ in trunk.named_parameters()]
    for name, p in one.named_parameters():
        assert trunk.get_parameter(name).shape == (13, *p.shape)
        assert trunk.get_parameter(name).dtype == F64


def test_any_number_of_feature_dimensions() -> None:
    trunk = user_trunk(nn.Conv2d(2, 2, 3, padding=1), how="two levels")
    y = normal(3, 2, 5, 4).requires_grad_()
    out = trunk(y)
    out.square().sum().backward()
    leaf = y.detach().clone().requires_grad_()
    expected = trunk.as_sequential()(leaf)
    expected.square().sum().backward()
    assert error(out.detach(), expected.detach()) < 1e-12
    assert error(y.grad, leaf.grad) < 1e-10


def test_initial_weights_of_a_user_module() -> None:
    """Constant: the module's own; random: from (seed, layer), leaving the global generator alone."""
    one = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    trunk = user_trunk(one, init="constant")
    assert all(torch.equal(w, one[0].weight.double()) for w in trunk.get_parameter("0.weight"))
    state = torch.get_rng_state()
    random, longer, other = user_trunk(one), user_trunk(one, layers=20), user_trunk(one, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    W = random.get_parameter("0.weight")
    assert torch.equal(W, longer.get_parameter("0.weight")[:13])
    assert not torch.equal(W, other.get_parameter("0.weight"))
    assert not torch.equal(W[0], W[1])
    with torch.no_grad():
        one[0].weight.zero_()  # a copy is kept
    assert trunk.get_parameter("0.weight").any()

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.k = nn.Parameter(torch.ones(WIDTH))

        def forward(self, y: Tensor) -> Tensor:
            return self.k * y

    with pytest.raises(InputError, match=r"^init: .*reset_parameters"):
        user_trunk(Bare())
    assert user_trunk(Bare(), init="constant").get_parameter("k").shape == (13, WIDTH)


def test_seeds_are_generators_of_their_own() -> None:
    state = torch.get_rng_state()
    keys = [(a, b, c) for a in range(4) for b in range(4) for c in range(4)]
    seeds = [seed_of(*key) for key in keys]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)
    assert torch.equal(torch.rand(3, generator=generator(1, 2)), torch.rand(3, generator=generator(1, 2)))
    assert torch.equal(torch.get_rng_state(), state)


def test_frozen_weights_of_a_user_module_stay_frozen() -> None:
    one = nn.Linear(WIDTH, WIDTH)
    one.bias.requires_grad_(False)
    trunk = user_trunk(one)
    assert {n: p.requires_grad for n, p in trunk.named_parameters()} == {"weight": True, "bias": False}


def test_modules_without_weights_are_refused() -> None:
    with pytest.raises(InputError, match=r"^dynamics: Tanh given, .*parameters"):
        user_trunk(nn.Tanh(), init="constant")


# ---- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "module",
    [nn.BatchNorm1d(WIDTH), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH)), nn.SyncBatchNorm(WIDTH)],
)
def test_batch_normalisation_is_refused(module: nn.Module) -> None:
    with pytest.raises(InputError, match=r"^dynamics: \w*BatchNorm\w* .*LayerNorm"):
        user_trunk(module, init="constant")


@pytest.mark.parametrize("module", [nn.Linear(WIDTH, WIDTH + 1), nn.Flatten(0), nn.GRU(WIDTH, WIDTH)])
def test_modules_that_change_the_shape_are_refused(module: nn.Module) -> None:
    with pytest.raises(InputError, match=r"^dynamics: .*the same shape is needed$"):
        user_trunk(nn.Sequential(nn.Linear(WIDTH, WIDTH), module), init="constant")(data()[0])


def test_modules_that_change_their_buffers_are_refused() -> None:
    class Running(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(WIDTH, WIDTH)
            self.register_buffer("mean", torch.zeros(WIDTH))

        def forward(self, y: Tensor) -> Tensor:
            self.mean.mul_(0.9).add_(0.1 * y.detach().mean(0))
            return self.inner(y - self.mean)

    with pytest.raises(InputError, match=r"^dynamics: .*buffers"):
        user_trunk(Running())(data()[0])


def test_all_terms_are_looked_at_once_in_each_mode() -> None:
    """Also those behind one that is random, in a mode that comes later."""

    class Changing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.calls = nn.Linear(WIDTH, WIDTH), 0

        def kick(self, y: Tensor) -> Tensor:
            self.calls += 1
            return torch.dropout(self.a(y), 0.5, self.training)

        def drift(self, z: Tensor) -> Tensor:
            return z.zero_() if self.training else torch.sin(z)

    stack, (y, _) = Stack(Changing().double().eval(), Verlet()), data()
    for _ in range(2):
        stack.check_module(y)
        assert (stack.module.calls, stack.is_random) == (1, False)
    stack.module.train()
    with pytest.raises(InputError, match="changes its input in place"):
        stack.check_module(y)


@pytest.mark.parametrize(
    ("module", "stepper"),
    [
        (nn.Linear(WIDTH, WIDTH), Verlet()),
        (lpnet.dynamics.Dense(WIDTH), Verlet()),
        (lpnet.dynamics.Hamiltonian(WIDTH), Euler()),
        (Partitioned(), Euler()),
    ],
)
def test_dynamics_and_steppers_that_do_not_fit(module: nn.Module, stepper: Any) -> None:
    with pytest.raises(InputError, match=rf"^dynamics: {type(module).__name__} given with stepper .* needs "):
        user_trunk(module, stepper=stepper)


@pytest.mark.parametrize("name", ["h", "T", "layers", "forward_solver", "info"])
def test_weights_whose_names_are_taken_are_refused(name: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_parameter(name, nn.Parameter(torch.ones(WIDTH)))

        def forward(self, y: Tensor) -> Tensor:
            return self.get_parameter(name) * y

    with pytest.raises(InputError, match=rf"^dynamics: .*'{name}'"):
        user_trunk(Named(), init="constant")


def test_no_module_is_refused() -> None:
    for given in (torch.tanh, nn.Linear, None):
        with pytest.raises(InputError, match=r"^dynamics: "):
            user_trunk(given)  # type: ignore[arg-type]


def test_solver_of_the_trunk_can_be_exchanged() -> None:
    """The next call uses it."""
    trunk, (y, _) = user_trunk(nn.Linear(WIDTH, WIDTH)), data()
    trunk(y)
    trunk.steer(MGRIT(coarsening=4, cycles=1), trunk.adjoint_solver, None)
    trunk(y)
    assert trunk.info.forward.solver == "mgrit"
