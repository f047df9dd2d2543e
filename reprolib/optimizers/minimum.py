"""What a search over a leading trial axis minimises, and what it has found so far."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(eq=False)
class Minimum:
    """Where each trial ended. `last` is the last finite point, `best` the one of the smallest objective seen.

    last, best: [T, N]. objective, best_objective: [T] at these points. evaluations: [T], gradients of the objective
    spent. converged: no further step would move. diverged: the objective or its gradient stopped being finite.
    """

    last: Tensor
    best: Tensor
    objective: Tensor
    best_objective: Tensor
    evaluations: Tensor
    converged: Tensor
    diverged: Tensor

    @classmethod
    def start(cls, x: Tensor) -> Minimum:
        infinite = x.new_full(x.shape[:1], math.inf)
        none = torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
        count = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        return cls(x.clone(), x.clone(), infinite, infinite.clone(), count, none, none.clone())

    def renew(self, trials: Tensor, x: Tensor) -> None:
        """Forget where the named trials came and put them at x; what they have spent stays."""
        self.last[trials], self.best[trials] = x, x
        self.objective[trials], self.best_objective[trials] = math.inf, math.inf
        self.converged[trials], self.diverged[trials] = False, False

    def observe(self, trials: Tensor, x: Tensor, value: Tensor, finite: Tensor) -> None:
        """Note the points of `trials` after a move; a point that is not finite ends its trial as diverged."""
        good = trials[finite]
        self.last[good], self.objective[good] = x[finite], value[finite]
        better = finite & (value < self.best_objective[trials])
        self.best[trials[better]], self.best_objective[trials[better]] = x[better], value[better]
        self.diverged[trials[~finite]] = True
