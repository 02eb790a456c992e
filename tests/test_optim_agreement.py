"""What does not belong together is refused in one line, before anything is changed."""

from typing import Any

import pytest
import torch
from blocks import LABEL, X, network
from reference import F64
from torch import Tensor, nn

from lpnet import Controls, InputError
from lpnet.optim import BlockCoordinateDescent, GaussNewton, VariableProjection
from lpnet.regularizers import Quadratic, Tikhonov, TimeDerivative

METHODS = pytest.mark.parametrize("method", [GaussNewton, BlockCoordinateDescent, VariableProjection])
BLOCKS = pytest.mark.parametrize("method", [BlockCoordinateDescent, VariableProjection])


class Named(nn.Module):
    """classifier(trunk(y) + a y), y = opening(x)."""

    def __init__(self, a: float) -> None:
        super().__init__()
        self.a = a
        self.opening, self.trunk, self.classifier = network()

    def forward(self, x: Tensor) -> Tensor:
        y = self.opening(x)
        out: Tensor = self.classifier(self.trunk(y) + self.a * y)
        return out


class Doubled(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(2 * x)
        return out


class Same(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = super().forward(x)
        return out


@METHODS
def test_a_net_that_is_not_its_parts(method: Any) -> None:
    for net in (Named(1.0), Named(1e-3), Doubled(*network()), nn.Sequential(nn.Identity(), Doubled(*network()))):
        before = [p.detach().clone() for p in net.parameters()]
        with pytest.raises(InputError, match=r"^net: a \w+ given, whose output is not that of its parts one after the"):
            method(net).step_on(X, LABEL)
        assert all(torch.equal(p, q) for p, q in zip(before, net.parameters(), strict=True))


@METHODS
def test_a_net_that_is_its_parts(method: Any) -> None:
    """In single precision too, and with an opening that is a Sequential with a forward of its own."""
    opening, trunk, classifier = network()
    for net in (Named(0.0), Named(0.0).float(), Same(*network()), nn.Sequential(Doubled(opening), trunk, classifier)):
        report = method(net).step_on(X.to(next(net.parameters()).dtype), LABEL)
        assert report.after < report.before


@METHODS
@pytest.mark.parametrize("layer", [nn.BatchNorm1d(3, dtype=F64), nn.Dropout(0.1)])
def test_no_function_beside_the_trunk(method: Any, layer: nn.Module) -> None:
    opening, trunk, classifier = network()
    net = nn.Sequential(opening, layer, trunk, classifier)
    with pytest.raises(InputError, match=r"^net: a \w+ in training mode beside the trunk given, only .* allowed$"):
        method(net.train()).step_on(X, LABEL)
    report = method(net.eval()).step_on(X, LABEL)
    assert report.after < report.before


@BLOCKS
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_a_frozen_classifier(method: Any, name: str) -> None:
    net = network()
    getattr(net[2], name).requires_grad_(False)
    with pytest.raises(InputError, match=rf"^net: a classifier with frozen {name} given, .* allowed$"):
        method(net)


@METHODS
def test_no_penalties(method: Any) -> None:
    net = network()
    others = [3, Tikhonov(net[1], 1.0), ["a"], [None], [net], [Tikhonov(network()[1], 1.0)]]
    for given in [*others, [Quadratic(nn.Parameter(torch.ones(2)), 1.0)]]:
        with pytest.raises(InputError, match=r"^penalties: .* given, .* allowed$"):
            method(net, penalties=given)


@pytest.mark.parametrize("one", [Tikhonov, TimeDerivative])
@pytest.mark.parametrize("given", [None, network(), Controls])
def test_penalties_of_no_trunk(one: Any, given: Any) -> None:
    with pytest.raises(InputError, match=r"^trunk: a \w+ given, .* allowed$"):
        one(given, 1.0)


@BLOCKS
def test_a_classifier_that_is_never_solved_for(method: Any) -> None:
    with pytest.raises(InputError, match=r"^most: 0 given, a whole number of at least 1 allowed$"):
        method(network(), most=0)


@METHODS
def test_a_step_of_nothing(method: Any) -> None:
    for given in ((), (lambda: 1.0,)):
        with pytest.raises(InputError, match=r"^problem: .* given, step\(problem\(x, label\)\) or step_on.* allowed$"):
            method(network()).step(*given)
