"""What every attack returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class History:
    """How an attack went: snapshots after the named iterations (0 is the start).

    objective: [S, T]. evaluations: [S, T], spent so far. images: [S, T, B, C, H, W], not clamped. soft_labels:
    [S, T, B, K].
    """

    iterations: list[int]
    objective: Tensor
    evaluations: Tensor
    images: Tensor
    soft_labels: Tensor


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an attacker made of an update, and what it cost.

    raw: [T, B, C, H, W], as the optimiser left it; `images` is clamped to [0, 1]. labels: [T, B]. objective: [T], the
    matching objective at `raw`. evaluations: [T], gradients of the objective spent, over all starts. starts: [T], how
    many dummy images were tried. diverged: [T], the chosen start ended with an objective that is not finite.
    seconds: wall time of the whole call.
    """

    raw: Tensor
    labels: Tensor
    objective: Tensor
    evaluations: Tensor
    starts: Tensor
    diverged: Tensor
    seconds: float
    history: History | None = None

    @property
    def images(self) -> Tensor:
        return self.raw.clamp(0, 1)
