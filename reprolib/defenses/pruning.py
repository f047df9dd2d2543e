"""Pruning: only the largest entries of the gradient are shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.defenses.base import Defense, count_of, flattened, unflattened
from reprolib.federated.observation import Observation, by_trial
from reprolib.federated.update import SharedUpdate

Scope = Literal["tensor", "global", "weights"]


@dataclass(frozen=True)
class TopK(Defense):
    """Zero the smallest entries by magnitude: exactly floor(prune_ratio x n) of n, the others unchanged.

    scope: "tensor" prunes each parameter's gradient by the ratio; "weights" does so for those of two dimensions and
    more, and leaves the vectors (biases, batch norm) whole; "global" ranks all entries of the update together, which
    can empty whole layers. Among equal magnitudes the earlier entries go first: with a threshold instead, ties
    (dead ReLUs) would decide how many are kept.
    Errors: ValueError for a ratio outside [0, 1) or another scope, listing the known ones.
    Source: DLG, section 5.2.
    """

    prune_ratio: Annotated[float, settings.Range(0, 1, below=True, note="it is the share of entries set to zero")]
    scope: Scope = "tensor"

    def __str__(self) -> str:
        where = {"tensor": "", "global": " globally", "weights": " of the weights"}[self.scope]
        return f"pruning {100 * self.prune_ratio:.4g}%{where}"

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if self.prune_ratio == 0:
            return gradients
        if self.scope == "global":
            return unflattened(self._prune(flattened(gradients)), gradients)
        return {
            name: self._prune(g.flatten()).view(g.shape) if self._prunes(g.ndim) else g for name, g in gradients.items()
        }

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """A zero says only that the entry is no larger than the smallest kept one: up to there it costs nothing."""
        magnitudes = {name: by_trial(g.abs()) for name, g in update.gradients.items()}
        if self.scope == "global":
            smallest = dict.fromkeys(magnitudes, self._smallest_kept(torch.cat(list(magnitudes.values()), 1)))
        else:
            smallest = {name: self._smallest_kept(m) for name, m in magnitudes.items()}
        slack = {}
        for name, g in update.gradients.items():
            if not self._prunes(g.ndim - 1):
                continue
            bound = smallest[name].view(-1, *[1] * (g.ndim - 1)) * abs(update.scale)
            slack[name] = torch.where(g == 0, bound, 0.0)
        return Observation(target=update.as_gradients(), slack=slack)

    def _prunes(self, dimensions: int) -> bool:
        return self.scope != "weights" or dimensions > 1

    def _prune(self, flat: Tensor) -> Tensor:
        count = count_of(self.prune_ratio, flat.numel())
        if count == 0:
            return flat
        magnitude = flat.abs()
        largest = _smallest(magnitude, count)  # of those that go
        gone = magnitude < largest
        ties = (magnitude == largest).nonzero()[:, 0]
        gone[ties[: count - int(gone.sum())]] = True
        return flat.masked_fill(gone, 0.0)

    def _smallest_kept(self, magnitudes: Tensor) -> Tensor:
        """[T, n] -> [T]. The entry after the pruned ones in ascending order, and so 0 where a kept entry is 0."""
        return magnitudes.kthvalue(count_of(self.prune_ratio, magnitudes.shape[1]) + 1, dim=1).values


def _smallest(values: Tensor, k: int) -> Tensor:
    """The k-th smallest of a vector. On a CPU numpy finds it 60 times as fast as a sort, 8 times as torch's own."""
    if values.is_cuda:
        return values.kthvalue(k).values
    return torch.from_numpy(np.partition(values.numpy(), k - 1)[k - 1 : k])
