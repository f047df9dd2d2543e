"""DP-SGD: each image's gradient is clipped, and noise in proportion is added to their sum. Abadi et al., CCS 2016."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from math import inf, log, sqrt
from typing import Annotated, Literal

import numpy as np
import torch
from scipy.stats import norm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reprolib import settings
from reprolib.defenses.base import Defense, require_each_image
from reprolib.defenses.clipping import clipped
from reprolib.defenses.noise import GaussianNoise
from reprolib.federated import client
from reprolib.federated.observation import Observation
from reprolib.federated.update import SharedUpdate

Conversion = Literal["balle", "mironov"]


@dataclass(frozen=True)
class DPSGD(Defense):
    """Share (sum_i g_i min(1, C / |g_i|) + N(0, (z C)^2)) / expected_batch, g_i being the gradient of image i alone.

    max_norm: C. noise_multiplier: z. sample_rate: q, the chance of a record to be in a batch; only `epsilon` uses it,
    which assumes Poisson sampling and adding or removing one record. expected_batch: q n, the divisor; None divides by
    the batch at hand, which is the same where every batch has one size.
    Everything else that a client sends must be free of its records: no batch norm, no loss, no label counts.
    Errors: ValueError for settings outside their range; when sharing, for a model with batch norm and for gradients
    that are not the mean of the images' own (several local steps, or a defense before this one).
    Source: Abadi et al. 2016, Algorithm 1.
    """

    max_norm: settings.LengthOrInfinity
    noise_multiplier: settings.Level
    sample_rate: Annotated[float, settings.Range(0, 1, above=True)] = 1.0
    expected_batch: settings.Count | None = None

    per_image = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_norm == inf and self.noise_multiplier > 0:
            raise ValueError("max_norm=inf clips nothing, so no noise is in proportion to it: give a finite max_norm")
        if self.noise_multiplier > 0:
            settings.held("max_norm times noise_multiplier", settings.Level, self.max_norm * self.noise_multiplier)

    def __str__(self) -> str:
        if self.noise_multiplier == 0:
            return f"clipping each image to {self.max_norm:g}"
        return f"DP-SGD, clipping to {self.max_norm:g}, noise multiplier {self.noise_multiplier:g}"

    @property
    def _std(self) -> float:
        """Of the noise in the sum; 0 without noise, where the norm may be infinite."""
        return self.noise_multiplier * self.max_norm if self.noise_multiplier > 0 else 0.0

    def extend(self, model: nn.Module) -> nn.Module:
        _refuse_batch_norm(model)
        return model

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        _refuse_batch_norm(model)
        if self.max_norm == inf and self.expected_batch is None:
            return gradients
        each = client.image_gradients(model, images, labels)
        require_each_image(self, gradients, each)
        size = self.expected_batch or len(images)
        summed = {name: g.sum(0) for name, g in clipped(each, self.max_norm).items()}
        shared = GaussianNoise(self._std).protect(summed, model, images, labels, generator)
        return {name: g / size for name, g in shared.items()}

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        """The attacker clips the gradient of every dummy image, and weighs its image prior by the noise's variance."""
        own = update.batch_size // update.threat.clients
        size = self.expected_batch or own

        def of_each_image(gradients: dict[str, Tensor]) -> dict[str, Tensor]:
            return {name: g * (own / size) for name, g in clipped(gradients, self.max_norm).items()}

        return Observation(
            target=update.as_gradients(),
            noise_std=self._std / size / sqrt(update.threat.clients),
            of_each_image=of_each_image,
        )

    def epsilon(self, steps: int, delta: float, conversion: Conversion = "balle") -> float:
        """The smallest epsilon of (epsilon, delta)-differential privacy that Renyi accounting gives for the training.

        steps: noisy steps taken. conversion: from Renyi to (epsilon, delta): "balle" (Balle et al. 2020, opacus's), or
        "mironov" (2017), in which tables before 2021 are. Without noise it is infinite.
        Errors: ValueError for steps below 1, a delta outside (0, 1) or another conversion.
        """
        steps = settings.held("steps", settings.Whole, steps)
        delta = settings.held("delta", Annotated[float, settings.Range(0, 1, above=True, below=True)], delta)
        settings.held("conversion", Conversion, conversion)
        if self.noise_multiplier == 0:
            return inf
        # opacus takes seconds to import
        from opacus.accountants import RDPAccountant
        from opacus.accountants.analysis import rdp

        orders = RDPAccountant.DEFAULT_ALPHAS
        spent = rdp.compute_rdp(q=self.sample_rate, noise_multiplier=self.noise_multiplier, steps=steps, orders=orders)
        if conversion == "mironov":
            return float(np.min(spent + log(1 / delta) / (np.array(orders) - 1)))
        with warnings.catch_warnings():  # it warns where the best order is the first or the last: still an upper bound
            warnings.simplefilter("ignore")
            return float(rdp.get_privacy_spent(orders=orders, rdp=spent, delta=delta)[0])

    def epsilon_of_an_upload(self, delta: float) -> float:
        """The epsilon of one update against the server, who knows whose it is: no sampling hides its records."""
        return DPSGD(self.max_norm, self.noise_multiplier).epsilon(1, delta)


def reconstruction_bound(prior: float, noise_multiplier: float) -> float:
    """The best chance of any attacker to reconstruct a record from one DP-SGD step, given its chance without: ReRo.

    prior: the chance of success before the step, for identification 1 / candidates. noise_multiplier: z > 0, infinite
    for pure noise. Phi(Phi^-1(prior) + 1 / z), for a step without sampling.
    Errors: ValueError for a prior outside [0, 1] or a multiplier that is not positive.
    Source: Hayes et al. 2023 (Bounding Training Data Reconstruction in DP-SGD), for one step.
    """
    settings.held("prior", Annotated[float, settings.Range(0, 1)], prior)
    settings.held("noise_multiplier", settings.LengthOrInfinity, noise_multiplier)
    return float(norm.cdf(norm.ppf(prior) + 1 / noise_multiplier))


def _refuse_batch_norm(model: nn.Module) -> None:
    if layers := [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]:
        raise ValueError(
            f"DPSGD on a model with batch norm ({', '.join(layers)}): an image's gradient then depends on the others "
            "of its batch and cannot be clipped alone; use a model with group norm"
        )
