"""Multilevel (cascadic) training: from few layers to many, with the weights prolongated linearly in time."""

from lpnet.multilevel.cascade import Ascent, Cascade, Level, halved
from lpnet.multilevel.options import Multilevel, coarser
from lpnet.multilevel.prolong import prolongate, prolongate_net
from lpnet.multilevel.state import prolongate_state

__all__ = [
    "Ascent",
    "Cascade",
    "Level",
    "Multilevel",
    "coarser",
    "halved",
    "prolongate",
    "prolongate_net",
    "prolongate_state",
]
