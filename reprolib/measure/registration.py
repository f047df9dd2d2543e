"""Images moved onto one another before they are compared."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Registration = Literal["none", "translation", "affine"]


def registered(images: Tensor, target: Tensor, registration: Registration) -> Tensor:
    """Each image moved onto its target where that brings it nearer; both [B, C, H, W].

    "translation" tries every shift by whole pixels up to an eighth of the height, borders repeated. "affine" searches
    six parameters an image by Adam, from coarse to fine. An image that does not come nearer stays as it is.
    """
    if registration not in ("translation", "affine"):
        raise ValueError(f"registration={registration!r} is unknown; use 'none', 'translation' or 'affine'")
    moved = _translated(images, target) if registration == "translation" else _affinely_moved(images, target)
    nearer = (moved - target).square().flatten(1).sum(1) < (images - target).square().flatten(1).sum(1)
    return torch.where(nearer[:, None, None, None], moved, images)


def _translated(images: Tensor, target: Tensor) -> Tensor:
    height, width = images.shape[-2:]
    reach = max(1, height // 8)
    padded = F.pad(images, [reach] * 4, mode="replicate")
    shifts = [(i, j) for i in range(2 * reach + 1) for j in range(2 * reach + 1)]
    best, lowest = images, images.new_full((len(images),), float("inf"))
    for i, j in shifts:
        crop = padded[..., i : i + height, j : j + width]
        error = (crop - target).square().flatten(1).sum(1)
        nearer = error < lowest
        best, lowest = torch.where(nearer[:, None, None, None], crop, best), torch.where(nearer, error, lowest)
    return best


def _affinely_moved(images: Tensor, target: Tensor, steps: int = 40) -> Tensor:
    identity = torch.eye(2, 3, dtype=images.dtype, device=images.device)
    change = torch.zeros(len(images), 2, 3, dtype=images.dtype, device=images.device)
    best, lowest = change.clone(), images.new_full((len(images),), float("inf"))

    def at(parameters: Tensor, pictures: Tensor) -> Tensor:
        grid = F.affine_grid(identity + parameters, list(pictures.shape), align_corners=False)
        return F.grid_sample(pictures, grid, padding_mode="border", align_corners=False)

    for coarse in (4, 2, 1):
        small = [F.avg_pool2d(t, coarse) for t in (images, target)]
        lowest.fill_(float("inf"))
        change = best.clone().requires_grad_()
        optimizer = torch.optim.Adam([change], lr=0.02 * coarse / 4)
        for _ in range(steps):
            with torch.enable_grad():
                error = (at(change, small[0]) - small[1]).square().flatten(1).sum(1)
                (change.grad,) = torch.autograd.grad(error.sum(), change)
            better = error.detach() < lowest
            best = torch.where(better[:, None, None], change.detach(), best)
            lowest = torch.where(better, error.detach(), lowest)
            optimizer.step()
    return at(best, images)
