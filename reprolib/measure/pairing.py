"""What an attack found against a client's images, where the two are not equally many.

`metrics.score` pairs a batch with as many reconstructions. Attacks that read a batch out of a first layer return as
many images as they isolated: fewer than the batch holds, or more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from reprolib.measure import metrics

EXACT_MSE = 1e-6
"""Below it, 60 dB, no grey level of an 8-bit image changes: the image was recovered exactly, up to rounding."""

DECIBELS = (19.0, 30.0)
"""Where `shares` counts: from 19 dB on, DLF calls an image reconstructed (Dimitrov et al. 2022)."""


def pair(candidates: Tensor, images: Tensor, lost: Tensor | None = None) -> Tensor:
    """For every true image the index of the candidate assigned to it (Hungarian, smallest total MSE), or -1 for none.

    As many images as can be get a candidate that is exact, before the rest is shared out: a bad candidate that has to
    go somewhere would otherwise push exact ones from image to image.
    candidates: [T, n, C, H, W], images: [T, B, C, H, W], both seen in [0, 1]; n and B may differ. lost: [T, n],
    candidates that hold nothing and are given to no image. Returns [T, B] int64.
    Errors: ValueError for shapes that do not go together.
    """
    lost = _checked(candidates, images, lost)
    found, truth = _flat(candidates), _flat(images)
    order = torch.full(images.shape[:2], -1, dtype=torch.long)
    for t in range(len(images)):
        held = torch.nonzero(~lost[t]).flatten()
        # Differences, not the expanded square: exact recoveries are at distance 0 and must not drown in rounding.
        away = torch.cdist(truth[t], found[t, held], compute_mode="donot_use_mm_for_euclid_dist").square()
        # No image is farther off than black from white, and a candidate that is no number is that far.
        farthest = truth.shape[-1]
        away = torch.nan_to_num(away, nan=farthest)
        worth = farthest * (1 + truth.shape[1])  # more than all other distances together
        cost = away - worth * (away < EXACT_MSE * farthest)
        rows, columns = linear_sum_assignment(cost.numpy())
        order[t, rows] = held[columns]
    return order


def score(candidates: Tensor, images: Tensor, fallback: Tensor, lost: Tensor | None = None) -> pd.DataFrame:
    """One row an image: how well it was recovered by the candidate that `pair` gives it.

    fallback: [C, H, W] in [0, 1], the mean image of what the attacker owns. It stands in for images that no candidate
    is given to, and `recovered` is False there.
    Columns: trial, image, candidate (-1 for none), recovered, mse (raw pixels), psnr (dB, capped at 60) and ssim (both
    in [0, 1]), exact (recovered with an `mse` below `EXACT_MSE`).
    Errors: those of `pair`, and ValueError for a fallback of another shape.
    """
    if fallback.shape != images.shape[2:]:
        raise ValueError(f"fallback has shape {tuple(fallback.shape)}, expected an image's, {tuple(images.shape[2:])}")
    order = pair(candidates, images, lost)
    trials, size = order.shape
    truth, fallback = images.detach().cpu(), fallback.detach().cpu()
    found = fallback.to(candidates.dtype).expand(trials, size, *fallback.shape).clone()
    recovered = order >= 0
    trial = torch.arange(trials)[:, None].expand(trials, size)
    found[recovered] = candidates.detach().cpu()[trial[recovered], order[recovered]]
    flat, true = found.flatten(0, 1), truth.flatten(0, 1)
    mse = metrics.mse(flat, true)
    shown = torch.nan_to_num(flat.float(), nan=0.0).clamp(0, 1)
    return pd.DataFrame(
        {
            "trial": trial.flatten().numpy(),
            "image": torch.arange(size).repeat(trials).numpy(),
            "candidate": order.flatten().numpy(),
            "recovered": recovered.flatten().numpy(),
            "mse": mse.numpy(),
            "psnr": metrics.psnr(shown, true).double().numpy(),
            "ssim": metrics.ssim(shown, true).double().numpy(),
            "exact": (recovered.flatten() & (mse < EXACT_MSE)).numpy(),
        }
    )


def shares(scores: pd.DataFrame, by: str | Sequence[str] = "trial") -> pd.DataFrame:
    """One row a group of `score`'s rows: how many images were recovered, and how well.

    Columns after those of `by`: images, recovered and exact (numbers of images), at least 19 dB, at least 30 dB (shares
    of all images), psnr and ssim (means over all images, those not recovered counted as the fallback), rest (median
    PSNR in dB of the images that are not exact; NaN where all are).
    Errors: ValueError for columns that scores does not have.
    """
    by = [by] if isinstance(by, str) else list(by)
    if missing := [name for name in by if name not in scores]:
        raise ValueError(f"by names {missing}, but scores has the columns {list(scores.columns)}")
    rows = []
    for key, group in scores.groupby(by, sort=False, dropna=False):
        rest = group.loc[~group["exact"], "psnr"]
        row = dict(zip(by, key, strict=True))
        row |= {"images": len(group), "recovered": int(group["recovered"].sum()), "exact": int(group["exact"].sum())}
        row |= {f"at least {level:g} dB": float((group["psnr"] >= level).mean()) for level in DECIBELS}
        row |= {"psnr": group["psnr"].mean(), "ssim": group["ssim"].mean()}
        rows.append(row | {"rest": float(rest.median()) if len(rest) else math.nan})
    return pd.DataFrame(rows)


def _checked(candidates: Tensor, images: Tensor, lost: Tensor | None) -> Tensor:
    fits = candidates.dim() == images.dim() == 5 and len(candidates) == len(images)
    if not fits or candidates.shape[2:] != images.shape[2:]:
        raise ValueError(
            f"candidates has shape {tuple(candidates.shape)}, images {tuple(images.shape)}: expected [T, n, C, H, W] "
            "and [T, B, C, H, W] of the same trials and the same size of image"
        )
    if lost is None:
        return torch.zeros(candidates.shape[:2], dtype=torch.bool)
    if lost.shape != candidates.shape[:2] or lost.dtype != torch.bool:
        raise ValueError(
            f"lost is {lost.dtype} of shape {tuple(lost.shape)}, expected bool of shape {tuple(candidates.shape[:2])}"
        )
    return lost.detach().cpu()


def _flat(images: Tensor) -> Tensor:
    """Images with their pixels in [0, 1], in double precision, [T, n, d]."""
    return images.detach().cpu().double().flatten(2).clamp(0, 1)
