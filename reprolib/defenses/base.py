"""What a defense is: how it changes what a client shares, and what an attacker who knows it can still read."""

from __future__ import annotations

from fractions import Fraction
from math import floor
from typing import ClassVar

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate


class Defense:
    """Base of every defense: a frozen dataclass that overrides the hooks it needs; `str` is its label in tables.

    The defaults change nothing and read the update as it is. A setting that protects nothing (std 0, prune ratio 0)
    returns its input bit by bit and draws no random number. No hook modifies its input.
    Its settings say their ranges in their annotations (`reprolib.settings`).
    per_image: it works on the gradient of each image, which it computes itself, and so comes before all that change
    the mean. mixes: its encoding of one image holds others.
    """

    per_image: ClassVar[bool] = False
    mixes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        settings.check(self)

    def extend(self, model: nn.Module) -> nn.Module:
        """The model that the client trains and the server knows, for defenses that insert a layer.

        It keeps `head`, `image_shape` and `num_classes`, and is the same for client and attacker: what it draws depends
        on the model alone. Layers that take noise (`models.bottleneck`) get it from the client, whose loss has their
        penalty.
        """
        return model

    def encode(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """What one client trains on instead of its images, for defenses that alter the data (ATS, MixUp).

        images: [B, C, H, W] in [0, 1]. targets: [B, K], class probabilities. Returns both in the same shapes; the
        images stay in [0, 1] unless the defense says otherwise. generator: as for `protect`, which draws after it.
        """
        return images, targets

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """What one client shares instead of its gradients (with FedAvg, of its weight differences).

        gradients: one trial's, name -> parameter-shaped. model: the extended one. images: [B, C, H, W] as encoded,
        labels: [B].
        generator: on the CPU, the only source of randomness. Returns the same names, shapes, dtypes and devices.
        """
        return gradients

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """The update as an attacker reads it who knows this defense and its settings, but not its random numbers.

        In gradient units, so that an attack compares its dummy gradients with it directly. For a mean of several
        clients, boxes and thresholds are read off the mean as if it were one client's, which is an approximation.
        """
        return Observation(target=update.as_gradients())

    def epsilon(self, steps: int, delta: float) -> float:
        """The epsilon of (epsilon, delta)-differential privacy after so many training steps.

        Errors: ValueError: only a defense that bounds what one record contributes has one.
        """
        raise ValueError(
            f"there is no epsilon for {self}: unless the gradient of each image is clipped, one image can change the "
            "update without bound, and no noise hides that; use DPSGD"
        )


def count_of(share: float, entries: int) -> int:
    """floor(share x entries), the share taken as it is written: 0.29 * 100 is 28.999... in binary."""
    return floor(Fraction(repr(float(share))) * entries)


def flattened(gradients: dict[str, Tensor]) -> Tensor:
    """One trial's gradients, name -> [*param], as one vector."""
    return torch.cat([g.flatten() for g in gradients.values()])


def unflattened(flat: Tensor, like: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `flattened`, with the names and shapes of `like`."""
    parts = flat.split([g.numel() for g in like.values()])
    return {name: part.view(g.shape) for (name, g), part in zip(like.items(), parts, strict=True)}


def require_each_image(defense: Defense, gradients: dict[str, Tensor], each: dict[str, Tensor]) -> None:
    """Errors: ValueError unless `gradients` are the means of the images' own, name -> [N, *param]."""
    off = sum((each[name].mean(0) - g).double().square().sum() for name, g in gradients.items()).sqrt()
    length = sum(g.double().square().sum() for g in gradients.values()).sqrt()
    if off > 1e-3 * length:
        raise ValueError(
            f"{defense} works on the gradient of each image, but the update is not their mean: share a single "
            "gradient (no `local`), and let no other defense change it before"
        )
