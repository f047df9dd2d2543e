"""Pruning: only the largest entries of the gradient are shared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from reprolib.client import SharedUpdate
from reprolib.defenses.base import Defense, count_of, flattened, unflattened
from reprolib.matching import Observation

Scope = Literal["tensor", "global"]


@dataclass(frozen=True)
class TopK(Defense):
    """Zero the smallest entries by magnitude: exactly floor(prune_ratio x n) of n, the others unchanged.

    scope: "tensor" prunes each parameter's gradient by the ratio; "global" ranks all entries of the update together,
    which can empty whole layers. Among equal magnitudes the earlier entries go first: with a threshold instead, ties
    (dead ReLUs) would decide how many are kept.
    Errors: ValueError for a ratio outside [0, 1) or another scope, listing the known ones.
    Source: DLG, section 5.2; sheet `defenses.md` section 4.3.
    """

    prune_ratio: float
    scope: Scope = "tensor"

    def __post_init__(self) -> None:
        ratio = self.prune_ratio
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 0 <= ratio < 1:
            raise ValueError(f"prune_ratio must lie in [0, 1), got {ratio!r}; it is the share of entries set to zero")
        if self.scope not in get_args(Scope):
            raise ValueError(f"scope must be one of {', '.join(map(repr, get_args(Scope)))}, got {self.scope!r}")

    def __str__(self) -> str:
        return f"pruning {100 * self.prune_ratio:.4g}%" + (" globally" if self.scope == "global" else "")

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if self.prune_ratio == 0:
            return gradients
        if self.scope == "tensor":
            return {name: self._prune(g.flatten()).view(g.shape) for name, g in gradients.items()}
        return unflattened(self._prune(flattened(gradients)), gradients)

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """A zero says only that the entry is no larger than the smallest kept one: up to there it costs nothing."""
        magnitudes = {name: g.abs().flatten(1) for name, g in update.gradients.items()}
        if self.scope == "tensor":
            smallest = {name: self._smallest_kept(m) for name, m in magnitudes.items()}
        else:
            smallest = dict.fromkeys(magnitudes, self._smallest_kept(torch.cat(list(magnitudes.values()), 1)))
        slack = {}
        for name, g in update.gradients.items():
            bound = smallest[name].view(-1, *[1] * (g.ndim - 1)) * abs(update.scale)
            slack[name] = torch.where(g == 0, bound, 0.0)
        return Observation(target=update.as_gradients(), slack=slack)

    def _prune(self, flat: Tensor) -> Tensor:
        order = flat.abs().argsort(stable=True)
        return flat.index_fill(0, order[: count_of(self.prune_ratio, flat.numel())], 0.0)

    def _smallest_kept(self, magnitudes: Tensor) -> Tensor:
        """[T, n] -> [T]. The entry after the pruned ones in ascending order, and so 0 where a kept entry is 0."""
        return magnitudes.kthvalue(count_of(self.prune_ratio, magnitudes.shape[1]) + 1, dim=1).values
