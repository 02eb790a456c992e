"""Optimizers that know which parameters are sharded over the layers."""

from lpnet.optim.bcd import BlockCoordinateDescent
from lpnet.optim.chain import Chain, split
from lpnet.optim.gaussnewton import GaussNewton
from lpnet.optim.lbfgs import LBFGS, Report
from lpnet.optim.linesearch import Armijo, Result, Wolfe
from lpnet.optim.ncg import NonlinearCG
from lpnet.optim.pcg import PCG
from lpnet.optim.precondition import DCT
from lpnet.optim.problem import Problem
from lpnet.optim.varpro import Reduced, VariableProjection

__all__ = [
    "DCT",
    "LBFGS",
    "PCG",
    "Armijo",
    "BlockCoordinateDescent",
    "Chain",
    "GaussNewton",
    "NonlinearCG",
    "Problem",
    "Reduced",
    "Report",
    "Result",
    "VariableProjection",
    "Wolfe",
    "split",
]
