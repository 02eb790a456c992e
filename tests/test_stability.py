"""Stability: limits against simulation and published constants, bounds against true eigenvalues, and who is warned."""

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from reference import F64, dynamics, error, normal, trunk
from torch import Tensor, nn

import lpnet
from lpnet import plain, stability
from lpnet.commandline import parse
from lpnet.network import Examples, build
from lpnet.presets import PRESETS
from lpnet.slab import Comm, Slab
from lpnet.steppers import REGISTRY, Euler, Mix, Stage, Stepper, Steps, Verlet

LIMITS = {"euler": 0.0, "rk4": 2 * np.sqrt(2), "ab3": 0.72363, "verlet": 2.0, "leapfrog": 2.0}
REAL = {"euler": 2.0, "rk4": 2.78529, "ab3": 6 / 11}


@pytest.mark.parametrize("name", list(REGISTRY))
def test_limits_are_the_published_ones(name: str) -> None:
    stepper = REGISTRY[name]()
    assert stability.limit(stepper) == pytest.approx(LIMITS[name], abs=1e-5)
    if name in REAL:
        assert stability.limit(stepper, "real") == pytest.approx(REAL[name], abs=1e-5)


class Linear(nn.Module):
    """y' = λy with an eigenvalue iω or −ω; as kick and drift, or kick alone, with frequency ω."""

    def __init__(self, omega: float, real: bool) -> None:
        super().__init__()
        turn = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=F64)
        self.A = nn.Parameter(omega * (-torch.eye(2, dtype=F64) if real else turn))
        self.w = nn.Parameter(torch.tensor(omega, dtype=F64))

    def forward(self, y: Tensor) -> Tensor:
        return y @ self.A.T

    def kick(self, y: Tensor) -> Tensor:
        return -self.w * y

    def drift(self, z: Tensor) -> Tensor:
        return self.w * z


class Alone(Linear):
    """Second order."""

    def kick(self, y: Tensor) -> Tensor:
        return -(self.w**2) * y


def grown(stepper: Stepper, omega: float, real: bool, steps: int) -> float:
    """|x| after that many steps of size 1 from a unit state."""
    one = Alone(omega, real) if stepper.terms == ("kick",) else Linear(omega, real)
    layer = plain.PlainLayer(one.requires_grad_(False), stepper.stages(1.0), stepper.memory)
    x = normal(stepper.memory, 1, 2, seed=3)
    x = x / x.norm()
    for _ in range(steps):
        x = layer(x)
    return x.norm().item()


@pytest.mark.parametrize("real", [False, True], ids=["imaginary", "real"])
@pytest.mark.parametrize("name", list(REGISTRY))
def test_limits_by_simulation(name: str, real: bool) -> None:
    """Bounded just inside, growth at the rate of the spectral radius outside."""
    stepper = REGISTRY[name]()
    if real and name not in REAL:
        return
    limit = stability.limit(stepper, "real" if real else "imaginary")
    if limit:
        assert grown(stepper, 0.99 * limit, real, 2000) < 40
    outside = 1.05 * limit or 0.1
    rate = stability.radius(stepper, -outside if real else 1j * outside)[0]
    assert rate > 1.001
    ratio = grown(stepper, outside, real, 200) / grown(stepper, outside, real, 100)
    assert np.log(ratio) / 100 == pytest.approx(np.log(rate), rel=2e-2)


def test_roots_of_verlet() -> None:
    """ξ² − 2aξ + 1 = 0 with a = 1 − ½αβ and αβ = (hω)²."""
    products = np.array([1e-4, 1.0, 3.9, 4.1, 7.0])
    roots = [np.abs(np.roots([1.0, -2 * (1 - p / 2), 1.0])).max() for p in products]
    np.testing.assert_allclose(stability.radius(Verlet(), np.sqrt(products)), roots, rtol=1e-10)


