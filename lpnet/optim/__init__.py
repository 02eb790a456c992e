"""Optimizers that know which parameters are sharded over the layers."""

from lpnet.optim.lbfgs import LBFGS, Report
from lpnet.optim.linesearch import Armijo, Result

__all__ = ["LBFGS", "Armijo", "Report", "Result"]
