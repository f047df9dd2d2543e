"""What a network takes: the values that a client holds, how they enter it, and the space in which an attacker moves.

Nothing here knows of a loss or of a gradient.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Inputs(Protocol):
    """How values of one kind enter a network. shape: of one of them as it enters, and of an attacker's point."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def check(self, values: Tensor, parameter: Tensor) -> None:
        """Errors: ValueError for values of clients, [T, B, ..], that are not of this kind. parameter: of the model."""

    def enter(self, values: Tensor) -> Tensor:
        """What the network is given for these values: [.., *shape], differentiable where the values are."""

    def of_points(self, points: Tensor) -> Tensor:
        """What the network is given for an attacker's points [.., *shape]."""

    def to_points(self, entered: Tensor) -> Tensor:
        """The inverse of `of_points`."""

    def inside(self, points: Tensor) -> Tensor:
        """The nearest points that values can have."""

    def values(self, entered: Tensor) -> Tensor:
        """The values that a client would have had: the inverse of `enter`, of whatever a search ended at."""


@dataclass(frozen=True, eq=False)
class Images:
    """Pixels in [0, 1], which enter as they are; an attacker moves in units of the victim's normalisation.

    shape: (C, H, W). mean, std: broadcastable to it.
    """

    shape: tuple[int, ...]
    mean: Tensor
    std: Tensor

    def check(self, values: Tensor, parameter: Tensor) -> None:
        if values.ndim != 5 or tuple(values.shape[2:]) != self.shape:
            raise ValueError(
                f"images must have shape [trials, batch, {', '.join(map(str, self.shape))}] for this model, "
                f"got {list(values.shape)}"
            )
        if values.dtype != parameter.dtype:
            raise ValueError(f"images must be of the model's dtype {parameter.dtype}, got {values.dtype}")
        if not values.isfinite().all():
            trial = int((~values.isfinite()).flatten(1).any(1).nonzero()[0])
            raise ValueError(f"images have a NaN or infinite value in trial {trial}")
        if values.numel() and (values.min() < 0 or values.max() > 1):
            raise ValueError(
                f"images must lie in [0, 1], got values from {values.min():.4g} to {values.max():.4g}; "
                "normalisation belongs into the model's first layer"
            )

    def enter(self, values: Tensor) -> Tensor:
        return values

    def of_points(self, points: Tensor) -> Tensor:
        return points * self.std.to(points) + self.mean.to(points)

    def to_points(self, entered: Tensor) -> Tensor:
        return (entered - self.mean.to(entered)) / self.std.to(entered)

    def inside(self, points: Tensor) -> Tensor:
        mean, std = self.mean.to(points), self.std.to(points)
        return points.clamp((0 - mean) / std, (1 - mean) / std)

    def values(self, entered: Tensor) -> Tensor:
        return entered.clamp(0, 1)


@dataclass(frozen=True, eq=False)
class Tokens:
    """Sequences of `length` tokens, [T, B, length] int64, which enter as rows of an embedding [V, D].

    An attacker moves embeddings; what it ends at is read as the nearest token. The network takes embeddings, so that
    no gradient of the table itself is shared.
    """

    length: int
    embedding: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        return self.length, self.embedding.shape[1]

    def check(self, values: Tensor, parameter: Tensor) -> None:
        if values.ndim != 3 or values.shape[2] != self.length or values.dtype != torch.int64:
            raise ValueError(
                f"tokens must be int64 of shape [trials, batch, {self.length}] for this model, got {values.dtype} "
                f"{list(values.shape)}"
            )
        if values.numel() and not 0 <= int(values.min()) <= int(values.max()) < len(self.embedding):
            raise ValueError(
                f"tokens must lie in 0..{len(self.embedding) - 1}, got {int(values.min())} to {int(values.max())}"
            )

    def enter(self, values: Tensor) -> Tensor:
        return self.embedding[values]

    def of_points(self, points: Tensor) -> Tensor:
        return points

    def to_points(self, entered: Tensor) -> Tensor:
        return entered

    def inside(self, points: Tensor) -> Tensor:
        return points

    def values(self, entered: Tensor) -> Tensor:
        rows = entered.flatten(0, -2)
        return torch.cdist(rows, self.embedding.to(rows)).argmin(1).view(entered.shape[:-1])
