"""Outpost: pruning, and noise by the spread of the weights, ever more seldom. Wang et al., INFOCOM 2023."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reprolib import settings
from reprolib.defenses.base import Defense, count_of
from reprolib.defenses.pruning import TopK
from reprolib.federated.observation import Observation, by_trial
from reprolib.federated.update import SharedUpdate
from reprolib.models import Victims

CLEAN = 1e6
"""Weight of an update that was left alone, beside that of a noisy entry."""


@dataclass(frozen=True)
class Outpost(Defense):
    """With probability 1 / (1 + beta t), prune each parameter's gradient and add noise to the update's largest entries.

    The smallest floor(prune_ratio n) entries of each parameter become zero; then N(0, (r noise_base)^2) is added where
    the unpruned gradient is among the update's largest share `phi` of magnitudes, r = min(variance of the parameter's
    weights, 1). iteration: t, a running count of the client's iterations.
    Errors: ValueError for shares outside [0, 1), negative levels or an iteration below 0.
    Source: the authors' code in Plato, whose shipped version changes nothing (a loop variable is rebound).
    """

    beta: settings.Level = 0.125
    phi: settings.Share = 0.4
    prune_ratio: settings.Share = 0.8
    noise_base: settings.Level = 0.8
    iteration: settings.CountOrZero = 0

    def __str__(self) -> str:
        return f"Outpost at iteration {self.iteration}"

    @property
    def probability(self) -> float:
        """Of an update to be perturbed."""
        return 1 / (1 + self.beta * self.iteration)

    def protect(
        self, gradients: dict[str, Tensor], model: nn.Module, images: Tensor, labels: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if torch.rand((), generator=generator, dtype=torch.float64).item() >= self.probability:
            return gradients
        every = torch.cat([g.abs().flatten() for g in gradients.values()])
        kept_below = len(every) - count_of(self.phi, len(every))
        threshold = every.kthvalue(kept_below + 1).values if kept_below < len(every) else torch.inf
        pruned = TopK(self.prune_ratio).protect(gradients, model, images, labels, generator)
        shared, weights = {}, dict(model.named_parameters())
        for name, g in gradients.items():
            noise = torch.randn(g.shape, generator=generator, dtype=g.dtype).to(g.device)
            std = self.noise_base * _risk(weights[name].detach())
            shared[name] = torch.where(g.abs() >= threshold, pruned[name] + std * noise, pruned[name])
        return shared

    def counter(self, model: nn.Module | Victims, update: SharedUpdate) -> Observation:
        """A perturbed update gives itself away by its zeros; an untouched one is matched as it is.

        In a perturbed one a zero is known to be small, here below the median of its parameter's other entries; the
        others count less, the stronger their parameter's noise. Waiting for an untouched round is the better attack.
        """
        target = update.as_gradients()
        zeros = torch.cat([by_trial(g == 0) for g in target.values()], 1).double().mean(1)
        perturbed = zeros >= self.prune_ratio - self.phi
        scale = abs(update.scale) / update.threat.clients**0.5
        stds = {name: self.noise_base * scale * _risks(model, name, update.trials) for name in target}
        least = torch.stack(list(stds.values())).clamp(min=torch.finfo(torch.float32).tiny).amin()
        weight, slack = {}, {}
        for name, g in target.items():
            shape = (-1, *[1] * (g.ndim - 1))
            hit, std = perturbed.to(g.device).view(shape), stds[name].to(g.device).view(shape)
            noisy = torch.where(g == 0, torch.ones_like(g), ((least / std.clamp(min=least)) ** 2).to(g))
            weight[name] = torch.where(hit, noisy, CLEAN)
            others = by_trial(torch.where(g == 0, torch.nan, g.abs())).nanmedian(1).values.nan_to_num(torch.inf)
            slack[name] = torch.where(hit & (g == 0), others.view(shape), 0.0)
        return Observation(target=target, weight=weight, slack=slack, noise_std=float(least))


def _risk(weights: Tensor) -> float:
    return min(float(weights.var()) if weights.numel() > 1 else 0.0, 1.0)


def _risks(model: nn.Module | Victims, name: str, trials: int) -> Tensor:
    """[T]: the risk of the named parameter in every trial's network."""
    victims = Victims.of(model)
    if victims.stacked is None:
        return torch.full((trials,), _risk(victims.weights()[name]))
    return torch.tensor([_risk(own) for own in victims.stacked[name]])[victims.index.cpu()]
