"""Searches for a minimum, each over a leading trial axis: L-BFGS, Adam and its relatives, RMSprop, CMA-ES.

They know nothing of images and gradients: an objective is a function of a row.
"""

from reprolib.optimizers.adam import adam, langevin_adam, ramp, signed_adam, warm_cosine
from reprolib.optimizers.cyclic import CyclicLBFGS
from reprolib.optimizers.evolution import cma_es
from reprolib.optimizers.lbfgs import LBFGS, BatchedLBFGS, lbfgs, rows_that_fit
from reprolib.optimizers.minimum import Minimum, Objective
from reprolib.optimizers.rmsprop import rmsprop

__all__ = [
    "LBFGS",
    "BatchedLBFGS",
    "CyclicLBFGS",
    "Minimum",
    "Objective",
    "adam",
    "cma_es",
    "langevin_adam",
    "lbfgs",
    "ramp",
    "rmsprop",
    "rows_that_fit",
    "signed_adam",
    "warm_cosine",
]
