"""User modules as they are run: dropout, exceptions, and modules that do not do what one expects."""

from typing import ClassVar

import pytest
import torch
from gradients import WIDTH, assert_gradients, data, gradients, user_trunk
from reference import error, normal
from torch import Tensor, nn

import lpnet
from lpnet import InputError, Serial


def dropping(zero: bool = False) -> nn.Module:
    """Inverted dropout inside; with `zero` the last layer starts at zero, as residual branches often do."""
    one = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, WIDTH))
    if zero:
        nn.init.zeros_(one[3].weight)
        nn.init.zeros_(one[3].bias)
    return one


def steps(trunk: lpnet.LayerParallel, count: int = 2) -> list[list[Tensor]]:
    """Output and gradients of so many calls in a row; weights are kept."""
    y, c = data()
    found = []
    for _ in range(count):
        trunk.zero_grad()
        found.append([*gradients(trunk, y, c), *(p.grad.clone() for p in trunk.parameters())])
    return found


@pytest.mark.parametrize("how", ["two levels", "three levels", "samples"])
def test_dropout_masks_are_those_of_the_call(how: str) -> None:
    """Every sweep and the adjoint see the same, so that MGRIT converges to the chain; the next call sees others."""
    exact, iterated = steps(user_trunk(dropping())), steps(user_trunk(dropping(), how=how))
    for one, other in zip(exact, iterated, strict=True):
        for a, b in zip(one, other, strict=True):
            assert error(b, a) < 1e-10
    assert error(exact[1][0], exact[0][0]) > 1e-2
    for one, other in zip(exact, steps(user_trunk(dropping())), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert error(steps(user_trunk(dropping(), seed=1))[0][0], exact[0][0]) > 1e-2


@pytest.mark.parametrize("how", ["serial", "two levels"])
def test_dropout_gradient_is_the_derivative(how: str) -> None:
    """By finite differences at the masks of the first call."""
    y, c = data()
    d = normal(*y.shape, seed=3)
    leaf = y.clone().requires_grad_()
    (user_trunk(dropping(), how=how)(leaf) * c).sum().backward()
    eps = 1e-6
    sides = [(user_trunk(dropping(), how=how)(y + s * eps * d) * c).sum().item() for s in (1, -1)]
    assert leaf.grad is not None
    assert (sides[0] - sides[1]) / (2 * eps) == pytest.approx((leaf.grad * d).sum().item(), rel=1e-6)


@pytest.mark.parametrize("zero", [False, True])
def test_dropout_leaves_the_global_generator_alone(zero: bool) -> None:
    """Also where the module's first output does not show that it is random."""
    trunk, (y, c) = user_trunk(dropping(zero), init="constant"), data()
    gradients(trunk, y, c)
    with torch.no_grad():
        trunk.get_parameter("3.weight").add_(normal(13, WIDTH, 6))
    state = torch.get_rng_state()
    first, second = steps(trunk)
    assert torch.equal(torch.get_rng_state(), state)
    assert error(first[0], second[0]) > 1e-2


@pytest.mark.parametrize("how", ["serial", "two levels"])
def test_dropout_is_off_in_eval(how: str) -> None:
    trunk, (y, _) = user_trunk(dropping(), how=how), data()
    trunk.eval()
    out = trunk(y)
    assert torch.equal(trunk(y), out)
    assert error(out.detach(), trunk.as_sequential().eval()(y).detach()) < 1e-10
    trunk.train()
    assert error(trunk(y).detach(), out.detach()) > 1e-2


def test_evaluation_between_forward_and_backward() -> None:
    """An evaluation in eval mode leaves the masks of a training pass alone that is still to go back."""
    y, c = data()
    expected, between = y.clone().requires_grad_(), y.clone().requires_grad_()
    (user_trunk(dropping())(expected) * c).sum().backward()
    trunk = user_trunk(dropping())
    loss = (trunk(between) * c).sum()
    trunk.eval()
    with torch.no_grad():
        trunk(y)
    loss.backward()
    assert error(between.grad, expected.grad) < 1e-13


def test_dropout_with_parts_of_the_batch() -> None:
    """Each part of the batch has masks of its own; forward and back must be cut alike."""
    y, c = data()
    trunk = user_trunk(dropping(), forward=Serial(2), adjoint=Serial(2))
    rows = y[:1].expand(6, -1).clone()
    out = trunk(rows).detach()
    assert not torch.equal(out[:3], out[3:])
    gradients(trunk, y, c)
    with pytest.raises(InputError, match="micro_batches"):
        user_trunk(dropping(), forward=Serial(2), adjoint=Serial(3))(y)


def test_dynamics_that_do_not_depend_on_the_state() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.b = nn.Parameter(torch.ones(WIDTH))

        def forward(self, y: Tensor) -> Tensor:
            return self.b.expand_as(y)

    assert_gradients(user_trunk(Constant(), how="two levels", init="constant"))


def test_modules_that_overwrite_their_input_are_refused() -> None:
    """Also where this input would stay as it is; in y + h f(y) it is not said which of the two y there is."""
    y = data()[0]
    for given in (y.clone(), y.abs()):
        before, trunk = given.clone(), user_trunk(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(WIDTH, WIDTH)))
        for mode in (torch.enable_grad(), torch.inference_mode()):
            with mode, pytest.raises(InputError, match="dynamics: Sequential given, which changes its input in place"):
                trunk(given)
        assert torch.equal(given, before)
    user_trunk(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(inplace=True)))(y)


class Shared(nn.Module):
    """One part under two names, and one weight in two parts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.other = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second, self.other.weight = self.first, self.first.weight

    def forward(self, y: Tensor) -> Tensor:
        return self.other(torch.tanh(self.second(torch.tanh(self.first(y)))))


def test_modules_with_shared_weights() -> None:
    trunk = user_trunk(Shared(), how="two levels")
    assert list(trunk.theta) == ["first.weight", "first.bias", "other.bias"]
    assert_gradients(trunk)
    again = trunk.as_sequential()  # of a trunk that has been used
    assert error(again(data()[0]).detach(), trunk.requires_grad_(False)(data()[0])) < 1e-6
    assert lpnet.check(Shared()).ok


class Failing(nn.Module):
    """Raises at its n-th evaluation."""

    left: ClassVar[list[int]] = [0]

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, y: Tensor) -> Tensor:
        self.left[0] -= 1
        if self.left[0] == 0:
            raise KeyError("the user's own")
        return torch.tanh(self.inner(y))


@pytest.mark.parametrize("how", ["serial", "two levels"])
def test_exceptions_of_a_users_layer_pass_unchanged(how: str) -> None:
    """At the first evaluation, in a sweep, in a coarse step, in the adjoint; and the trunk works again afterwards."""
    y, c = data()
    trunk = user_trunk(Failing(), how=how)
    Failing.left[0] = 0
    expected = gradients(trunk, y, c)
    total = -Failing.left[0]
    for n in (1, 2, 5, total // 2, total):
        Failing.left[0] = n
        with pytest.raises(KeyError, match="the user's own"):
            gradients(user_trunk(Failing(), how=how), y, c)
    Failing.left[0] = total // 2
    with pytest.raises(KeyError):
        gradients(trunk, y, c)
    assert all(torch.equal(a, b) for a, b in zip(gradients(trunk, y, c), expected, strict=True))
