"""What `OneShot` and `Descent` refuse, each in one line, and what they leave alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from small_training import examples, network
from torch import nn
from torch.nn.functional import cross_entropy

import lpnet
from lpnet.errors import InputError, NonFiniteError
from lpnet.oneshot import Descent, OneShot


def made(**more: Any) -> OneShot:
    net = network(16)
    return OneShot(net, torch.optim.Adam(net.parameters(), lr=1e-2), **more)


@pytest.mark.parametrize(
    ("key", "given"),
    [("control", 0.2), ("warm", 40), ("loss", "mse"), ("tol", 2)],
)
def test_wrong_arguments(key: str, given: Any) -> None:
    with pytest.raises(InputError, match=f"{key}: .*{given!r} given.*allowed"):
        made(**{key: given})


def test_wrong_networks_and_optimizers() -> None:
    net = network(16)
    with pytest.raises(InputError, match="optimizer: 'adam' given"):
        OneShot(net, "adam")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="net: 3 given"):
        OneShot(3, torch.optim.SGD(net.parameters(), lr=1.0))  # type: ignore[arg-type]
    plain = nn.Linear(2, 2)
    with pytest.raises(InputError, match="without any"):
        Descent(plain, torch.optim.SGD(plain.parameters(), lr=1.0))


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda out, label: cross_entropy(out, label, reduction="none"), "one number"),
        (lambda out, label: 3.0, "3.0 returned"),
        (lambda out, label: cross_entropy(out, label).detach(), "without a graph"),
    ],
)
def test_wrong_losses(loss: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        made(loss=loss).step(*examples())


def test_not_finite_keeps_the_weights() -> None:
    run = made()
    before = [p.detach().clone() for p in run.net.parameters()]
    x, label = examples()
    with pytest.raises(NonFiniteError, match="weights are kept"):
        run.step(x * math.nan, label)
    assert all(torch.equal(a, b) for a, b in zip(before, run.net.parameters(), strict=True))


@pytest.mark.parametrize("kind", [list, np.array])
def test_index_of_other_kinds(kind: Any) -> None:
    x, label = examples()
    for index in (kind(range(len(x))), torch.arange(len(x))):
        run = made(warm=lpnet.WarmStates(examples=len(x)))
        losses = [run.step(x, label, index).loss for _ in range(3)]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("odd", [-100, 10**9])
def test_odd_labels_are_no_classes(odd: int) -> None:
    """`ignore_index` and numbers that are no classes: no means are kept of them."""
    x, label = examples()
    label = label.clone()
    label[0] = odd
    run = made(
        warm=lpnet.WarmStates(examples=len(x)), loss=lambda out, label: cross_entropy(out, label.where(label == 0, 1))
    )
    assert all(math.isfinite(run.step(x, label, torch.arange(len(x))).loss) for _ in range(3))


def test_one_call_of_a_trunk_for_a_loss() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network(16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            first, trunk, last = self.net
            out: torch.Tensor = last(trunk(trunk(first(x))))
            return out

    net = Twice()
    with pytest.raises(InputError, match="called twice"):
        OneShot(net, torch.optim.SGD(net.parameters(), lr=0.1)).step(*examples())


def test_exact_is_said_of_all_trunks_only() -> None:
    """One exact trunk does not make the gradient of the other one exact."""
    first, second = network(16)[1], network(16)[1]
    first.steer(lpnet.Serial(), lpnet.Serial(), lpnet.Adaptive())
    second.steer(lpnet.MGRIT(coarsening=4, cycles=0), lpnet.MGRIT(coarsening=4, cycles=0), None)
    ends = network(16)
    net = nn.Sequential(ends[0], first, second, ends[2])
    progress = Descent(net, torch.optim.SGD(net.parameters(), lr=0.1)).step(*examples())
    assert not progress.exact
    assert progress.gradient_error is None
    second.steer(lpnet.Serial(), lpnet.Serial(), None)
    progress = Descent(net, torch.optim.SGD(net.parameters(), lr=0.1)).step(*examples())
    assert progress.exact
    assert progress.gradient_error == 0.0


def test_buffers_beside_the_trunk_are_updated_once_a_step() -> None:
    first, trunk, last = network(16)
    norm = nn.BatchNorm1d(6, dtype=torch.float64)
    net = nn.Sequential(first, norm, trunk, last)
    run = OneShot(net, torch.optim.SGD(net.parameters(), lr=0.1), control=lpnet.Adaptive(0.01, every=1))
    checked = 0
    for step in range(4):  # after a check the exact chain may be taken for a step
        checked += run.step(*examples()).checked
        assert int(norm.num_batches_tracked) == step + 1
    assert checked >= 2
