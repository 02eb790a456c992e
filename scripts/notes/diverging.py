"""When residuals that grow over the cycles mean a useless gradient: where `lpnet.residuals.LOST` comes from.

    python scripts/notes/diverging.py [--layers 256]

Networks of width 8, rough and smooth, trained on peaks and not, with weights up to four times as large; every solve
of a few coarsenings, levels, samples and numbers of cycles is compared with the exact gradient. Prints how many
residuals grew, to what, and the least gradient error among these.
"""

import argparse
import itertools
import math
import warnings
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import lpnet
from lpnet import MGRIT, Serial, residuals
from lpnet.data import DataOptions, load
from lpnet.options import SolverOptions
from lpnet.slab import Comm

WIDTH, F64 = 8, torch.float64
PLACES = (0.0, 1e-3, 1e-2, 0.1, 0.3, 1.0, math.inf)
KINDS: dict[str, tuple[Any, Any]] = {
    "dense": (lpnet.dynamics.Dense, lpnet.steppers.Euler()),
    "antisymmetric": (lpnet.dynamics.Antisymmetric, lpnet.steppers.Euler()),
    "hamiltonian": (lpnet.dynamics.Hamiltonian, lpnet.steppers.Verlet()),
}
SOLVERS = [
    *(MGRIT(coarsening=m, levels=L, samples=s) for m, L, s in itertools.product((8, 32), (2, 3), (1, 4))),
    MGRIT(coarsening=16, relaxation="FCF"),
    MGRIT(coarsening=16, coarse="rediscretized", coarse_weights="inject"),
]


def network(kind: str, layers: int, T: float, init: Any, x: Tensor, label: Tensor, steps: int) -> nn.Sequential:
    """Trained by so many exact steps."""
    torch.manual_seed(3)
    dynamics, stepper = KINDS[kind]
    trunk = lpnet.LayerParallel(
        dynamics(WIDTH), layers, T, stepper, Serial(), Serial(), seed=1, comm=Comm(), init=init, dtype=F64
    )
    net = nn.Sequential(nn.Linear(2, WIDTH, dtype=F64), trunk, nn.Linear(WIDTH, 5, dtype=F64))
    optimizer = torch.optim.Adam(net.parameters(), 0.02)
    for _ in range(steps):
        gradient(net, x, label, Serial())
        optimizer.step()
    return net


def gradient(net: nn.Sequential, x: Tensor, label: Tensor, solver: SolverOptions) -> tuple[Tensor, list[list[float]]]:
    """All gradients in one, and the residuals of both solves."""
    trunk: Any = net[1]
    trunk.steer(solver, solver, None)
    net.zero_grad()
    cross_entropy(net(x), label).backward()
    whole = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
    return whole.clone(), [list(info.residuals) for info in (trunk.info.forward, trunk.info.adjoint)]


def solves(layers: int) -> Iterator[tuple[list[list[float]], float]]:
    """Residuals and gradient error of each solve."""
    found = load(DataOptions(name="peaks", train=60, validation=10), 0)
    x, label = torch.as_tensor(found.train_x, dtype=F64), torch.as_tensor(found.train_y)
    x = (x - x.mean(0)) / x.std(0)
    starts = (("constant", 100), ("random", 100), ("random", 0))
    for kind, T, (init, steps) in itertools.product(KINDS, (5.0, 20.0), starts):
        net = network(kind, layers, T, init, x, label, steps)
        for _ in range(3):
            true, _ = gradient(net, x, label, Serial())
            for solver, cycles in itertools.product(SOLVERS, (1, 2, 5)):
                one, both = gradient(net, x, label, solver.with_cycles(cycles))
                yield both, float((one - true).norm() / true.norm())
            with torch.no_grad():
                for p in net[1].parameters():
                    p.mul_(2.0)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=256)
    layers = parser.parse_args().layers
    residuals.LOST = math.inf  # so that what diverges is left as it is
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", UserWarning)  # of the stability of such weights
    rows = list(solves(layers))
    grown = [(max(b[-1] for b in both if b[-1] > b[0]), e) for both, e in rows if any(b[-1] > b[0] for b in both)]
    wrong = sum(e > 1 for both, e in rows if not any(b[-1] > b[0] for b in both))
    rest = len(rows) - len(grown)
    print(f"{len(rows)} solves forward and back; of {rest} whose residuals do not grow, {wrong} have an error above 1")
    for low, high in pairwise(PLACES):
        errors = sorted(e for last, e in grown if low <= last < high)
        if errors:
            least, median = errors[0], errors[len(errors) // 2]
            print(f"{len(errors)} grow to [{low:g}, {high:g}): errors at least {least:.2g}, median {median:.2g}")


if __name__ == "__main__":
    main()
