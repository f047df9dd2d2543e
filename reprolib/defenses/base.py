"""What a defense is: how it changes what a client shares, and what an attacker who knows it can still read."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reprolib.client import SharedUpdate
from reprolib.matching import Observation


class Defense:
    """Base of every defense: a frozen dataclass that overrides the hooks it needs; `str` is its label in tables.

    The defaults change nothing and read the update as it is. A setting that protects nothing (std 0, prune ratio 0)
    returns its input bit by bit and draws no random number. No hook modifies its input.
    """

    def extend(self, model: nn.Module) -> nn.Module:
        """The model that the client trains and the server knows, for defenses that insert a layer.

        It keeps `head`, `image_shape` and `num_classes`, and is the same for client and attacker: what it draws depends
        on the model alone. Layers that take noise (`models.bottleneck`) get it from the client, whose loss has their
        penalty.
        """
        return model

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """What one client shares instead of its gradients (with FedAvg, of its weight differences).

        gradients: one trial's, name -> parameter-shaped. model: the extended one. images: [B, C, H, W], labels: [B].
        generator: on the CPU, the only source of randomness. Returns the same names, shapes, dtypes and devices.
        """
        return gradients

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """The update as an attacker reads it who knows this defense and its settings, but not its random numbers.

        In gradient units, so that an attack compares its dummy gradients with it directly. For a mean of several
        clients, boxes and thresholds are read off the mean as if it were one client's, which is an approximation.
        """
        return Observation(target=update.as_gradients())


def require_level(name: str, value: float) -> None:
    """Errors: ValueError unless `value` is a finite number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be a finite number >= 0, got {value!r}")
