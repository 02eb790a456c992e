"""Laws of solves whose cycles lead nowhere: the exact chain takes their place at once, and whoever asks is told so."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reference import F64
from small_runs import Silent
from small_runs import network as training_network
from small_training import network
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lpnet
from lpnet import MGRIT, Adaptive, Serial, cost
from lpnet.measure import prepare
from lpnet.oneshot import Descent, OneShot
from lpnet.options import SolverOptions
from lpnet.residuals import Info
from lpnet.slab import Comm
from lpnet.training.loop import fit
from lpnet.training.records import critical_path

HARD = MGRIT(coarsening=8, cycles=2)
EULER, VERLET, RK4 = lpnet.steppers.Euler(), lpnet.steppers.Verlet(), lpnet.steppers.RK4()
CASES = [
    (HARD, EULER, "all", 4.0), (HARD, EULER, "cpoints", 4.0), (HARD, RK4, "all", 4.0), (HARD, VERLET, "reverse", 2.0),
    (MGRIT(coarsening=8, tol=1e-9), VERLET, "all", 2.0), (MGRIT(coarsening=4, levels=3), EULER, "all", 4.0),
    (MGRIT(coarsening=4, levels=3), VERLET, "reverse", 8.0), (replace(HARD, micro_batches=2), EULER, "all", 4.0),
]  # fmt: skip


def trunk(solver: SolverOptions, scale: float = 4.0, adjoint: SolverOptions | None = None, **more: Any) -> Any:
    """Rough weights, so large that coarse steps of 8 layers say nothing of these."""
    settings: dict[str, Any] = {"dtype": F64, "comm": Comm(), "seed": 1, "init": "random"} | more
    dynamics = lpnet.dynamics.Hamiltonian(4) if isinstance(more.get("stepper"), lpnet.steppers.Verlet) else None
    made = lpnet.LayerParallel(
        dynamics or lpnet.dynamics.Dense(4), 64, 20.0, forward=solver, adjoint=adjoint or solver, **settings
    )
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(scale)
    return made


def batch(number: int = 6) -> Tensor:
    return torch.randn(number, 4, dtype=F64, generator=torch.Generator().manual_seed(0))


def gradient(made: Any, y: Tensor) -> list[Tensor]:
    """Output, cotangent of the input, gradients of the weights."""
    leaf = y.clone().requires_grad_()
    out = made(leaf)
    out.square().sum().backward()
    assert leaf.grad is not None
    return [out.detach(), leaf.grad, *(p.grad for p in made.parameters())]


@pytest.mark.filterwarnings("ignore:lpnet. Verlet is unstable")
@pytest.mark.parametrize(("options", "stepper", "store", "scale"), CASES)
def test_diverging_cycles_give_the_exact_chain_at_once(options: MGRIT, stepper: Any, store: Any, scale: float) -> None:
    made, exact = (trunk(solver, scale, stepper=stepper, store=store) for solver in (options, Serial()))
    for found, true in zip(gradient(made, batch()), gradient(exact, batch()), strict=True):
        assert torch.equal(found, true)
    ahead, back = made.info.forward, made.info.adjoint
    for info in (ahead, back):
        assert (info.solver, info.diverged, info.convergence_factor) == ("serial", True, None)
    *cycles, last = ahead.residuals
    assert ahead.cycles == len(cycles) - 1
    assert cycles[-1] > max(cycles[0], 0.1) > 0 == last
    assert ahead.layers > exact.info.forward.layers == 64


def test_an_adjoint_alone_may_diverge() -> None:
    """The states stay those of the forward solve, and the adjoint is exact at them."""
    ahead = MGRIT(coarsening=8, cycles=8)
    made, other = trunk(ahead, adjoint=HARD), trunk(ahead, adjoint=Serial())
    for found, true in zip(gradient(made, batch()), gradient(other, batch()), strict=True):
        assert torch.equal(found, true)
    assert (made.info.forward.diverged, made.info.adjoint.diverged) == (False, True)


@pytest.mark.parametrize("cycles", [1, 2, 4, 8])
def test_solves_that_converge_are_left_alone(cycles: int) -> None:
    made = trunk(MGRIT(coarsening=8, cycles=cycles), scale=0.5)
    gradient(made, batch())
    for info in (made.info.forward, made.info.adjoint):
        assert (info.solver, info.diverged, info.cycles) == ("mgrit", False, cycles)


def test_a_solve_that_converges_late_is_left_alone() -> None:
    """Residuals grow over the first cycles, and are gone when there were as many as intervals."""
    made, exact = trunk(MGRIT(coarsening=8, cycles=8)), trunk(Serial())
    out = made(batch())
    residuals = made.info.forward.residuals
    assert residuals[2] > residuals[0] > 0.1
    assert residuals[-1] < 1e-10
    assert not made.info.forward.diverged
    assert float((out - exact(batch())).detach().abs().max()) < 1e-10


class Decay(nn.Module):
    """y' = −y, whose coarse steps are unstable long before the fine ones are."""

    def __init__(self) -> None:
        super().__init__()
        self.rate = nn.Parameter(torch.ones(1))

    def forward(self, y: Tensor) -> Tensor:
        return -self.rate * y


@pytest.mark.parametrize("cycles", [0, 1])
def test_a_start_that_overflows_is_replaced(cycles: int) -> None:
    options = MGRIT(coarsening=16, cycles=cycles)
    y = batch().to(torch.float32)
    solvers = options, Serial()
    made, exact = (lpnet.LayerParallel(Decay(), 512, 800.0, forward=s, adjoint=s, comm=Comm()) for s in solvers)
    for found, true in zip(gradient(made, y), gradient(exact, y), strict=True):
        assert torch.equal(found, true)
    assert made.info.forward.diverged