@pytest.mark.parametrize("product", [1.0, 3.9, 4.1, 4.5])
def test_round_trip_is_foretold(product: float) -> None:
    """Verlet forward and undone by hand: the error is about eps |ξ|^(2N) beyond αβ = 4, and small before."""
    N, w = 50, np.sqrt(product)
    y, z = start = normal(2, 5)
    for _ in range(N):
        z = z - w * y
        y = y + w * z
    for _ in range(N):
        y = y - w * z
        z = z + w * y
    found = error(torch.stack([y, z]), start)
    foretold = np.finfo(float).eps * stability.radius(Verlet(), w)[0] ** (2 * N)
    assert found < 1e-12 if product < 4 else foretold / 10 < found < 10 * foretold


# ---- bounds of the built-in dynamics ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), [(8, 8), (3, 5), (5, 3), (64, 64), (1, 1)])
def test_norms(rows: int, columns: int) -> None:
    stack = normal(6, rows, columns)
    exact = torch.linalg.matrix_norm(stack, 2)
    found = stability.norms(stack)
    assert (found <= exact * (1 + 1e-12)).all()
    assert (found >= 0.95 * exact).all()
    assert (stability.frobenius(stack) >= exact * (1 - 1e-12)).all()
    same = stability.norms(stack[:1].expand(4, -1, -1))
    torch.testing.assert_close(same, found[:1].expand(4))
    assert stability.norms(stack[:0]).shape == (0,)
    assert (stability.norms(torch.zeros_like(stack)) == 0).all()


@pytest.mark.parametrize("kind", ["antisymmetric", "hamiltonian", "double_symmetric", "second_order"])
def test_bounds_are_the_eigenvalues_where_the_activation_is_linear(kind: str) -> None:
    """ReLU on its positive side, σ' = 1."""
    one = dynamics(kind, 4, "relu", gamma=0.3).to(F64).requires_grad_(False)
    theta = {n: normal(1, *p.shape, seed=i) for i, (n, p) in enumerate(one.named_parameters())}
    theta["b"].fill_(100.0)
    one.load_state_dict({n: t[0] for n, t in theta.items()})

    def f(x: Tensor) -> Tensor:
        if one.terms == ("f",):
            return one(x)
        y, z = x[:4], x[4:]
        return torch.cat([one.drift(z) if "drift" in one.terms else z, one.kick(y)])

    J = torch.func.jacrev(f)(normal(4 if one.terms == ("f",) else 8))
    exact = torch.linalg.eigvals(J).numpy()
    found = stability.eigenvalues(one, theta)[0]
    assert abs(found) == pytest.approx(np.abs(exact).max(), rel=2e-2)
    assert found.real == pytest.approx(exact[np.abs(exact).argmax()].real, abs=0.02 * abs(found))


def test_bounds_hold_for_every_activation() -> None:
    """σ' is at most `slope`."""
    u = torch.linspace(-6, 6, 4001, dtype=F64, requires_grad=True)
    for activation in lpnet.activations.ACTIVATIONS.values():
        (slopes,) = torch.autograd.grad(activation.plain(u).sum(), u)
        assert slopes.max().item() == pytest.approx(activation.slope, abs=1e-3)
        assert slopes.max().item() <= activation.slope


# ---- warnings --------------------------------------------------------------------------------------------------------


