"""Optimizers that know which parameters are sharded over the layers."""

from lpnet.optim.chain import Chain, split
from lpnet.optim.gaussnewton import GaussNewton
from lpnet.optim.lbfgs import LBFGS, Report
from lpnet.optim.linesearch import Armijo, Result, Wolfe
from lpnet.optim.ncg import NonlinearCG
from lpnet.optim.pcg import PCG
from lpnet.optim.precondition import DCT
from lpnet.optim.problem import Problem

__all__ = [
    "DCT",
    "LBFGS",
    "PCG",
    "Armijo",
    "Chain",
    "GaussNewton",
    "NonlinearCG",
    "Problem",
    "Report",
    "Result",
    "Wolfe",
    "split",
]
