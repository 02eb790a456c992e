"""All that the steps of a training change, as a checkpoint holds it: what comes after depends on it alone.

Weights, optimizer and schedule are as `lpnet.checkpoint.states` has them. Besides:

    good/trunk/K        the last weights whose loss was finite; good/optimizer/… what the optimizer had kept with them
    warm/…              what the next solves start from (`lpnet.training.warm`)
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from lpnet.checkpoint import generators, states
from lpnet.checkpoint.content import Content, Rows
from lpnet.checkpoint.stored import Stored, believed
from lpnet.module import LayerParallel
from lpnet.network import Network
from lpnet.oneshot import Descent, OneShot
from lpnet.optim import GaussNewton
from lpnet.optim.agreement import Agreed
from lpnet.optim.bcd import Held
from lpnet.sharded import slab_of
from lpnet.training import warm
from lpnet.training.course import Course
from lpnet.training.examples import Tensors
from lpnet.training.good import Good
from lpnet.training.objective import optimizer_of

_GOOD = "good/optimizer"


@dataclass
class State:
    """What one level of a training works with.

    Args:
        net: is trained.
        data: the examples.
        course: where the training stands.
        descent: its method.
        good: what it goes back to when numbers stop being finite.
    """

    net: Network
    data: Tensors
    course: Course
    descent: Descent
    good: Good

    def content(self, warm_states: bool) -> Content:
        """For a checkpoint, with what the next solves start from or without; collective."""
        net, course = self.net, self.course
        found = states.of_net(net) | states.of_optimizer(course.optimizer, net) | states.of_schedule(course.schedule)
        for path, p, value in self._good():
            if slab_of(p) is None:
                found.whole[path] = value
            else:
                found.rows[path] = Rows(value)
        if self.good.whole:
            found |= states.of_optimizer(course.optimizer, net, self.good, _GOOD)
        found.meta |= {"course": course.state(), "trunk": of_trunk(net.trunk), "method": of_method(self.descent)}
        found.meta["moved"] = self.good.moved
        return found | generators.content() | (warm.content(net.trunk) if warm_states else Content())

    def restore(self, stored: Stored) -> None:
        """Go on from there, on any number of ranks; collective.

        Raises:
            InputError: it is a checkpoint of another training.
        """
        net, course = self.net, self.course
        with believed(stored, f"it is of another training, or lpnet {stored.writer} wrote another form"):
            puts = [
                states.for_net(stored, net),
                states.for_optimizer(stored, course.optimizer, net),
                states.for_schedule(stored, course.schedule),
            ]
            for put in puts:
                put()
            for path, p, value in self._good():
                value.copy_(states.taken(stored, path, value, p))
            self.good.moved = bool(stored.meta["moved"])
            if self.good.whole and "good" in stored.meta:
                states.for_optimizer(stored, course.optimizer, net, self.good, _GOOD)()
            elif self.good.whole:
                self._keep_optimizer()
            course.restore(stored.meta["course"], net, self.data)
            into_trunk(stored.meta["trunk"], net.trunk)
            into_method(stored.meta["method"], self.descent, self.data)
            generators.restoring(stored)()
            if "warm" in stored.meta:
                warm.restore(stored, net.trunk)

    def _keep_optimizer(self) -> None:
        """The run was to stop until now: there is only what the optimizer had an update later; collective.

        Or nothing: where that has numbers which are not finite, no step from there would be any better.
        """
        self.good.keep_optimizer()
        if self.net.trunk.comm.agree(int(not self.good.optimizer_is_finite())):
            self.good.begin_optimizer(optimizer_of(self.net))

    def _good(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        for (name, p), value in zip(self.net.named_parameters(), self.good.weights, strict=True):
            yield f"good/{name.replace('.', '/')}", p, value


# ---- trunks and methods --------------------------------------------------------------------------------------------


def of_trunk(trunk: LayerParallel) -> dict[str, Any]:
    """What a trunk has learnt and counted beside its weights; collective."""
    comm, watch, control = trunk.comm, trunk._watch.state(), trunk._controller
    mine = np.array([[trunk.info.layer_evaluations, watch["undone"]]])
    evaluated, undone = comm.allgather(mine, [1] * comm.size).sum(axis=0).tolist()
    return {
        "drawn": trunk._drawn,
        "layer_evaluations": evaluated,
        "watch": watch | {"undone": bool(undone)},
        "control": None if control is None else control.state(),
    }


def into_trunk(state: Mapping[str, Any], trunk: LayerParallel) -> None:
    """Go on from there; what was counted on all ranks is counted on the first."""
    trunk._drawn, evaluated = int(state["drawn"]), int(state["layer_evaluations"])
    trunk.info.layer_evaluations = evaluated if trunk.comm.rank == 0 else 0
    trunk._watch.restore(_like(state["watch"], trunk._watch.state()))
    if trunk._controller is not None:
        trunk._controller.restore(_like(state["control"], trunk._controller.state()))


def _like(state: Mapping[str, Any], own: Mapping[str, Any]) -> Mapping[str, Any]:
    """The state, if its values are of the same types as those of a new one; None may have become anything."""
    if state.keys() != own.keys() or any(type(state[k]) is not type(own[k]) for k in own if own[k] is not None):
        raise ValueError("of another form")
    return state


def of_method(descent: Descent) -> dict[str, Any]:
    """What a method and an optimizer of lpnet keep beside the state that optimizers of torch have, too."""
    found: dict[str, Any] = {}
    if isinstance(descent, OneShot):
        found |= {"first_norm": descent.first_norm, "begun": descent.previous is not None}
    if isinstance(descent.loss, Agreed):
        found["known"] = descent.loss.known
    if isinstance(descent.optimizer, GaussNewton):
        found["compared"] = descent.optimizer.compared
        if isinstance(descent.optimizer.loss, Held):
            found["due"] = descent.optimizer.loss.due
    return found


def into_method(state: Mapping[str, Any], descent: Descent, data: Tensors) -> None:
    """Go on from there; without mini-batches each step has all examples."""
    state = _like(state, of_method(descent))
    if isinstance(descent, OneShot):
        descent.first_norm = state["first_norm"]
        descent.previous = data.train_x.detach().clone() if state["begun"] else None
    if isinstance(descent.loss, Agreed):
        descent.loss.known = state["known"]
    if isinstance(descent.optimizer, GaussNewton):
        descent.optimizer.compared = state["compared"]
        if isinstance(descent.optimizer.loss, Held):
            descent.optimizer.loss.due = state["due"]
