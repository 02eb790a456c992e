"""Laws of a trunk's parameters and options: what comes into their place is checked, marked and used, or refused."""

import copy
import io
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from gradients import WIDTH, assert_gradients, data, gradients
from reference import error, twin
from torch import nn

import lpnet
from lpnet import MGRIT, InputError, Serial
from lpnet.module import LayerParallel
from lpnet.sharded import comm_of, slab_of
from lpnet.slab import Comm, Slab
from lpnet.weights import ROWS

SOLVERS = MGRIT(coarsening=3, cycles=8), MGRIT(coarsening=3, cycles=8)


def nested() -> LayerParallel:
    """A trunk whose weights have paths."""
    layer = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
    return LayerParallel(layer, 9, 1.0, forward=SOLVERS[0], adjoint=SOLVERS[1], comm=Comm(), dtype=torch.float64)


def marked(trunk: LayerParallel) -> bool:
    return all(slab_of(p) is trunk.grid.slab and comm_of(p) is trunk.comm for p in trunk.parameters())


# ---- parameters in the place of others -------------------------------------------------------------------------------


def _assigned(trunk: LayerParallel) -> None:
    trunk.K = nn.Parameter(2 * trunk.K.detach())


def _registered(trunk: LayerParallel) -> None:
    trunk.register_parameter("b", nn.Parameter(2 * trunk.b.detach()))


def _anew(trunk: LayerParallel) -> None:
    value = 2 * trunk.K.detach()
    del trunk.K
    trunk.K = nn.Parameter(value)


def _loaded(trunk: LayerParallel) -> None:
    trunk.load_state_dict({n: nn.Parameter(2 * p.detach()) for n, p in trunk.theta.items()}, assign=True)


@pytest.mark.parametrize("replace", [_assigned, _registered, _anew, _loaded])
@pytest.mark.parametrize("copied", [False, True])
def test_parameters_that_come_in_are_marked_and_used(replace: Any, copied: bool) -> None:
    trunk = twin("dense", 9, *SOLVERS)
    gradients(trunk, *data())
    trunk = copy.deepcopy(trunk) if copied else trunk
    before = {n: p.detach().clone() for n, p in trunk.theta.items()}
    replace(trunk)
    assert any(not torch.equal(p, before[n]) for n, p in trunk.theta.items())
    assert marked(trunk)
    trunk.zero_grad()
    assert_gradients(trunk)
    with pytest.raises(InputError, match="LBFGS"):
        torch.optim.LBFGS(trunk.parameters()).step(lambda: torch.zeros(()))


def test_parameters_of_parts_are_marked() -> None:
    trunk = nested()
    for one in (trunk, copy.deepcopy(trunk)):
        part = one.get_submodule("0")
        part.weight = nn.Parameter(2 * part.weight.detach())
        assert marked(one)
        assert_gradients(one)
        one.zero_grad()
        with pytest.raises(InputError, match=r"^0.weight: .* given, .* allowed$"):
            part.weight = nn.Parameter(part.weight.detach()[1:])


