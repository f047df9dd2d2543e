"""Dual gradient pruning: the largest entries are withheld beside the smallest. Xue et al., AAAI 2024."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.defenses.base import Defense, count_of
from reprolib.federated.observation import Observation, by_trial
from reprolib.federated.update import SharedUpdate


@dataclass(frozen=True)
class DualPruning(Defense):
    """Zero the largest floor(drop_top n) and the smallest floor(drop_bottom n) entries of each parameter's gradient.

    The rest passes unchanged; among equal magnitudes the earlier entries count as smaller. While training, what was
    withheld is added to the next gradient (`utility.train` with `error_feedback`). The shares are this book's: the
    paper's were not available, nor its code.
    Errors: ValueError for shares outside [0, 1) or that leave nothing. Source: the abstract of Xue et al.
    2024 (arXiv:2401.16687).
    """

    drop_top: settings.Share = 0.05
    drop_bottom: settings.Share = 0.75

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_top + self.drop_bottom >= 1:
            raise ValueError(
                f"drop_top={self.drop_top} and drop_bottom={self.drop_bottom} leave nothing: their sum must be below 1"
            )

    def __str__(self) -> str:
        return f"pruning the top {100 * self.drop_top:.4g}% and the bottom {100 * self.drop_bottom:.4g}%"

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if self.drop_top == self.drop_bottom == 0:
            return gradients
        return {name: self._prune(g.flatten()).view(g.shape) for name, g in gradients.items()}

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """A zero is no larger than the smallest shared entry or no smaller than the largest: there it costs nothing."""
        slack, beyond = {}, {}
        for name, g in update.gradients.items():
            magnitudes = by_trial(g.abs()) * abs(update.scale)
            shape = (-1, *[1] * (g.ndim - 1))
            # where nothing at all was kept, any value fits
            smallest = magnitudes.masked_fill(magnitudes == 0, torch.inf).amin(1).view(shape)
            slack[name] = torch.where(g == 0, smallest, 0.0)
            beyond[name] = torch.where(g == 0, magnitudes.amax(1).view(shape), torch.inf)
        return Observation(target=update.as_gradients(), slack=slack, beyond=beyond)

    def _prune(self, flat: Tensor) -> Tensor:
        order = flat.abs().argsort(stable=True)
        top, bottom = (count_of(share, len(flat)) for share in (self.drop_top, self.drop_bottom))
        dropped = torch.cat([order[:bottom], order[len(flat) - top :]])
        return flat.index_fill(0, dropped, 0.0)