def warned(kind: Any, size: float, layers: int = 20, calls: int = 1, **more: Any) -> list[str]:
    """What is said when a trunk is called whose matrices are scaled to this norm in one layer."""
    made = trunk(kind, layers, comm=Comm(), **more) if isinstance(kind, str) else kind
    with torch.no_grad():
        for p in made.theta.values():
            p *= 1e-3
        A = next(iter(made._stack.module.dense(dict(made.theta)).values())).M[7]
        made.theta["K"][7] *= size / torch.linalg.matrix_norm(A, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            made(normal(3, 4))
    return [str(w.message) for w in caught]


def test_beyond_the_limit_of_verlet() -> None:
    """h = 0.15: hω = 2 is ω = 13.3."""
    assert warned("hamiltonian", 12.5) == []
    (text,) = warned("hamiltonian", 15.0, calls=100)
    assert text.startswith("lpnet: Verlet is unstable: hω up to 2.25 (layer 7), the limit is 2;")
    assert "αβ = 5.06, 0 < αβ < 4" in text
    assert text.endswith("Use 1.2 times as many layers, a smaller T or smaller weights")


def test_the_round_trip_is_foretold_where_states_are_recomputed() -> None:
    """One layer with hω = 2.25 and 19 that hardly move: |ξ| = 2.8 once."""
    (text,) = warned("hamiltonian", 15.0, store="reverse")
    root = stability.radius(Verlet(), 2.25)[0]
    assert f"recomputed states be wrong by about {np.finfo(float).eps * root**2:.1g} (eps |ξ|^2N)" in text
    assert warned("hamiltonian", 12.5, store="reverse") == []


class Turning(nn.Module):
    """A user's module: a nonlinear oscillator of this frequency."""

    def __init__(self, omega: float) -> None:
        super().__init__()
        self.omega = nn.Parameter(torch.tensor(omega, dtype=F64))

    def kick(self, y: Tensor) -> Tensor:
        return -self.omega * torch.tanh(y)

    def drift(self, z: Tensor) -> Tensor:
        return self.omega * z


def undone(made: lpnet.LayerParallel, calls: int = 1) -> list[str]:
    """What is said when gradients are taken."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(calls):
            made(normal(20, 8).to(next(made.parameters()).dtype)).sum().backward()
    return [str(w.message) for w in caught]


def test_undone_states_are_checked_where_linear_stability_sees_nothing() -> None:
    """Nonlinear flows may grow at any hω; at hω = 1.9, N = 256, h = 1, float32, the gradient has no correct digit."""
    serial = {"forward": lpnet.Serial(), "adjoint": lpnet.Serial(), "comm": Comm(), "dtype": torch.float32}
    found = {}
    for store in ("all", "reverse"):
        one = lpnet.dynamics.Hamiltonian(8)
        made = lpnet.LayerParallel(one, 256, 256.0, Verlet(), store=store, **serial)  # type: ignore[arg-type]
        with torch.no_grad():
            made.theta["K"] *= 0.5 / torch.linalg.matrix_norm(made.theta["K"], 2)[:, None, None]
        assert undone(made, calls=4) == []
        assert made.info.round_trip is None if store == "all" else 0 < made.info.round_trip < 1e-5  # type: ignore
        with torch.no_grad():
            made.theta["K"] *= 1.9 / 0.5
        made.zero_grad()
        said = undone(made)  # call 5, where nobody looks at the weights
        found[store] = made.theta["K"].grad
    assert error(found["reverse"], found["all"]) > 0.5
    assert made.info.round_trip > 0.1  # type: ignore[operator]
    (text,) = said
    off = f"{made.info.round_trip:.2g}"
    assert text.startswith(f"lpnet: store='reverse' undid the layers to states with a relative error of {off},")
    assert "at most 0.001 is harmless" in text
    assert "linear stability foretold" in text
    assert undone(made, calls=3) == []


@pytest.mark.parametrize(("omega", "said"), [(1.0, 0), (2.2, 1), (float("nan"), 1)])
def test_undone_states_of_a_users_module_are_checked(omega: float, said: int) -> None:
    made = lpnet.LayerParallel(
        Turning(omega), 100, 100.0, Verlet(), lpnet.Serial(), lpnet.Serial(), store="reverse", dtype=F64, comm=Comm()
    )
    texts = undone(made, calls=3)
    assert len(texts) == said
    assert all("linear stability foretells nothing" in text for text in texts)


def test_contraction_beyond_the_limit_of_euler() -> None:
    """h |K|² = 2 is |K| = 3.65."""
    assert warned("double_symmetric", 3.5) == []
    (text,) = warned("double_symmetric", 4.0)
    assert text.startswith("lpnet: Euler is unstable: h|λ| up to 2.4 (layer 7), the limit is 2;")


def test_growth_of_turning_flows_under_euler() -> None:
    """Only where it matters: |1 + ihω| = 10 is hω = 9.95, or hω = 0.508 in all of 20 layers; γ helps."""
    assert warned("antisymmetric", 9.8 / 0.15) == []
    (text,) = warned("antisymmetric", 10.1 / 0.15)
    assert text.startswith("lpnet: Euler makes a flow grow that only turns: hω up to 10.1 (layer 7), the limit is 0;")
    for size, gamma, some in ((0.49, 0.0, False), (0.53, 0.0, True), (0.53, 0.5, False)):
        made = trunk("antisymmetric", 20, comm=Comm(), gamma=gamma)
        with torch.no_grad():
            A = made.theta["K"] - made.theta["K"].transpose(1, 2)
            made.theta["K"] *= (size / 0.15 / torch.linalg.matrix_norm(A, 2))[:, None, None]
        found = stability.outlook(made._stack.module, dict(made.theta), Euler(), made.h, Slab(20, Comm()))
        assert found is not None
        assert found.stable != some
        if not gamma:
            assert found.growth == pytest.approx((1 + size**2) ** 10, rel=2e-2)


def test_weights_are_looked_at_again_in_training() -> None:
    made = trunk("hamiltonian", 20, comm=Comm())
    assert warned(made, 1.0, calls=5) == []
    (text,) = warned(made, 15.0, calls=20)  # calls 6 to 25; looked at are 10 and 100
    assert "unstable" in text
    assert warned(made, 15.0, calls=200) == []


def test_damping_beyond_the_limit() -> None:
    """Euler, h = 0.15: hγ = 2.1 is too much for every weight; the shift is named, and not the frequency."""
    for kind in ("antisymmetric", "dense"):
        assert warned(kind, 1.9 / 0.15, gamma=1.9 / 0.15) == []
        (text,) = warned(kind, 2.2 / 0.15, gamma=2.1 / 0.15, calls=12)
        assert text.startswith("lpnet: Euler is unstable: the damping hγ = 2.1 is beyond 2, the limit on the negative")
        assert text.endswith("Use 1.1 times as many layers, a smaller T or gamma")
    one, turn = lpnet.dynamics.Antisymmetric(2, gamma=0.4), torch.tensor([[[0.0, 12.0], [0.0, 0.0]]], dtype=F64)
    found = stability.outlook(one, {"K": turn, "b": turn[:, 0]}, Euler(), 1.0, Slab(1, Comm()))
    assert found is not None
    assert "grow that turns: h|λ| up to 12 (layer 0, hγ = 0.4), the limit is 0" in found.text()


def test_warnings_point_at_the_users_line_and_are_not_repeated_on_finer_trunks() -> None:
    made = trunk("hamiltonian", 20, comm=Comm(), store="reverse")
    with torch.no_grad():
        made.theta["K"] *= 100
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made(normal(3, 4))
        lpnet.multilevel.prolongate(made, 40)(normal(3, 4))
    assert [w.filename for w in caught] == [__file__]


def test_no_word_for_spectra_that_may_lie_anywhere() -> None:
    assert warned("dense", 100.0) == []


@pytest.mark.parametrize("preset", list(PRESETS))
def test_presets_are_stable(preset: str) -> None:
    net = build(parse([preset]), Examples(64 if preset == "digits" else 2, 2), Comm())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.trunk(normal(2, net.config.trunk.width, dtype=torch.float32))


def test_a_growth_that_begins_at_zero_is_no_limit() -> None:
    """Heun's |R(iω)|² = 1 + ω⁴/4, which is 1 to rounding for small ω."""

    class Heun(Stepper):
        def stages(self, h: float) -> Steps:
            return (Stage("f", 0, 1, h, start=0), Mix(0, ((0, 0.5), (1, 0.5))), Stage("f", 1, 0, h / 2))

    assert stability.limit(Heun()) == 0.0
    assert stability.limit(Heun(), "real") == pytest.approx(2.0, abs=1e-6)
