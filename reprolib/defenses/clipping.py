"""Clipping: an update is shortened to a length, as a whole or a parameter at a time."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.defenses.base import Defense
from reprolib.federated.observation import Observation, by_trial
from reprolib.federated.update import SharedUpdate

Scope = Literal["global", "tensor"]


@dataclass(frozen=True)
class Clipping(Defense):
    """Share g * min(1, max_norm / |g|), the Euclidean norm taken over the whole update or over each parameter.

    Clipping each image's gradient before the mean is `DPSGD`. A global factor hides nothing from an attack that
    compares directions; only one that compares values at a fixed scale is misled.
    max_norm: positive; infinity clips nothing. scope: "global" or "tensor".
    Errors: ValueError for another norm or scope. Source: Abadi et al. 2016, section 3.1.
    """

    max_norm: settings.LengthOrInfinity
    scope: Scope = "global"

    def __str__(self) -> str:
        return f"clipping to {self.max_norm:g}" + (" a tensor" if self.scope == "tensor" else "")

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if self.max_norm == inf:
            return gradients
        shortened = clipped({name: g[None] for name, g in gradients.items()}, self.max_norm, self.scope)
        return {name: g[0] for name, g in shortened.items()}

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """The attacker shortens its dummy gradients in the same way: their scale follows in closed form."""
        limit = self.max_norm * abs(update.scale)
        return Observation(
            target=update.as_gradients(),
            of_the_mean=None if limit == inf else lambda gradients, _: clipped(gradients, limit, self.scope),
        )


def clipped(gradients: dict[str, Tensor], max_norm: float | Tensor, scope: Scope = "global") -> dict[str, Tensor]:
    """Each of N gradients shortened to max_norm where it is longer: name -> [N, *param], differentiable.

    max_norm: one length above 0 for all, or [N], one for each.
    """
    squares = {name: by_trial(g).square().sum(1) for name, g in gradients.items()}
    if scope == "global":
        squares = dict.fromkeys(squares, sum(squares.values()))
    limit = max_norm**2
    factors = {  # the clamp keeps the slope of the square root, and so that of a gradient of zero, finite
        name: torch.where(square > limit, max_norm / square.clamp(min=limit).sqrt(), 1.0)
        for name, square in squares.items()
    }
    return {name: g * factors[name].view(-1, *[1] * (g.ndim - 1)) for name, g in gradients.items()}
