"""The experiments of the field: `python -m lpnet.experiments NAME` draws one picture and writes its numbers.

Each module holds one experiment, `run(context) -> Result`; `REGISTRY` lists them in the order of the gallery. They run
on any number of ranks with the same numbers to rounding; rank 0 draws and writes.
"""

from lpnet.experiments.base import Context, Experiment, Result
from lpnet.experiments.registry import REGISTRY

__all__ = ["REGISTRY", "Context", "Experiment", "Result"]
