"""What an attacker believes of images before it sees a gradient: penalties [R] of images [R, B, C, H, W]."""

from __future__ import annotations

from torch import Tensor


def squared_total_variation(images: Tensor) -> Tensor:
    """Sum of squared differences between neighbouring pixels, rows and columns, of a trial's batch: [R].

    Source: the image prior of Balunovic et al. 2022 (sheet `defenses.md`, section 7).
    """
    down = (images[..., 1:, :] - images[..., :-1, :]).square().flatten(1).sum(1)
    right = (images[..., 1:] - images[..., :-1]).square().flatten(1).sum(1)
    return down + right


def total_variation(images: Tensor) -> Tensor:
    """Mean absolute difference of neighbours in a row plus that of neighbours in a column, of a trial's batch: [R].

    A mean over all differences of all images, as Inverting Gradients has it: for one image a trial it does not depend
    on how many trials run beside it. Source: Geiping et al. 2020, equation 4; sheet `ig.md`, section 4.1.
    """
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().flatten(1).mean(1)
    right = (images[..., 1:] - images[..., :-1]).abs().flatten(1).mean(1)
    return down + right


def outside_box(images: Tensor) -> Tensor:
    """Sum of squared distances of the pixels to [0, 1], the range every image has: [R]."""
    return (images - images.clamp(0, 1)).square().flatten(1).sum(1)
