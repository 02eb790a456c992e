"""User modules as they are run: dropout, exceptions, and modules that do not do what one expects."""

from typing import ClassVar

import pytest
import torch
from gradients import WIDTH, assert_gradients, data, gradients, user_trunk
from reference import error, normal
from small_training import network
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import lpnet
from lpnet import MGRIT, InputError, Serial
from lpnet.gradient import controlled


def dropping(zero: bool = False) -> nn.Module:
    """Inverted dropout inside; with `zero` the last layer starts at zero, as residual branches often do."""
    one = nn.Sequential(nn.Linear(WIDTH, 6), nn.Tanh(), nn.Dropout(0.5), nn.Linear(6, WIDTH))
    if zero:
        nn.init.zeros_(one[3].weight)
        nn.init.zeros_(one[3].bias)
    return one


def steps(trunk: lpnet.LayerParallel, count: int = 2) -> list[list[Tensor]]:
    """Output and gradients of so many calls in a row, from one state of torch's generator; weights are kept."""
    torch.manual_seed(5)
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
    """By finite differences at the masks of one state of torch's generator."""
    trunk, (y, c) = user_trunk(dropping(), how=how), data()
    d = normal(*y.shape, seed=3)
    leaf = y.clone().requires_grad_()

    def value(y: Tensor) -> Tensor:
        torch.manual_seed(5)
        return (trunk(y) * c).sum()

    value(leaf).backward()
    eps = 1e-6
    sides = [value(y + s * eps * d).item() for s in (1, -1)]
    assert leaf.grad is not None
    assert (sides[0] - sides[1]) / (2 * eps) == pytest.approx((leaf.grad * d).sum().item(), rel=1e-6)


@pytest.mark.parametrize("zero", [False, True])
def test_a_call_draws_one_number_of_the_global_generator(zero: bool) -> None:
    """Also where the module's first output does not show that it is random; calls without masks draw none."""
    trunk, plain, (y, c) = user_trunk(dropping(zero), init="constant"), user_trunk(nn.Linear(WIDTH, WIDTH)), data()
    gradients(trunk, y, c)
    with torch.no_grad():
        trunk.get_parameter("3.weight").add_(normal(13, WIDTH, 6))
    first, second = steps(trunk)
    assert error(first[0], second[0]) > 1e-2
    state = torch.get_rng_state()
    torch.manual_seed(5)
    torch.randint(1, 2**62, (2,))
    assert torch.equal(torch.get_rng_state(), state)
    trunk.eval()(y)
    gradients(plain, y, c)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("how", ["serial", "two levels"])
def test_activation_checkpointing_sees_the_same_masks(how: str, reentrant: bool) -> None:
    """Torch brings its generator back before it evaluates a part of the network again."""
    y, c = data()
    found = []
    for evaluated_again in (False, True):
        trunk, leaf = user_trunk(dropping(), how=how), y.clone().requires_grad_()
        torch.manual_seed(5)
        out = checkpoint(trunk, leaf, use_reentrant=reentrant) if evaluated_again else trunk(leaf)
        (torch.dropout(out, 0.5, True) * c).sum().backward()
        found.append([out.detach(), leaf.grad, *(p.grad for p in trunk.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_repeated_step_draws_what_the_step_drew() -> None:
    """Masks behind the trunk are those of the step, too, when a check repeats it."""
    solver = MGRIT(coarsening=4, cycles=1)
    control = lpnet.Adaptive(gradient_tol=1e-9, every=1, plan_ranks=4)
    one = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 6))
    net = network(24, forward=solver, adjoint=solver, control=control, dynamics=one, T=1.0)
    x, masks = normal(6, 2, seed=1), []

    def closure() -> Tensor:
        net.zero_grad()
        features = net[1](net[0](x))
        masks.append(torch.dropout(torch.ones(50), 0.5, True))
        loss = net[2](features).square().mean()
        loss.backward()
        return loss.detach()

    controlled([net[1]], closure)
    assert net[1].info.control.checked
    assert len(masks) > 1
    assert all(torch.equal(mask, masks[0]) for mask in masks)


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
    twin, trunk = user_trunk(dropping()), user_trunk(dropping())
    torch.manual_seed(5)
    (twin(expected) * c).sum().backward()
    torch.manual_seed(5)
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
