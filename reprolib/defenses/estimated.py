"""The same clients, met by an attacker who knows the kind of defense and reads its setting off the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from reprolib.defenses.clipping import Clipping, clipped
from reprolib.defenses.pruning import TopK
from reprolib.federated.observation import Observation, by_trial
from reprolib.federated.update import SharedUpdate

Share = Literal["update", "tensor"]


@dataclass(frozen=True)
class NormOfUpdate(Clipping):
    """The same client, met by an attacker who takes the update's own length for the bound, its dummies' scope alike.

    Where nothing was clipped it shortens dummies that are longer than the update: harmless at the true image, and a
    little blind elsewhere. Source: Li et al. 2022 (GGL), section 3.3, and its code.
    """

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        def shortened(gradients: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
            squares = {name: by_trial(g).square().sum(1) for name, g in target.items()}
            if self.scope == "global":
                return clipped(gradients, _length(sum(squares.values())))
            return {name: clipped({name: g}, _length(squares[name]))[name] for name, g in gradients.items()}

        return Observation(target=update.as_gradients(), of_the_mean=shortened)


@dataclass(frozen=True)
class KeptEntries(TopK):
    """The same client, met by an attacker who compares what it shared and leaves the zeros out of the comparison.

    It holds at any rate and for one client's update that nothing changed afterwards. That a zero stands for a small
    entry it does not use; `TopK` does. Source: this book.
    """

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        target = update.as_gradients()
        return Observation(target=target, weight={name: (g != 0).to(g.dtype) for name, g in target.items()})


@dataclass(frozen=True)
class RateOfUpdate(TopK):
    """The same client, met by an attacker who prunes its dummy gradients at the rate of zeros that it finds.

    rate_of: "update" counts the zeros of all tensors together and prunes every tensor at that rate, as GGL's code does;
    zeros that no pruning made (dead features) then raise the rate of all. "tensor" counts each tensor's own.
    Source: Li et al. 2022 (GGL), section 3.3, and its code.
    """

    rate_of: Share = "update"

    def counter(self, model: nn.Module, update: SharedUpdate) -> Observation:
        def pruned(gradients: dict[str, Tensor], target: dict[str, Tensor]) -> dict[str, Tensor]:
            shares = zero_shares(target, self.rate_of)
            return {name: pruned_at(g, shares[name]) for name, g in gradients.items()}

        return Observation(target=update.as_gradients(), of_the_mean=pruned)


def zero_shares(gradients: dict[str, Tensor], of: Share = "tensor") -> dict[str, Tensor]:
    """The share of exact zeros in each of N gradients, of the whole update or of each tensor: name -> [N]."""
    zeros = {name: by_trial(g == 0).sum(1) for name, g in gradients.items()}
    if of == "tensor":
        return {name: count.double() / gradients[name][0].numel() for name, count in zeros.items()}
    entries = sum(g[0].numel() for g in gradients.values())
    return dict.fromkeys(zeros, sum(zeros.values()).double() / entries)


def pruned_at(gradients: Tensor, shares: Tensor) -> Tensor:
    """Zero, in each of N gradients [N, *param], what is below the quantile of its magnitudes.

    shares: [N] in [0, 1], or [1], one for all.

    The quantile is interpolated linearly, as `numpy.percentile`'s and `torch.quantile`'s, the latter of which takes no
    more than 16 million entries; entries that equal it are kept. Differentiable in the entries that stay.
    """
    magnitudes = by_trial(gradients.detach().abs())
    threshold, shares = torch.empty_like(magnitudes[:, 0]), shares.expand(len(gradients))
    for share in shares.unique().tolist():  # rows of one trial share theirs
        rows = shares == share
        place = share * (magnitudes.shape[1] - 1)
        low, high = (
            magnitudes[rows].kthvalue(min(int(place) + k, magnitudes.shape[1] - 1) + 1, dim=1).values for k in (0, 1)
        )
        threshold[rows] = low + (place - int(place)) * (high - low)
    return gradients * (magnitudes >= threshold[:, None]).view_as(gradients)


def _length(square: Tensor) -> Tensor:
    """[N], kept above 0, so that a tensor that is all zeros does not divide by it."""
    return square.clamp(min=torch.finfo(square.dtype).tiny).sqrt()