@pytest.mark.parametrize(
    ("residuals", "nowhere"),
    [
        ([0.5], False), ([0.0], False), ([float("nan")], True), ([float("inf")], True),
        ([0.1, 0.2], True), ([0.2, 0.1], False), ([0.1, 0.3, 0.2], True), ([0.1, 0.3, 0.09], False),
        ([1e-9, 1e-8], False), ([50.0, 30.0], False), ([0.1, float("nan")], True), ([float("inf"), 0.5], True),
        ([float("inf"), 1e-9], False),
    ],
)  # fmt: skip
def test_which_cycles_lead_nowhere(residuals: list[float], nowhere: bool) -> None:
    assert Info("mgrit", residuals).leads_nowhere == nowhere


def test_what_was_remembered_is_forgotten() -> None:
    """A solve that diverges leaves nothing to start from, and none of what was there before."""
    tau = MGRIT(coarsening=8, cycles=2, initial="tau")
    made, fresh = trunk(tau, scale=0.5), trunk(tau, scale=0.5)
    gradient(made, batch())
    for p in made.parameters():
        p.data.mul_(8.0)
    gradient(made, batch())
    assert made.info.forward.diverged
    for p in made.parameters():
        p.data.div_(8.0)
    assert torch.equal(made(batch()), fresh(batch()))


def test_products_with_the_jacobian_are_exact_then() -> None:
    made, exact = trunk(HARD), trunk(Serial())
    found, true = made.linearize(batch()), exact.linearize(batch())
    v, w = batch().flip(0), batch().cos()
    assert torch.equal(found.tangent(v, None), true.tangent(v, None))
    for a, b in zip((found.pull(w)[0], *found.pull(w)[1]), (true.pull(w)[0], *true.pull(w)[1]), strict=True):
        assert torch.equal(a, b)


def test_a_device_is_not_asked_outside_of_training_steps() -> None:
    """What a loop of the user's own does on one GPU: it finds the residuals, and what they say, when it looks."""
    made = trunk(HARD)
    _, solution, _ = made._engine.forward(*prepare(made, batch()), made.forward_solver, True)
    assert callable(solution.info.__dict__["_residuals"])
    assert (solution.info.diverged, solution.info.leads_nowhere) == (False, True)


# ---- steps of training ---------------------------------------------------------------------------------------------


def hard(solver: MGRIT = HARD) -> nn.Sequential:
    """A network on peaks whose trunk is beyond these cycles."""
    net = network(forward=solver, adjoint=solver, T=20.0, init="random")
    with torch.no_grad():
        for p in net[1].parameters():
            p.mul_(4.0)
    return net


def examples() -> tuple[Tensor, Tensor]:
    x = torch.randn(20, 2, dtype=F64, generator=torch.Generator().manual_seed(1))
    return x, torch.arange(20) % 5


@pytest.mark.parametrize("kind", ["plain", "control", "oneshot"])
def test_a_step_whose_cycles_diverge_is_exact_and_says_so(kind: str) -> None:
    net, true = hard(), hard()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-6)
    if kind == "control":
        net[1].steer(HARD, HARD, Adaptive(0.1, every=5))
    run = OneShot(net, optimizer, cycles=2) if kind == "oneshot" else Descent(net, optimizer)
    x, label = examples()
    with lpnet.exact(true):
        cross_entropy(true(x), label).backward()
    progress = run.step(x, label)
    assert (progress.exact, progress.diverged, progress.gradient_error) == (True, True, 0.0)
    for p, q in zip(net.parameters(), true.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)  # type: ignore[arg-type]
    if kind == "control":
        later = [run.step(x, label) for _ in range(7)]
        assert [p.diverged for p in later] == [False] * 5 + [True, False]  # the exact chain for a while, another try
        assert all(p.exact for p in later)


def test_a_line_search_takes_the_function_of_its_gradient() -> None:
    """Where the gradient is that of the exact chain, so are the values along the line."""
    net = hard()
    run = Descent(net, lpnet.optim.LBFGS(net.parameters()))
    x, label = examples()
    run.evaluate(x, label)
    named = SimpleNamespace(trunk=net[1], built_from=SimpleNamespace(control=Adaptive(plan_ranks=4)))
    work = critical_path(named)  # type: ignore[arg-type]
    with lpnet.exact(net), torch.no_grad():
        true = cross_entropy(net(x), label)
    assert torch.equal(run._objective(), true)
    assert critical_path(named) == work  # type: ignore[arg-type]
    assert net[1].info.forward.solver == "serial"
    assert not net[1].info.forward.diverged  # it was not tried again


def test_training_counts_steps_and_warns_of_them_ever_more_rarely() -> None:
    given = ("--solver.forward.cycles=2", "--trunk.T=60", "--trunk.layers=48", "--optimizer.lr=1e-9")
    net, data = training_network(*given)
    with torch.no_grad():
        for p in net.trunk.parameters():
            p.copy_(4.0 * torch.randn(p.shape, dtype=F64, generator=torch.Generator().manual_seed(1)))
    said: list[str] = []

    class Told(Silent):
        def warn(self, message: str) -> None:
            said.append(message)

    log = Told()
    record = fit(net, data, log)
    assert [r["diverged"] for r in log.records] == [True] * 6
    assert record["diverged_steps"] == record["serial_steps"] == 6
    line = "the cycles of a solve lead nowhere; the exact chain was done in their place"
    assert said == [
        f"step 1: {line}",
        f"step 2: {line} (2 steps of the run by now)",
        f"step 4: {line} (4 steps of the run by now)",
    ]
    exact = cost.critical_path(net.trunk.stepper, 48, 32, Serial(), Serial()).total
    assert all(exact < r["critical_path"] < 2 * exact for r in log.records)
