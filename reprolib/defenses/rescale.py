"""Multiplying an update by a number: what hides a learning rate, shortens an update, or is a client's mistake."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.defenses.base import Defense
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate


@dataclass(frozen=True)
class Rescale(Defense):
    """Share the update times `factor`.

    It hides nothing from an attack that compares directions, and little from any other: a client that takes half the
    loss has a factor of 0.5, one that sends the weights' difference the wrong way round -1. Source: this book.
    Errors: ValueError for a factor that is zero or not finite.
    """

    factor: float

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < abs(self.factor) <= settings.LARGEST:
            raise ValueError(
                f"factor must be a finite number other than 0 and of at most {settings.LARGEST:g} in size, got "
                f"{self.factor!r}"
            )

    def __str__(self) -> str:
        return f"update times {self.factor:g}"

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {name: gradient * self.factor for name, gradient in gradients.items()}

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """Multiplies the dummy gradients by the factor too."""
        return Observation(
            target=update.as_gradients(),
            of_the_mean=lambda gradients, _: {name: g * self.factor for name, g in gradients.items()},
        )
