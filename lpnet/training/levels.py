"""Training on several levels, from few layers to all of them: the loop on each, and what goes on between them.

The steps, the learning rate, the order of the examples and the state of the optimizer run through all levels as if
there were one network; the weights and that state are prolongated (see `lpnet.multilevel`). The coarse points of the
solvers are the same times on all levels.
"""

import dataclasses

from torch import Tensor

from lpnet.errors import counted
from lpnet.multilevel import Ascent, Cascade, prolongate_net, prolongate_state
from lpnet.network import Network
from lpnet.training.course import Course
from lpnet.training.evaluation import predict
from lpnet.training.examples import Tensors
from lpnet.training.keeper import Keeper
from lpnet.training.loop import fit
from lpnet.training.objective import Objective, optimizer_of
from lpnet.training.records import Log, Record
from lpnet.training.updates import SCHEDULED, make_schedule


class Training:
    """Training of a network as its configuration says, on one level or on several.

    Args:
        net: of the coarsest level.
        data: the examples, equal on all ranks.
        log: is told each step.
        keeper: keeps checkpoints; None: there are none.
        ascent: how far it has come; then `net` is of the level that is under way, and the keeper has its state.

    Attributes:
        net: the network that is trained now, and at the end the finest.
    """

    def __init__(
        self, net: Network, data: Tensors, log: Log, keeper: Keeper | None = None, ascent: Ascent | None = None
    ) -> None:
        self.net, self.data, self.log, self.keeper = net, data, log, keeper
        self.ascent = Ascent() if ascent is None else ascent
        self._ends: tuple[int, ...] = ()
        self._course: Course | None = None
        self._record: Record = {}

    def run(self) -> Record:
        """Train; collective. As `loop.fit`, and `levels` with what was done on each of several levels."""
        options, layers = self.net.built_from.multilevel, self.net.built_from.trunk.layers
        if options.levels == 1:
            return fit(self.net, self.data, self.log, keeper=self.keeper)
        self._ends = options.ends(self.net.config.training.total_steps(len(self.data.train_y)))
        cascade = Cascade(options.layers(layers))
        measures = self._objective, self._accuracy
        self.net, levels = cascade.run(self.net, self._train, *measures, self._refined, self.ascent)
        return self._record | {"levels": [dataclasses.asdict(level) | {"jump": level.jump} for level in levels]}

    def _train(self, net: Network, level: int) -> None:
        coarse, self.net = self.net, net
        course = Course.of(net, self.data) if self._course is None else onward(self._course, coarse, net)
        course.until, course.level, course.converged = self._ends[level], level + 1, False
        self._course = course
        self._record = fit(net, self.data, self.log, course, self.keeper)

    def _refined(self, net: Network, layers: int) -> Network:
        solver = net.built_from.at_layers(layers).solver
        forward, adjoint = solver.forward.options("solver.forward"), solver.adjoint.options("solver.adjoint")
        return prolongate_net(net, layers, forward, adjoint)

    def _objective(self, net: Network) -> Tensor:
        return Objective(net)(predict(net, self.data.train_x), self.data.train_y)

    def _accuracy(self, net: Network) -> Tensor:
        return (predict(net, self.data.val_x).argmax(dim=1) == self.data.val_y).double().mean()


def onward(course: Course, coarse: Network, fine: Network) -> Course:
    """The course goes on with the prolongated network; collective."""
    own = type(course.optimizer).__module__.startswith("lpnet.")  # keeps no state, or one of directions
    optimizer = optimizer_of(fine) if own else prolongate_state(course.optimizer, coarse, fine)
    for group in optimizer.param_groups:  # as they were when the schedule was made for the first time
        group["lr"] = fine.config.optimizer.lr
        group.pop("initial_lr", None)
    schedule = make_schedule(fine.config.schedule, optimizer, course.steps)
    schedule.load_state_dict(course.schedule.state_dict())
    for group, before in zip(optimizer.param_groups, course.optimizer.param_groups, strict=True):
        group.update({key: before[key] for key in SCHEDULED if key in before})
    return dataclasses.replace(course, optimizer=optimizer, schedule=schedule)


def described(levels: list[Record]) -> list[str]:
    """Lines to read on what the levels did."""
    lines = []
    for level in levels:
        start = f"{level['start']:.4g}"
        if level["before"] is not None:
            start = f"{level['before']:.4g}, prolongated {start} ({level['jump']:+.1%}),"
        lines.append(
            f"{counted(level['layers'], 'layer')}: objective {start} to {level['end']:.4g}, "
            f"{level['accuracy']:.2%} validation, "
            f"work {level['work']:.4g} gradients of all layers, {level['seconds']:.1f} s"
        )
    return lines
