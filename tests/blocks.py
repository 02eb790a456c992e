"""A small classification problem in two blocks, and slow versions with the weights of the first as one vector."""

from collections.abc import Sequence

import torch
from reference import F64, normal, trunk
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lpnet import regularizers
from lpnet.regularizers import Penalty
from lpnet.slab import Comm

X = normal(12, 2, seed=3)
LABEL = (X.norm(dim=1) > 0.8).long() + (X.norm(dim=1) > 1.5).long()  # rings
DECAY, TIKHONOV = 1e-2, 1e-2


def network(layers: int = 3, comm: Comm | None = None, **more: object) -> nn.Sequential:
    """A linear layer, a trunk, a classifier, of known weights; on this rank alone, unless a communicator is given."""
    ends = [nn.Linear(2, 3, dtype=F64), nn.Linear(3, 3, dtype=F64)]
    with torch.no_grad():
        for i, p in enumerate([*ends[0].parameters(), *ends[1].parameters()]):
            p.copy_(0.7 * normal(*p.shape, seed=i))
    return nn.Sequential(ends[0], trunk("dense", layers, width=3, comm=comm or Comm(), **more), ends[1])


def penalties(net: nn.Sequential) -> Sequence[Penalty]:
    """Of the layers, of the classifier's weights, and of the opening and the classifier's bias together."""
    more = [regularizers.Quadratic(net[2].weight, DECAY), regularizers.Quadratic([net[0].weight, net[2].bias], DECAY)]
    return [regularizers.Tikhonov(net[1], TIKHONOV), *more]


class Flat:
    """E and R as functions of one vector θ of opening and layers, and of M = (W, b), by plain torch."""

    def __init__(self, net: nn.Sequential) -> None:
        self.h, self.plain = net[1].h, net[1].as_sequential()
        self.opening = dict(net[0].named_parameters())
        self.layers = [dict(one.dynamics.named_parameters()) for one in self.plain]

    @property
    def theta(self) -> Tensor:
        """In the order of the parameters of the network: opening, then K and b of all layers."""
        stacks = [torch.stack([one[name] for one in self.layers]) for name in self.layers[0]]
        return torch.cat([t.detach().flatten() for t in (*self.opening.values(), *stacks)])

    def parts(self, theta: Tensor) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        """Weights of the opening and of each layer."""
        shapes = [p.shape for p in self.opening.values()]
        shapes += [torch.Size((len(self.layers), *p.shape)) for p in self.layers[0].values()]
        found = [t.reshape(s) for t, s in zip(theta.split([s.numel() for s in shapes]), shapes, strict=True)]
        k = len(self.opening)
        stacks = dict(zip(self.layers[0], found[k:], strict=True))
        layers = [{name: t[j] for name, t in stacks.items()} for j in range(len(self.layers))]
        return dict(zip(self.opening, found[:k], strict=True)), layers

    def features(self, theta: Tensor) -> Tensor:
        opening, layers = self.parts(theta)
        y = X @ opening["weight"].T + opening["bias"]
        for w in layers:
            y = y + self.h * torch.tanh(y @ w["K"].T + w["b"])
        return y

    def logits(self, theta: Tensor, M: Tensor) -> Tensor:
        return self.features(theta) @ M[:, :-1].T + M[:, -1]

    def penalty(self, theta: Tensor, M: Tensor) -> Tensor:
        opening, layers = self.parts(theta)
        replicated = opening["weight"].square().sum() + M.square().sum()
        inside = sum(t.square().sum() for w in layers for t in w.values())
        return 0.5 * DECAY * replicated + 0.5 * TIKHONOV * self.h * inside

    def __call__(self, theta: Tensor, M: Tensor) -> Tensor:
        return cross_entropy(self.logits(theta, M), LABEL) + self.penalty(theta, M)

    def best(self, theta: Tensor, M: Tensor) -> Tensor:
        """The minimiser in M, by full steps of Newton from 0, differentiable in θ."""
        M = torch.zeros_like(M)
        for _ in range(8):
            of = lambda m: self(theta, m)  # noqa: E731
            H = torch.func.hessian(of)(M).reshape(M.numel(), M.numel())
            M = M - torch.linalg.solve(H, torch.func.grad(of)(M).flatten()).reshape(M.shape)
        return M

    def gauss_newton(self, theta: Tensor, M: Tensor) -> Tensor:
        """The Gauss–Newton matrix of (θ, M) together."""
        n, v = len(theta), torch.cat([theta, M.flatten()])
        logits = lambda v: self.logits(v[:n], v[n:].reshape(M.shape))  # noqa: E731
        u = logits(v)
        J = torch.func.jacrev(logits)(v).reshape(u.numel(), len(v))
        H = torch.func.hessian(lambda u: cross_entropy(u, LABEL))(u).reshape(u.numel(), u.numel())
        return J.T @ H @ J + torch.func.hessian(lambda v: self.penalty(v[:n], v[n:].reshape(M.shape)))(v)
