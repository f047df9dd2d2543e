"""MixUp and Intra-InstaHide: the client trains on mixtures of its images. Huang et al., NeurIPS 2021."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import coo_array
from scipy.sparse.csgraph import breadth_first_order, minimum_spanning_tree
from torch import Tensor

from reprolib import settings
from reprolib.data import ImageSet
from reprolib.defenses.base import Defense

CENTRE = 0.5
"""What InstaHide's signs turn pixels around: encodings stay in [0, 1] and are centred as after normalisation."""


@dataclass(frozen=True)
class MixUp(Defense):
    """Train on sum_j w_j x_j with the labels mixed alike: each image with k - 1 others of the client's own.

    The weights are drawn from a Dirichlet law with parameters (3, 1, ..., 1), the image's own first, until none is
    above `largest`. partners: the client's private set, from which the others are drawn anew for every batch.
    Errors: ValueError for k below 2, a bound that no draw meets, and, when they are mixed, partners
    of another shape or with labels that the model does not have.
    Source: Huang et al. 2021 (arXiv:2112.00059) and their code, GradAttack, defense MixUp.
    """

    partners: ImageSet = field(repr=False)
    k: Annotated[int, settings.Range(2, settings.MOST)] = 4
    largest: Annotated[float, settings.Range(0, 1, above=True)] = 0.65

    mixes = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.largest <= 1 / self.k:
            raise ValueError(f"largest must lie in (1 / k, 1] = ({1 / self.k:.3g}, 1], got {self.largest!r}")

    def __str__(self) -> str:
        return f"MixUp of {self.k}"

    def weights(self, count: int, generator: torch.Generator) -> Tensor:
        """`count` draws [count, k]: each row adds up to 1 and stays within the bound."""
        rows: list[Tensor] = []
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
        if int(self.partners.labels.max()) >= targets.shape[1]:
            raise ValueError(
                f"partners have a label {int(self.partners.labels.max())}, the model {targets.shape[1]} classes: take "
                "partners of the client's own classes"
            )
        weights, chosen = self._draw(len(images), generator)
        weights = weights.to(images)
        others = self.partners.images[chosen].to(images)
        labels = F.one_hot(self.partners.labels[chosen], targets.shape[1]).to(targets)
        mixed = weights[:, 0, None, None, None] * images + torch.einsum("bj,bjchw->bchw", weights[:, 1:], others)
        return mixed, weights[:, :1] * targets + torch.einsum("bj,bjk->bk", weights[:, 1:], labels)

    def pairings(self, own: Tensor, generator: torch.Generator) -> Tensor:
        """What `encode` draws for images with the places `own` [M] in the client's set: the weights [M, N] of all.

        The oracle of `decode`, float64. generator: as it was when `encode` was called.
        """
        weights, chosen = self._draw(len(own), generator)
        every = torch.zeros(len(own), len(self.partners), dtype=torch.float64)
        return every.scatter_add_(1, torch.cat([own[:, None], chosen], 1), weights)

    def _draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Weights [count, k] and the places [count, k - 1] of the partners."""
        weights = self.weights(count, generator)
        return weights, torch.randint(len(self.partners), (count, self.k - 1), generator=generator)


@dataclass(frozen=True)
class IntraInstaHide(MixUp):
    """MixUp, then a random sign for each pixel and channel of each mixture, around the pixel value CENTRE.

    The gradient can at best give the encoding away; the images come out of many encodings together, decoded apart.
    Source: Huang et al. 2020 (InstaHide) and 2021, with the code of the latter, GradAttack.
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
    Source: the second stage of Carlini et al. 2021, as Huang et al. 2021 run it (GradAttack, attack_decode.py).
    """
    _check_pairings(encodings, weights)
    found = torch.linalg.lstsq(weights, encodings.flatten(1).to(weights)).solution
    return found.view(-1, *encodings.shape[1:]).to(encodings)


def decode_magnitudes(
    encodings: Tensor, weights: Tensor, generator: torch.Generator, starts: int = 20, iterations: int = 60
) -> Tensor:
    """The N images behind M encodings of Intra-InstaHide whose pairings and weights are given: [N, C, H, W].

    The random signs leave |mixture - CENTRE|. At each pixel and channel by itself, signs are guessed, the images that
    fit them best computed, the signs read off those, and so on (alternating projections, the best of `starts`). That
    leaves one sign a pixel that all N images share, which a spanning tree over neighbouring pixels and channels fixes:
    neighbours resemble each other. One sign for the whole set remains, since an encoding is the same for an image as
    for its negative: the result or 1 - result.
    encodings: [M, C, H, W]. weights: [M, N]. generator: of the first guesses.
    Errors: as `decode`. Source: the idea is Carlini et al.'s 2021, who fit |.| by gradient descent. The spanning
    tree is this book's.
    """
    _check_pairings(encodings, weights)
    sizes, weights = (encodings - CENTRE).abs().flatten(1).double().cpu(), weights.double().cpu()
    inverse = torch.linalg.pinv(weights)
    best, least = None, None
    for start in range(starts):
        # the first guess takes all mixtures to be bright
        signs = torch.ones_like(sizes) if start == 0 else _signs(sizes.shape, generator)
        for _ in range(iterations):
            found = inverse @ (signs * sizes)
            before, signs = signs, (weights @ found).sign()
            if torch.equal(before, signs):
                break
        error = ((weights @ found).abs() - sizes).square().sum(0)
        better = torch.ones_like(error, dtype=torch.bool) if best is None else error < least
        best = found if best is None else torch.where(better, found, best)
        least = error if least is None else torch.where(better, error, least)
    values = best.view(-1, *encodings.shape[1:])
    return (CENTRE + values * _common_signs(values)).to(encodings)


def _signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randint(2, shape, generator=generator).double() * 2 - 1


def _common_signs(values: Tensor) -> Tensor:
    """A sign for each pixel and channel [C, H, W] under which neighbours agree, from N images [N, C, H, W]."""
    channels, height, width = values.shape[1:]
    pixels = channels * height * width
    place = np.arange(pixels).reshape(channels, height, width)
    pairs = [(place[:, :, 1:], place[:, :, :-1]), (place[:, 1:], place[:, :-1])]
    pairs += [(place[a], place[b]) for a in range(channels) for b in range(a)]
    first, second = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    rows = F.normalize(values.flatten(1).T, dim=1).numpy()
    alike = (rows[first] * rows[second]).sum(1)
    # a tree of the pairs that leave least doubt; no edge may weigh 0, which would be none
    cost = coo_array((1.001 - np.abs(alike), (first, second)), (pixels, pixels))
    order, parents = breadth_first_order(minimum_spanning_tree(cost.tocsr()), 0, directed=False)
    agree = coo_array((np.where(alike < 0, -1.0, 1.0), (first, second)), (pixels, pixels)).tocsr()
    agree = (agree + agree.T).todok()
    signs = np.ones(pixels)
    for pixel in order[1:]:
        signs[pixel] = signs[parents[pixel]] * agree[pixel, parents[pixel]]
    return torch.from_numpy(signs).view(channels, height, width)


def _check_pairings(encodings: Tensor, weights: Tensor) -> None:
    if weights.ndim != 2 or len(weights) != len(encodings):
        raise ValueError(f"weights must be [{len(encodings)}, N] like encodings, got {list(weights.shape)}")
    if torch.linalg.matrix_rank(weights) < weights.shape[1]:
        raise ValueError(f"{len(weights)} mixtures do not determine {weights.shape[1]} images: decode more of them")
