"""What a run would take, before it is started: slabs, levels, memory, messages, time (``lpnet.train --dry-run``)."""

from lpnet.dryrun.footprint import Edges, Footprint, footprint
from lpnet.dryrun.forecast import LARGEST, Forecast, Level, Messages, Point, forecast
from lpnet.dryrun.specimen import Rest
from lpnet.dryrun.subject import Subject
from lpnet.dryrun.walk import Walk

__all__ = [
    "LARGEST",
    "Edges",
    "Footprint",
    "Forecast",
    "Level",
    "Messages",
    "Point",
    "Rest",
    "Subject",
    "Walk",
    "footprint",
    "forecast",
]
