"""Additive noise. Without clipping its sensitivity is unbounded: it is never differential privacy."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.defenses.base import Defense
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate


@dataclass(frozen=True)
class GaussianNoise(Defense):
    """Add independent N(0, std^2) to every shared entry.

    DLG's text gives noise levels as variances, later code uses the same numbers as standard deviations: say which with
    `GaussianNoise(std)` or `GaussianNoise.from_variance(variance)`.
    Errors: ValueError for a level that is negative or not finite. Source: DLG, section 5.1; `defenses.md` section 4.1.
    """

    std: settings.Level

    @classmethod
    def from_variance(cls, variance: float) -> GaussianNoise:
        """The noise of this variance: std = sqrt(variance)."""
        variance = settings.held("variance", settings.Level, variance)
        return cls(sqrt(variance))

    def __str__(self) -> str:
        return f"Gaussian noise, std {self.std:.3g}"

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if self.std == 0:
            return gradients
        return {
            name: g + self.std * torch.randn(g.shape, generator=generator, dtype=g.dtype).to(g.device)
            for name, g in gradients.items()
        }

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """Squared error is the log-likelihood; the attacker weighs its image prior by the noise's variance."""
        return Observation(target=update.as_gradients(), noise_std=_std_in_mean(self.std, update))


@dataclass(frozen=True)
class LaplaceNoise(Defense):
    """Add independent Laplace noise of standard deviation std = sqrt(2) b to every shared entry.

    `from_scale(b)` and `from_variance(variance)` take the other two readings of a published level.
    Errors: ValueError for a level that is negative or not finite. Source: DLG, section 5.1; `defenses.md` section 4.1.
    """

    std: settings.Level

    @classmethod
    def from_variance(cls, variance: float) -> LaplaceNoise:
        """The noise of this variance: std = sqrt(variance)."""
        variance = settings.held("variance", settings.Level, variance)
        return cls(sqrt(variance))

    @classmethod
    def from_scale(cls, scale: float) -> LaplaceNoise:
        """The noise of density exp(-|x| / b) / 2b with b = scale: std = sqrt(2) b."""
        scale = settings.held("scale", settings.Level, scale)
        return cls(sqrt(2) * scale)

    def __str__(self) -> str:
        return f"Laplacian noise, std {self.std:.3g}"

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if self.std == 0:
            return gradients

        def laplace(g: Tensor) -> Tensor:
            # the difference of two unit exponentials is Laplacian with b = 1
            first, second = torch.empty(2, *g.shape, dtype=g.dtype).exponential_(generator=generator)
            return (first - second).to(g.device)

        return {name: g + self.std / sqrt(2) * laplace(g) for name, g in gradients.items()}

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """Absolute error is the log-likelihood of one client's noise; a mean of several tends to a Gaussian."""
        return Observation(
            target=update.as_gradients(),
            law="laplace" if update.threat.clients == 1 else "gaussian",
            noise_std=_std_in_mean(self.std, update),
        )


def _std_in_mean(std: float, update: SharedUpdate) -> float:
    """The noise's standard deviation in gradient units after averaging over the clients."""
    return std * abs(update.scale) / sqrt(update.threat.clients)
