"""MixUp and Intra-InstaHide: the client trains on mixtures of its images. Huang et al., NeurIPS 2021."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from reprolib.data import ImageSet
from reprolib.defenses.base import Defense

CENTRE = 0.5
"""What InstaHide's signs turn pixels around: encodings stay in [0, 1] and are centred as after normalisation."""


@dataclass(frozen=True)
class MixUp(Defense):
    """Train on sum_j w_j x_j with the labels mixed alike: each image with k - 1 others of the client's own.

    The weights are drawn from a Dirichlet law with parameters (3, 1, ..., 1), the image's own first, until none is
    above `largest`. partners: the client's private set, from which the others are drawn anew for every batch.
    Errors: ValueError for k below 2, a bound that no draw meets, and partners of another shape.
    Source: Huang et al. 2021; sheet `defenses.md` section 4.12.
    """

    partners: ImageSet = field(repr=False)
    k: int = 4
    largest: float = 0.65

    mixes = True

    def __post_init__(self) -> None:
        if not isinstance(self.partners, ImageSet):
            raise ValueError(f"partners must be an ImageSet of the client's own images, got {self.partners!r}")
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 2:
            raise ValueError(f"k must be an integer >= 2, got {self.k!r}")
        if not 1 / self.k < self.largest <= 1:
            raise ValueError(f"largest must lie in (1 / k, 1] = ({1 / self.k:.3g}, 1], got {self.largest!r}")

    def __str__(self) -> str:
        return f"MixUp of {self.k}"

    def weights(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` draws [count, k]: each row adds up to 1 and stays within the bound."""
        rows = []
        while len(rows) < count:
            # a gamma variable of shape 3 is the sum of three exponentials
            draws = torch.empty(self.k + 2, dtype=torch.float64).exponential_(generator=generator)
            gammas = torch.cat([draws[:3].sum()[None], draws[3:]])
            row = gammas / gammas.sum()
            if row.max() <= self.largest:
                rows.append(row)
        return torch.stack(rows)

    def encode(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        if self.partners.image_shape != tuple(images.shape[1:]):
            raise ValueError(f"partners are of shape {self.partners.image_shape}, the images {tuple(images.shape[1:])}")
        weights = self.weights(len(images), generator).to(images)
        chosen = torch.randint(len(self.partners), (len(images), self.k - 1), generator=generator)
        others = self.partners.images[chosen].to(images)
        labels = F.one_hot(self.partners.labels[chosen], targets.shape[1]).to(targets)
        mixed = weights[:, 0, None, None, None] * images + torch.einsum("bj,bjchw->bchw", weights[:, 1:], others)
        return mixed, weights[:, :1] * targets + torch.einsum("bj,bjk->bk", weights[:, 1:], labels)


@dataclass(frozen=True)
class IntraInstaHide(MixUp):
    """MixUp, then a random sign for each pixel and channel of each mixture, around the pixel value CENTRE.

    The gradient can at best give the encoding away; the images come out of many encodings together, decoded apart.
    Source: Huang et al. 2020 and 2021; sheet `defenses.md` section 4.12.
    """

    def __str__(self) -> str:
        return f"Intra-InstaHide of {self.k}"

    def encode(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        mixed, mixed_targets = super().encode(images, targets, generator)
        signs = torch.randint(2, mixed.shape, generator=generator).to(mixed) * 2 - 1
        return CENTRE + signs * (mixed - CENTRE), mixed_targets


def decode(encodings: Tensor, weights: Tensor) -> Tensor:
    """The N images behind M mixtures whose pairings and weights are given: [N, C, H, W], by least squares.

    encodings: [M, C, H, W]. weights: [M, N]. An oracle's attack: in practice the pairings have to be found first.
    Errors: ValueError for shapes that do not fit and for weights that do not determine the images (rank below N).
    Source: the second stage of Carlini et al. 2021, as Huang et al. run it; sheet `defenses.md` section 4.12.
    """
    if weights.ndim != 2 or len(weights) != len(encodings):
        raise ValueError(f"weights must be [{len(encodings)}, N] like encodings, got {list(weights.shape)}")
    if torch.linalg.matrix_rank(weights) < weights.shape[1]:
        raise ValueError(f"{len(weights)} mixtures do not determine {weights.shape[1]} images: decode more of them")
    found = torch.linalg.lstsq(weights, encodings.flatten(1).to(weights)).solution
    return found.view(-1, *encodings.shape[1:]).to(encodings)
