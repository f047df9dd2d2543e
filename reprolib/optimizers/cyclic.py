"""L-BFGS on one block of the variables after the other, over a leading trial axis."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reprolib.optimizers.lbfgs import LBFGS, BatchedLBFGS
from reprolib.optimizers.minimum import Minimum, Objective


class CyclicLBFGS:
    """L-BFGS on one block of the variables at a time: `step()` takes an outer step on the next block, others frozen.

    start: [T, N]. blocks: the columns of each block. Every block has an optimiser of its own, whose memory is kept
    between visits and so describes an objective that has changed since (the paper leaves it open).
    """

    def __init__(self, objective: Objective, start: Tensor, blocks: Sequence[Tensor], settings: LBFGS) -> None:
        self.objective, self.blocks = objective, blocks
        self.x = start.clone()
        self.minimum = Minimum.start(start)
        self.optimizers = [
            BatchedLBFGS(self._restricted_to(columns), start[:, columns], settings) for columns in blocks
        ]
        self.visits = 0
        self.stopped = torch.zeros_like(self.minimum.diverged)
        self._observe(self.optimizers[0], self._everyone())

    def _restricted_to(self, columns: Tensor) -> Objective:
        def objective(block: Tensor, trials: Tensor) -> tuple[Tensor, Tensor]:
            x = self.x[trials].index_copy(1, columns, block)
            value, gradient = self.objective(x, trials)
            return value, gradient[:, columns]

        return objective

    @property
    def alive(self) -> Tensor:
        """[T] bool: the trials that still run."""
        return ~self.stopped & ~self.minimum.diverged

    def stop(self, trials: Tensor) -> None:
        """End the named trials where they are."""
        self.stopped[trials] = True
        for optimizer in self.optimizers:
            optimizer.stop(trials)

    def restart(self, trials: Tensor, x: Tensor) -> None:
        """Begin the named trials anew at x [R, N], on the block whose turn it is."""
        self.x[trials], self.stopped[trials] = x, False
        self.minimum.renew(trials, x)
        for columns, optimizer in zip(self.blocks, self.optimizers, strict=True):
            optimizer.restart(trials, x[:, columns])
        self._observe(self.optimizers[0], trials)

    def compact(self) -> None:
        """Nothing to drop: a block that has converged runs again when the others have moved."""

    def step(self) -> None:
        """One outer step of every running trial on the next block."""
        turn = self.visits % len(self.blocks)
        optimizer = self.optimizers[turn]
        optimizer.refresh()
        optimizer.step()
        self.x[:, self.blocks[turn]] = optimizer.minimum.last
        self.visits += 1
        self._observe(optimizer, self._everyone())
        if self.minimum.diverged.any():
            self.stop(self.minimum.diverged.nonzero()[:, 0])

    def _everyone(self) -> Tensor:
        return torch.arange(len(self.x), device=self.x.device)

    def _observe(self, optimizer: BatchedLBFGS, trials: Tensor) -> None:
        seen = optimizer.minimum
        self.minimum.observe(trials, self.x[trials], seen.objective[trials], ~seen.diverged[trials])
        self.minimum.evaluations = sum(o.minimum.evaluations for o in self.optimizers)  # type: ignore[assignment]
