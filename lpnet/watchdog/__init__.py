"""A run that stalls says where each rank is, and ends, instead of holding its nodes until the time is over."""

from lpnet.watchdog.beat import Beat
from lpnet.watchdog.dog import watching

__all__ = ["Beat", "watching"]