def test_parameters_beside_the_layers_are_left_alone() -> None:
    trunk = twin("dense", 9)
    trunk.extra = nn.Parameter(torch.zeros(3))
    assert slab_of(trunk.extra) is None
    assert set(trunk.theta) == {"K", "b"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda K: None, r"None given, \(9, 4, 4\) \(layers 0 to 8 of 9, on this rank\) allowed"),
        (lambda K: nn.Parameter(K[1:]), r"a parameter of shape \(8, 4, 4\) given, \(9, 4, 4\) .* allowed"),
        (lambda K: nn.Parameter(K[0]), r"a parameter of shape \(4, 4\) given, .* allowed"),
        (lambda K: nn.Parameter(K.float()), r"torch.float32 given, torch.float64 \(that of the trunk\) allowed"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(given: Any, words: str) -> None:
    trunk = twin("dense", 9)
    before = trunk.K
    with pytest.raises(InputError, match=rf"^K: {words}$"):
        trunk.K = given(trunk.K.detach())
    assert trunk.K is before


# ---- types -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.complex64])
@pytest.mark.parametrize("kind", ["dense", "nested"])
@pytest.mark.filterwarnings("ignore:Complex modules")
def test_types_that_the_constructor_refuses(dtype: torch.dtype, kind: str) -> None:
    trunk, (y, _) = nested() if kind == "nested" else twin("dense", 9), data()
    before = trunk(y).detach()
    with pytest.raises(InputError, match=rf"^dtype: {dtype} given, torch.float32 or torch.float64 allowed$"):
        nn.Sequential(trunk).to(dtype)
    assert torch.equal(trunk(y), before)  # nothing has changed
    with pytest.raises(RuntimeError, match=rf"{dtype} given, torch.float64 \(that of the trunk\) allowed"):
        trunk.load_state_dict({n: p.to(dtype) for n, p in trunk.state_dict().items()}, assign=True)


def test_numbers_as_weights_can_change_their_type() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Parameter(torch.tensor(0.5))

        def forward(self, y: torch.Tensor) -> torch.Tensor:
            return self.a * y

    assert LayerParallel(Scaled(), 4, 1.0, comm=Comm()).double()(data()[0]).dtype == torch.float64


# ---- options ---------------------------------------------------------------------------------------------------------


FIXED = ["layers", "T", "h", "seed", "stepper", "store", "gradient", "controls", "grid", "comm"]


@pytest.mark.parametrize("name", FIXED)
def test_fixed_attributes(name: str) -> None:
    trunk = twin("dense", 9)
    with pytest.raises(InputError, match=rf"^{name}: .* given to a trunk that is made, only a new .* allowed$"):
        setattr(trunk, name, getattr(trunk, name))


@pytest.mark.parametrize("name", ["forward_solver", "adjoint_solver", "control"])
def test_solvers_are_steered(name: str) -> None:
    trunk, (y, _) = twin("dense", 9), data()
    with pytest.raises(InputError, match=rf"^{name}: .* given to a trunk that is made, trunk.steer\(.*\) allowed$"):
        setattr(trunk, name, None)
    trunk.steer(MGRIT(coarsening=3, cycles=2), Serial(), lpnet.Adaptive(0.1))
    assert (trunk.forward_solver, trunk.control) == (MGRIT(coarsening=3, cycles=2), lpnet.Adaptive(0.1))
    assert isinstance(copy.deepcopy(trunk).control, lpnet.Adaptive)
    trunk(y)
    assert trunk.info.forward is not None
    assert trunk.info.forward.solver == "mgrit"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((MGRIT(passes=5), Serial(), None), "passes"),
        ((MGRIT(tol=1e-3), Serial(), lpnet.Adaptive()), "tol"),
        (("mgrit", Serial(), None), "forward"),
        ((Serial(), None, None), "adjoint"),
        ((Serial(), Serial(), 0.05), "control"),
    ],
)
def test_a_trunk_that_cannot_be_steered_stays_as_it_was(given: Any, words: str) -> None:
    trunk = LayerParallel(lpnet.dynamics.Dense(WIDTH), 9, 1.0, lpnet.steppers.RK4(), comm=Comm())
    before = trunk.forward_solver, trunk.adjoint_solver, trunk.control, trunk.memory
    with pytest.raises(InputError, match=words):
        trunk.steer(*given)
    assert (trunk.forward_solver, trunk.adjoint_solver, trunk.control, trunk.memory) == before


# ---- state dicts and files -------------------------------------------------------------------------------------------


def of_rank(rank: int, layers: int, ranks: int) -> LayerParallel:
    """A trunk with the slab of some rank, to load and save."""
    one = Comm()
    one.rank, one.size = rank, ranks
    return LayerParallel(lpnet.dynamics.Dense(WIDTH), layers, 1.0, comm=one, forward=Serial(), adjoint=Serial())


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()))


@pytest.mark.filterwarnings("ignore:lpnet")
@pytest.mark.parametrize(("layers", "ranks"), [(8, 2), (9, 2), (2, 3), (1, 3)])
def test_layers_of_another_rank_are_refused(layers: int, ranks: int) -> None:
    trunks = [nn.Sequential(of_rank(rank, layers, ranks)) for rank in range(ranks)]
    for source in trunks:
        state = through_a_file(source.state_dict())
        for trunk in trunks:
            rows, theirs = trunk[0].local_layers, source[0].local_layers
            if theirs in (rows, range(layers)):
                trunk.load_state_dict(state)
                continue
            before = trunk[0].K.detach().clone()
            with pytest.raises(InputError, match=r"^state dict: .*layers.* another rank.*gather_state_dict\(\) "):
                trunk.load_state_dict(state, strict=False)
            assert torch.equal(trunk[0].K, before)


def test_all_layers_load_on_any_rank_and_dicts_without_a_note_as_before() -> None:
    whole = twin("dense", 8)
    for rank in (0, 1):
        half = of_rank(rank, 8, 2).double()
        rows = half.local_layers
        mine = {n: p[rows.start : rows.stop] for n, p in whole.state_dict().items()}
        for state in (whole.state_dict(), whole.gather_state_dict(), dict(whole.state_dict()), mine):
            half.load_state_dict(state)
            assert error(half.K.detach(), whole.K.detach()[rows.start : rows.stop]) == 0
            with torch.no_grad():
                half.K.zero_()
        old = OrderedDict(mine)
        old._metadata = {"": {"version": 1, "lpnet_grid": "layers"}}  # type: ignore[attr-defined]
        half.load_state_dict(old)
        with pytest.raises(InputError, match=r"^state dict: weights of 4 layers given, 8 allowed$"):
            half.load_state_dict(twin("dense", 4).state_dict())  # as many as this rank has
    assert whole.state_dict()._metadata[""][ROWS] == (0, 8, 8)


def test_a_trunk_on_one_rank_goes_through_pickle() -> None:
    trunk, (y, _) = twin("dense", 9), data()
    made = pickle.loads(pickle.dumps(trunk))
    assert torch.equal(made(y), trunk(y))
    assert marked(made)
    assert isinstance(made.grid.slab, Slab)
