"""Networks trained on peaks by exact gradients, with weights smooth or rough in the layer index, for docs/notes.

smooth    the weights start constant in j, and a d/dt regulariser keeps them smooth
rough     every layer starts from weights of its own, and nothing smooths them
"""

import math

import torch
from torch.nn.functional import cross_entropy, linear
from two_level import Adjoint, Forward, Net, Options, after, solve

import lpnet
from lpnet import data
from lpnet.commandline import parse
from lpnet.network import Examples, Network, build
from lpnet.regularizers import TimeDerivative
from lpnet.slab import Comm
from lpnet.training.evaluation import evaluate
from lpnet.training.examples import Tensors

SETS = {
    "smooth, T=5": {"layers": 256, "T": 5.0, "init": "constant", "ddt": 1e-4, "steps": 200},
    "rough, T=5": {"layers": 256, "T": 5.0, "init": "random", "ddt": 0.0, "steps": 180},
    "rough, T=10": {"layers": 256, "T": 10.0, "init": "random", "ddt": 0.0, "steps": 100},
    "rough, T=5, N=1024": {"layers": 1024, "T": 5.0, "init": "random", "ddt": 0.0, "steps": 160},
}
WINDOWS = {"middle": 0.4, "end": 1.0}  # where in the training the weights of 20 steps are kept


def train(
    layers: int, T: float, init: str, ddt: float, steps: int
) -> tuple[Network, list[list[Net]], dict[str, float]]:
    """Train on all 500 examples of peaks by exact gradients; the network, its windows of consecutive steps, facts."""
    exact = ["--solver.forward.kind=serial", "--solver.adjoint.kind=serial", "--run.dtype=float64"]
    sizes = ["--data.train=500", "--data.validation=500", f"--trunk.layers={layers}", f"--trunk.T={T}"]
    config = parse(["peaks", *exact, *sizes, f"--trunk.init={init}", f"--regularizer.ddt={ddt}"])
    examples = data.load(config.data, 0)
    net = build(config, Examples(examples.features, examples.classes, examples.shift, examples.scale), Comm())
    tensors = Tensors.of(examples, net.classifier.weight)
    penalty = TimeDerivative(net.trunk, ddt)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * i / steps))
    )
    history: list[Net] = []
    for _ in range(steps):
        optimizer.zero_grad()
        (cross_entropy(net(tensors.train_x), tensors.train_y) + penalty()).backward()
        optimizer.step()
        schedule.step()
        history.append(frame(net, tensors))
    K = net.trunk.theta["K"].detach()
    facts = {"accuracy": evaluate(net, tensors)["train_accuracy"], "size": K.norm(dim=(1, 2)).mean().item(),
             "jump": (K[1:] - K[:-1]).norm(dim=(1, 2)).mean().item()}  # fmt: skip
    ends = [int(part * steps) for part in WINDOWS.values()]
    return net, [history[end - 21 : end] for end in ends], facts


def frame(net: Network, tensors: Tensors) -> Net:
    """The weights as they are now."""
    with torch.no_grad():
        K, b = (net.trunk.theta[name].detach().clone() for name in ("K", "b"))
        x0 = net.opening(tensors.train_x).T.contiguous()
        W, c = (p.detach().clone() for p in (net.classifier.weight, net.classifier.bias))
    return Net(K, b[..., None], net.trunk.h, x0, W, c[:, None], tensors.train_y)


def agree(net: Network, now: Net, o: Options, cycles: int) -> float:
    """Largest difference between this file's gradients and lpnet's for the same options, relative to the gradient."""
    trunk, relaxation = net.trunk, "F" if o.relax is None else "FCF"
    kind = "inject" if o.inject else "mean"
    how = lpnet.MGRIT(o.m, 2, cycles, samples=o.s, passes=o.p, relaxation=relaxation, coarse_weights=kind)
    trunk.steer(how, how, None)
    y = now.x0.T.contiguous().requires_grad_()
    trunk.zero_grad()
    cross_entropy(linear(trunk(y), now.W, now.c[:, 0]), now.label).backward()
    f = Forward(now, o)
    _, F, _ = after(solve(f, o), cycles)
    z = Adjoint(f, now.bar(F[-1]))
    _, F, _ = after(solve(z, o), cycles)
    K, b = z.gradient()
    pairs = ((trunk.theta["K"].grad, K), (trunk.theta["b"].grad, b[..., 0]), (y.grad, F[-1].T))
    return max(((ours - theirs).norm() / theirs.norm()).item() for theirs, ours in pairs)
