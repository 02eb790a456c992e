"""The convex classifier problem: derivatives against autograd, solutions against scipy and scikit-learn."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch
from reference import F64, error, normal
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from lpnet import InputError, NonFiniteError
from lpnet.optim import classifier, softmax


def examples(n: int = 60, width: int = 4, classes: int = 3, overlap: float = 1.0) -> tuple[Tensor, Tensor]:
    """Features around one centre for each class."""
    label = torch.arange(n) % classes
    return normal(classes, width, seed=1)[label] + overlap * normal(n, width), label


def layer(width: int = 4, classes: int = 3, bias: bool = True, dtype: torch.dtype = F64) -> nn.Linear:
    made = nn.Linear(width, classes, bias=bias, dtype=dtype)
    with torch.no_grad():
        for i, p in enumerate(made.parameters()):
            p.copy_(0.3 * normal(*p.shape, seed=10 + i))
    return made


def objective(M: Tensor, features: Tensor, label: Tensor, decay: tuple[float, float]) -> Tensor:
    W, b = M[:, :-1], M[:, -1]
    regular = 0.5 * decay[0] * W.square().sum() + 0.5 * decay[1] * b.square().sum()
    return cross_entropy(features @ W.T + b, label) + regular


DECAYS = [(0.0, 0.0), (1e-2, 0.0), (1e-2, 3e-2)]


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("probabilities", [False, True])
def test_the_derivatives_are_those_of_autograd(decay: tuple[float, float], probabilities: bool) -> None:
    features, label = examples()
    c = torch.softmax(normal(60, 3, seed=5), dim=1) if probabilities else label
    E, M, V = softmax.Softmax(features, c, 3, decay=decay), normal(3, 5, seed=2), normal(3, 5, seed=3)
    of = lambda m: objective(m, features, c, decay)  # noqa: E731
    point = E.at(M)
    assert point.value == pytest.approx(of(M).item(), rel=1e-14)
    assert E.value(M) == point.value
    assert error(point.gradient, torch.func.grad(of)(M)) < 1e-13
    true = torch.func.hessian(of)(M).reshape(15, 15)
    assert error(E.hessian(point.p), true) < 1e-13
    assert error(E.product(point.p, V).flatten(), true @ V.flatten()) < 1e-13


@pytest.mark.parametrize("decay", DECAYS)
@pytest.mark.parametrize("dense", [True, False])
def test_the_inverse_undoes_the_hessian(
    decay: tuple[float, float], dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "DENSE", 500 if dense else 0)
    features, label = examples()
    E, M = softmax.Softmax(features, label, 3, decay=decay), normal(3, 5, seed=2)
    point = E.at(M)  # its gradient is in the range of the Hessian, which is singular without decay
    V = E.inverse(point.p, 1e-12)(point.gradient)
    assert error(E.product(point.p, V), point.gradient) < 1e-10
    if dense:
        assert error(V.flatten(), torch.linalg.pinv(E.hessian(point.p), rtol=1e-12) @ point.gradient.flatten()) < 1e-10


def test_the_hessian_is_accurate_where_the_classes_are_nearly_certain() -> None:
    """p(1 − p) at p = 1 − 1e-17 is 1e-17, not zero."""
    E = softmax.Softmax(torch.ones(1, 1, dtype=F64), torch.tensor([0]), 2, bias=False)
    p = torch.softmax(torch.tensor([[20.0, -20.0]], dtype=F64), dim=1)
    assert E.hessian(p)[0, 0].item() == pytest.approx(math.exp(-40), rel=1e-12)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("decay", [1e-3, 1e-1, (1e-2, 2e-2)])
def test_the_solution_is_that_of_scipy(
    decay: float | tuple[float, float], dense: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "DENSE", 500 if dense else 0)
    features, label = examples()
    both = decay if isinstance(decay, tuple) else (decay, 0.0)

    def for_scipy(x: np.ndarray) -> tuple[float, np.ndarray]:
        M = torch.tensor(x.reshape(3, 5), requires_grad=True)
        value = objective(M, features, label, both)
        return value.item(), torch.autograd.grad(value, M)[0].numpy().ravel()

    linear = layer()
    start = classifier.stacked(linear).numpy().ravel()
    true = scipy.optimize.minimize(for_scipy, start, jac=True, method="BFGS", options={"gtol": 1e-9})
    report = classifier.solve(features, label, linear, decay)
    assert report.converged
    assert report.steps < 12
    assert report.before == pytest.approx(for_scipy(start)[0], rel=1e-13)
    assert report.value <= true.fun + 1e-13
    found, other = classifier.stacked(linear), torch.tensor(true.x).reshape(3, 5)
    for M in (found, other):  # the same bias for all classes makes no difference, unless it decays
        M[:, -1] -= 0 if both[1] else M[:, -1].mean()
    np.testing.assert_allclose(found.numpy(), other.numpy(), atol=2e-6)
    again = classifier.solve(features, label, linear, decay)
    assert (again.steps, again.converged, again.value) == (0, True, again.before)


@pytest.mark.parametrize("bias", [True, False])
def test_the_solution_is_that_of_scikit_learn(bias: bool) -> None:
    features, label = examples(90)
    alpha, linear = 0.02, layer(bias=bias)
    theirs = LogisticRegression(C=1 / (90 * alpha), tol=1e-12, max_iter=1000, fit_intercept=bias)
    theirs.fit(features.numpy(), label.numpy())
    assert classifier.solve(features, label, linear, alpha, tol=1e-10).converged
    np.testing.assert_allclose(linear.weight.detach().numpy(), theirs.coef_, atol=1e-6)
    if bias:
        b = linear.bias.detach()
        np.testing.assert_allclose((b - b.mean()).numpy(), theirs.intercept_ - theirs.intercept_.mean(), atol=1e-6)


@pytest.mark.parametrize("dense", [True, False])
def test_classes_that_can_be_separated_end_with_a_small_gradient(dense: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "DENSE", 500 if dense else 0)
    features, label = examples(overlap=0.1)
    linear = layer()
    report = classifier.solve(features, label, linear)
    assert report.converged
    assert report.value < 1e-7
    assert (linear(features).argmax(1) == label).all()


@pytest.mark.parametrize("shift", [0.0, 1e4, 1e6])
def test_badly_scaled_features_end_as_far_as_rounding_goes(shift: float) -> None:
    features, label = examples()
    features = features * torch.tensor([1e-4, 1.0, 1e3, 1.0]) + shift
    linear = layer()
    report = classifier.solve(features, label, linear, 1e-6, most=200)
    assert math.isfinite(report.value)
    assert report.value <= report.before
    assert report.gradient < 1e-7


def test_a_layer_in_float32_is_solved_in_float64() -> None:
    features, label = examples()
    one, other = layer(dtype=torch.float32), layer()
    other.load_state_dict({name: p.double() for name, p in one.state_dict().items()})
    reports = [classifier.solve(features.float(), label, one, 1e-2)]
    reports += [classifier.solve(features.float(), label, other, 1e-2)]
    assert reports[0] == reports[1]
    assert torch.equal(one.weight, other.weight.float())


def test_nothing_is_done_in_no_steps_or_on_errors() -> None:
    features, label = examples()
    linear = layer()
    before = classifier.stacked(linear)
    assert not classifier.solve(features, label, linear, most=0).converged
    for words, call in {
        "tol: 0 given, a number between 0 and 1 allowed": lambda: classifier.solve(features, label, linear, tol=0),
        "most: 1.5 given, a whole number": lambda: classifier.solve(features, label, linear, most=1.5),
        r"weight_decay: -1 given, a number of at least 0, or two allowed": lambda: classifier.solve(
            features, label, linear, -1
        ),
        r"features: \(60, 3\) given, \(batch, 4\) allowed": lambda: classifier.solve(features[:, :3], label, linear),
        r"features: \(0, 4\) given": lambda: classifier.solve(features[:0], label[:0], linear),
        r"label: numbers from 0 to 3 given, 0 to 2 allowed": lambda: classifier.solve(features, label * 3 // 2, linear),
        r"label: \(60,\) of torch.float64 given": lambda: classifier.solve(features, label.double(), linear),
        r"label: \(59,\)": lambda: classifier.solve(features, label[1:], linear),
    }.items():
        with pytest.raises(InputError, match="^" + words):
            call()
    with pytest.raises(NonFiniteError, match=r"^classifier: the objective is nan"):
        classifier.solve(features * math.nan, label, linear)
    assert torch.equal(classifier.stacked(linear), before)


def test_probabilities_of_one_class_are_that_class() -> None:
    features, label = examples()
    one, other = layer(), layer()
    reports = [classifier.solve(features, c, m, 1e-2) for c, m in ((label, one), (one_hot(label).double(), other))]
    assert reports[0] == reports[1]
    assert torch.equal(one.weight, other.weight)
