"""What an attacker believes of images before it sees a gradient: penalties [R] of images [R, B, C, H, W]."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from reprolib.measure.registration import Registration, registered


def squared_total_variation(images: Tensor) -> Tensor:
    """Sum of squared differences between neighbouring pixels, rows and columns, of a trial's batch: [R].

    Source: the image prior of Balunovic et al. 2022, in their code.
    """
    down = (images[..., 1:, :] - images[..., :-1, :]).square().flatten(1).sum(1)
    right = (images[..., 1:] - images[..., :-1]).square().flatten(1).sum(1)
    return down + right


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours in a row plus that of neighbours in a column, of a trial's batch: [R].

    A mean over all differences of all images, as Inverting Gradients has it: for one image a trial it does not depend
    on how many trials run beside it. Source: Geiping et al. 2020, equation 4.
    """
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)
    right = (images[..., 1:] - images[..., :-1]).abs().flatten(1).mean(1)
    return down + right


def outside_box(images: Tensor) -> Tensor:
    """Sum of squared distances of the pixels to [0, 1], the range every image has: [R]."""
    return (images - images.clamp(0, 1)).square().flatten(1).sum(1)


def mean_squared_variation(images: Tensor) -> Tensor:
    """Twice the mean squared difference of neighbours down plus that across, meaned over a trial's images: [R].

    Each mean is over an image's own differences, of all its channels. Source: GRNN's code, `TVLoss`.
    """
    down = (images[..., 1:, :] - images[..., :-1, :]).square().flatten(1).mean(1)
    right = (images[..., 1:] - images[..., :-1]).square().flatten(1).mean(1)
    return 2 * (down + right)


def four_direction_variation(images: Tensor) -> Tensor:
    """Sum of four norms over a trial's batch: differences across, down and along both diagonals: [R].

    Norms, so it grows with the square root of the batch. Source: NVlabs/DeepInversion, the published
    code nearest to GradInversion's authors.
    """
    differences = (
        images[..., 1:] - images[..., :-1],
        images[..., 1:, :] - images[..., :-1, :],
        images[..., 1:, 1:] - images[..., :-1, :-1],
        images[..., 1:, :-1] - images[..., :-1, 1:],
    )
    return sum(_norm(difference) for difference in differences)  # type: ignore[return-value]


def summed_variation(images: Tensor) -> Tensor:
    """Sum of absolute differences of neighbours across and down, divided by the number of images: [R].

    Source: FGLA's reimplementation of GradInversion, `stg`.
    """
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).sum(1)
    right = (images[..., 1:] - images[..., :-1]).abs().flatten(1).sum(1)
    return (down + right) / images.shape[1]


def mean_norm(images: Tensor) -> Tensor:
    """The mean over a trial's images of each one's Euclidean norm: [R]."""
    return _norm(images.flatten(0, 1)).view(images.shape[:2]).mean(1)


def batch_norm_distance(
    statistics: Mapping[str, tuple[Tensor, Tensor]],
    targets: Mapping[str, tuple[Tensor, Tensor]],
    trials: Tensor,
    first: float = 1.0,
    squared: bool = False,
) -> Tensor:
    """How far dummy batches' statistics are from the targets of the named trials, summed over the layers: [R].

    statistics: layer -> (mean [R, C], biased variance [R, C]). targets: the same with [T, C]. The distance of a layer
    is |mean - mean*| + |variance - variance*|, norms, or their squares. first: weight of the first layer.
    Source: Yin et al. 2020 and 2021 (R_BN).
    """
    total: float | Tensor = 0.0
    for i, (layer, pair) in enumerate(statistics.items()):
        for ours, theirs in zip(pair, targets[layer], strict=True):
            difference = ours - theirs[trials]
            distance = difference.square().sum(1) if squared else _norm(difference)
            total = total + (first if i == 0 else 1.0) * distance
    return total  # type: ignore[return-value]


def consensus(candidates: Tensor, registration: Registration = "none") -> Tensor:
    """The mean over several reconstructions of the same images, each moved onto their pixel mean first: [B, C, H, W].

    candidates: [G, B, C, H, W]. registration: "none" (the mean alone), "translation" or "affine" (`registered`).
    No gradient flows through it. Source: Yin et al. 2021, section 3.3; the published attack registers by RANSAC-Flow,
    which needs a network trained on other photographs.
    Errors: ValueError for an unknown registration.
    """
    candidates = candidates.detach()
    target = candidates.mean(0)
    if registration == "none":
        return target
    moved = registered(candidates.flatten(0, 1), target.repeat(len(candidates), 1, 1, 1), registration)
    return moved.view(candidates.shape).mean(0)


def _norm(values: Tensor) -> Tensor:
    """The Euclidean norm of each row of a tensor [R, ...], with a slope of zero and not NaN at zero: [R]."""
    return values.square().flatten(1).sum(1).clamp(min=torch.finfo(values.dtype).tiny).sqrt()


def moment_divergence(latents: Tensor) -> Tensor:
    """-(1 + log s^2 - m^2 - s^2) / 2 with the mean m and population std s of each latent's own entries, summed: [R].

    latents: [R, B, k]. At least 0, and 0 where m = 0 and s = 1: it holds two moments of k numbers and no more. The
    constant 1e-10 keeps it finite at a latent of zeros, where it is 11. Source: GGL's code.
    """
    mean, variance = latents.mean(2), latents.var(2, correction=0)
    return -0.5 * (1 + (variance + 1e-10).log() - mean.square() - variance).sum(1)


def norm_excess(latents: Tensor) -> Tensor:
    """(|z|^2 - k)^2 of each latent, summed: [R]. latents: [R, B, k]. Source: GGL, section 3.2; its code lacks the k."""
    return (latents.square().sum(2) - latents.shape[2]).square().sum(1)
