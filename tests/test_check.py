"""`lpnet.check`: built-in layers pass, and each fault of a user's layer is found by its own test."""

from typing import Any

import pytest
import torch
from reference import ALL_KINDS, dynamics
from torch import Tensor, nn
from user_layers import Linear

import lpnet
from lpnet import InputError
from lpnet.steppers import AB3, RK4, Euler


@pytest.mark.parametrize("kind", ALL_KINDS)
def test_built_in_layers_work(kind: str) -> None:
    """With weights that a trunk would start from, since those of a new layer are zero."""
    report = lpnet.check(dynamics(kind))
    assert report.ok, str(report)
    assert report["gradient"].value < 1e-8
    assert report["adjoint"].value < 1e-12
    assert report["trunk"].value < 1e-12
    assert report["coarse"].status == "ok", report["coarse"].text
    if report.stepper in ("Verlet", "Leapfrog"):
        assert report["reversal"].value < 1e-13
    if kind in ("antisymmetric", "hamiltonian", "second_order"):
        assert abs(report["spectrum"].value) < 1e-7  # a double root at 0 moves by the root of rounding


@pytest.mark.parametrize(("module", "features"), [(Linear(), None), (nn.Conv2d(2, 2, 3, padding=1), (2, 4, 5))])
def test_users_layers_work(module: nn.Module, features: Any) -> None:
    before = {n: p.clone() for n, p in module.state_dict().items()}
    for stepper in (None, RK4(), AB3()):
        report = lpnet.check(module, stepper, features=features)
        assert report.ok, str(report)
        assert report.stepper == ("Euler" if stepper is None else type(stepper).__name__)
    assert all(torch.equal(p, before[n]) for n, p in module.state_dict().items())
    assert str(lpnet.check(module, features=features)) == str(lpnet.check(module, features=features))


# ---- faults ----------------------------------------------------------------------------------------------------------


class Widening(Linear):
    def forward(self, y: Tensor) -> Tensor:
        return torch.cat([y, y], 1)


class Raising(Linear):
    def forward(self, y: Tensor) -> Tensor:
        return self.linear(y[:, :3])


class Doubling(Linear):
    def forward(self, y: Tensor) -> Tensor:
        return self.linear(y).double()


class Blowing(Linear):
    def forward(self, y: Tensor) -> Tensor:
        return self.linear(y) / 0.0


class Pair(Linear):
    def forward(self, y: Tensor) -> Any:
        return y, y


class Bare(nn.Module):
    def forward(self, y: Tensor) -> Tensor:
        return -y


class Noisy(Linear):
    def forward(self, y: Tensor) -> Tensor:
        return self.linear(y) + torch.randn_like(y)


class Overwriting(Linear):
    def forward(self, y: Tensor) -> Tensor:
        return y.mul_(0.5)


class Rectifying(Linear):
    """Changes its input once: the second time nothing is left to change."""

    def forward(self, y: Tensor) -> Tensor:
        return torch.relu_(y) + self.linear(y)


class Counting(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, y: Tensor) -> Tensor:
        self.count += 1
        return super().forward(y)


class Centred(Linear):
    def forward(self, y: Tensor) -> Tensor:
        return super().forward(y) - y.mean(0)


class Square(torch.autograd.Function):
    """A wrong derivative, and none in forward mode."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        ctx.save_for_backward(y)
        return y**2

    @staticmethod
    def backward(ctx: Any, bar: Tensor) -> Tensor:
        return bar * ctx.saved_tensors[0]


class Wrong(Linear):
    def forward(self, y: Tensor) -> Tensor:
        return Square.apply(self.linear(y))


class Normed(Linear):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, y: Tensor) -> Tensor:
        return self.norm(super().forward(y))


class Detached(Linear):
    """As forward, but autograd does not see half of it."""

    def forward(self, y: Tensor) -> Tensor:
        k = super().forward(y)
        return k + 0.1 * k.detach()


FAULTS = [
    (Widening, "shape", r"maps \(4, 4\) to \(4, 8\)"),
    (Raising, "shape", "raises RuntimeError on a batch of shape"),
    (Doubling, "shape", "maps torch.float32 to torch.float64"),
    (Blowing, "shape", "not finite"),
    (Pair, "shape", "returns tuple"),
    (Bare, "shape", "no parameters"),
    (Noisy, "deterministic", "two evaluations"),
    (Overwriting, "input", "in place"),
    (Rectifying, "input", "in place"),
    (Counting, "buffers", "LayerNorm"),
    (Normed, "buffers", "LayerNorm"),
    (Centred, "examples", "depend on each other"),
    (Wrong, "gradient", "not the derivative"),
    (Detached, "gradient", "not the derivative"),
]


@pytest.mark.parametrize(("fault", "name", "says"), FAULTS, ids=[f[0].__name__ for f in FAULTS])
def test_faults_are_found(fault: type[nn.Module], name: str, says: str) -> None:
    report = lpnet.check(fault(), features=4)
    assert not report.ok
    assert report[name].status == "failed", str(report)
    assert report[name].text.count(says.replace("\\", "")) == 1
    assert f"FAILED {name}:" in str(report)
    assert "failed" in report.lines[0]
    if name == "shape":
        assert len(report.findings) == 1  # the rest would make no sense


def test_what_is_worth_knowing_is_a_note() -> None:
    wrong = lpnet.check(Wrong())
    assert (wrong["adjoint"].status, "forward mode" in wrong["adjoint"].text) == ("note", True)
    dropout = lpnet.check(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)))
    assert dropout.ok
    assert dropout["deterministic"].status == "note"
    idle = Linear()
    idle.spare = nn.Parameter(torch.ones(2))
    assert "spare had no influence" in lpnet.check(idle)["weights"].text
    wide = lpnet.check(nn.Linear(300, 300))
    assert "300 features" in wide["spectrum"].text
    kinked = lpnet.check(Linear(), Euler())
    assert "store='reverse' is refused" in kinked["reversal"].text


# ---- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("dynamics", {"dynamics": torch.tanh}),
        ("features", {"dynamics": Bare()}),
        ("features", {"features": (4, 0)}),
        ("features", {"features": "four"}),
        ("stepper", {"stepper": "euler"}),
        ("h", {"h": 0.0}),
        ("h", {"h": float("nan")}),
        ("batch", {"batch": 0}),
        ("seed", {"seed": -1}),
    ],
)
def test_bad_arguments(key: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"^{key}: .* given, .* allowed$"):
        lpnet.check(**({"dynamics": Linear()} | arguments))


def test_report_is_a_table_of_findings() -> None:
    report = lpnet.check(Linear())
    assert "examples" in report
    assert "nonsense" not in report
    with pytest.raises(KeyError):
        report["nonsense"]
    assert len(report.lines) == 1 + len(report.findings)
    assert report.lines[0] == "Linear with stepper Euler: works"
