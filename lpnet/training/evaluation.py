"""What a network makes of examples by exact, serial propagation, never by an inexact solve."""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from lpnet.network import Network
from lpnet.phases import phase
from lpnet.sharded import exact
from lpnet.training.examples import Tensors
from lpnet.training.records import Record

CHUNK = 2048  # examples that an exact evaluation propagates at once


def evaluate(net: Network, data: Tensors) -> Record:
    """Loss (cross entropy) and accuracy on training and validation data, by exact serial propagation; collective."""
    found: Record = {}
    for name, x, y in (("train", data.train_x, data.train_y), ("val", data.val_x, data.val_y)):
        with phase(net.trunk.comm, "exact evaluation"):
            logits = predict(net, x)
        found[f"{name}_loss"] = cross_entropy(logits.double(), y).item()
        found[f"{name}_accuracy"] = (logits.argmax(dim=1) == y).double().mean().item()
    return found


def predict(net: Network, x: Tensor) -> Tensor:
    """Logits (n, classes) of normalised features (n, features), by exact serial propagation; collective."""
    before = net.training
    net.eval()
    try:
        with exact(net), torch.no_grad():
            return torch.cat([net(part) for part in x.split(CHUNK)])
    finally:
        net.train(before)
