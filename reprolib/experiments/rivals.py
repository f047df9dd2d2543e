"""Attackers of noise beside the maximum a posteriori: a rival, its tuning, and whom the reconstruction bound means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from reprolib import models, settings
from reprolib.data import ImageSet
from reprolib.defenses import DPSGD, LaplaceNoise
from reprolib.experiments.networks import network_seed
from reprolib.federated import client
from reprolib.federated.observation import Observation
from reprolib.federated.threat import ThreatModel
from reprolib.federated.update import SharedUpdate


@dataclass(frozen=True)
class SquaredReading(LaplaceNoise):
    """A client with Laplace noise, met by an attacker who fits its update by squared error beside the same image prior.

    trust: the standard deviation that it allows for, as in `experiments.defenses.RivalReading`, whose squared error is
    no rival under Gaussian noise: it is that noise's law. Errors: ValueError for a trust that is not positive.
    Source: Balunovic et al. 2022, the rivals of the Bayes optimal adversary.
    """

    trust: settings.Positive = 0.1

    def counter(self, model: torch.nn.Module, update: SharedUpdate) -> Observation:
        return Observation(target=update.as_gradients(), noise_std=self.trust)


def tuned(score: Callable[[float], Any], factors: Sequence[float], more: int) -> float:
    """The factor with the highest score; while it is an end of those tried, up to `more` beyond it are tried too.

    A weight tuned to the edge of its grid flatters whoever is set beside it. more: 0 leaves the grid as it is. Of equal
    scores the one that was tried first is taken.
    """
    tried = {factor: score(factor) for factor in factors}
    for _ in range(more):
        best = max(tried, key=lambda factor: tried[factor])
        if min(tried) < best < max(tried):
            break
        beyond = 2 * best if best == max(tried) else best / 2
        tried[beyond] = score(beyond)
    return max(tried, key=lambda factor: tried[factor])


def weighed_candidates(
    images: ImageSet, pool: ImageSet, max_norm: float, multipliers: Sequence[float], networks: int, seed: int
) -> pd.DataFrame:
    """Whether a server that has all candidates, each with its label, names the one image behind a step of DP-SGD.

    The reconstruction bound means this attacker, who needs no search: the likeliest candidate is the one whose clipped
    gradient lies nearest to the update. The candidates are the image and those of the pool that are others. A row a
    drawn network and multiplier: network, multiplier, identified, chance (one over the candidates).
    Source: Hayes et al. 2023 (Bounding Training Data Reconstruction in DP-SGD), section 2.
    """
    x, y = images.batches(1, networks, seed=seed)
    threat, rows = ThreatModel(labels="known", defense_known=True), []
    for k in range(networks):
        own = network_seed(seed, k)
        victim = models.build("lenet", images.num_classes, images.image_shape, seed=own)
        others = (pool.images != x[k]).flatten(1).any(1)
        pixels, labels = torch.cat([x[k], pool.images[others]]), torch.cat([y[k], pool.labels[others]])
        quiet = client.share(victim, pixels[:, None], labels[:, None], threat=threat, defense=DPSGD(max_norm, 0.0))
        clean = _flat(quiet.gradients)
        for multiplier in multipliers:
            defense = DPSGD(max_norm, multiplier)
            update = client.share(victim, x[k, None], y[k, None], threat=threat, defense=defense, seed=own)
            away = (clean - _flat(update.gradients)).norm(dim=1)
            found = bool((away[0] < away[1:]).all())
            rows.append({"network": k, "multiplier": multiplier, "identified": found, "chance": 1 / len(pixels)})
    return pd.DataFrame(rows)


def _flat(gradients: dict[str, Tensor]) -> Tensor:
    """[T, entries] in float64: small differences of long vectors must not drown in rounding."""
    return torch.cat([g.double().flatten(1) for g in gradients.values()], 1)
