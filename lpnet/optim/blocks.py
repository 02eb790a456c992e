"""Gauss–Newton–PCG in the weights θ of a network whose classifier M has a method of its own (`lpnet.optim.head`)."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import nn
from torch.nn.functional import cross_entropy

from lpnet.optim.gaussnewton import GaussNewton
from lpnet.optim.head import Misfit, divide
from lpnet.regularizers import Penalty


class TwoBlocks(GaussNewton):
    """Base of the methods for θ and M.

    Args:
        net: see `lpnet.optim.head.divide`.
        penalties: are added; of the classifier only `regularizers.Quadratic`.
        tol, most: for the classifier, see `lpnet.optim.classifier.solve`.
        options: of `GaussNewton`: lr, pcg, search, cap, preconditioner, parameters.

    Attributes:
        loss: of the features; its `report` is of the last solve for the classifier.

    Raises:
        InputError: a net without a classifier behind the trunk, or a value that is not allowed.
    """

    misfit: ClassVar[type[Misfit]] = Misfit

    def __init__(
        self, net: nn.Module, penalties: Sequence[Penalty] = (), tol: float = 1e-8, most: int = 50, **options: Any
    ) -> None:
        head = divide(net, penalties)
        super().__init__(head.net, penalties=head.penalties, loss=self.misfit(head, tol, most), **options)
        self.whole, self.criterion = net, cross_entropy
