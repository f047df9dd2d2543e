"""How good a reconstruction is, and against what baseline; how sure one can be of it stands in `intervals.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn.functional import cosine_similarity
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from reprolib.measure import intervals
from reprolib.measure.registration import registered

if TYPE_CHECKING:
    from reprolib.data import ImageSet

THRESHOLDS = (1e-2, 5e-3, 1e-3, 5e-4, 1e-4)
"""The mean squared errors of iDLG's Figure 1: a run below one of them is "of good fidelity" at that level."""

PSNR_CAP = 60.0
"""dB; beyond it (an MSE of 1e-6) differences are far below one grey level of an 8-bit image."""

# --- images -----------------------------------------------------------------------------------------------------------


def mse(reconstructed: Tensor, images: Tensor) -> Tensor:
    """Mean squared error of each image, in double precision. NaN and overflow come out as +inf: a failure.

    reconstructed, images: [..., C, H, W] of one shape. Returns [...] float64. Unclamped input gives iDLG's convention.
    """
    _same_shape(reconstructed, images)
    error = (reconstructed.double().cpu() - images.double().cpu()).square().mean(dim=(-3, -2, -1))
    return torch.nan_to_num(error, nan=torch.inf, posinf=torch.inf)


def psnr(reconstructed: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, capped at `PSNR_CAP`; both in [0, 1], [N, C, H, W] -> [N]."""
    _same_shape(reconstructed, images)
    ratio = peak_signal_noise_ratio(
        _shown(reconstructed), _shown(images), data_range=1.0, reduction="none", dim=(1, 2, 3)
    )
    return ratio.clamp(max=PSNR_CAP)


def psnr_dim0(reconstructed: Tensor, images: Tensor) -> float:
    """FGLA's published PSNR in dB: of each pixel's error over the batch, then the mean over pixels; [N, C, H, W] twice.

    To be set beside published values and for nothing else: by Jensen it is never below the PSNR of the whole batch,
    half a decibel above at N = 8 even for white errors, and +inf where one pixel is met in all images.
    Source: the released code of Xue et al. 2023 (FGLA).
    """
    _same_shape(reconstructed, images)
    found = _shown(reconstructed).double(), _shown(images).double()
    return float(peak_signal_noise_ratio(*found, data_range=1.0, dim=0))


def psnr_ggl(reconstructed: Tensor, images: Tensor) -> Tensor:
    """PSNR as GGL's tables print it: images moved to [-1, 1], but a peak of 1. It is `psnr` less 20 log10(2) = 6.0206.

    For comparisons with that paper alone. reconstructed, images: [N, C, H, W] in [0, 1]. Returns [N].
    """
    return psnr(reconstructed, images) - 20 * math.log10(2)


def ssim(reconstructed: Tensor, images: Tensor) -> Tensor:
    """Structural similarity of each image; both in [0, 1], [N, C, H, W] -> [N].

    Setting, the same everywhere in the book: Gaussian window 11 × 11 with sigma 1.5, K = (0.01, 0.03), reflected
    borders, mean over pixels and channels (Wang et al. 2004). Images with a side below 11 pixels, such as the 8 × 8
    digits, take a window of 5 × 5 with sigma 0.6, since most of the large window would be reflections.
    """
    _same_shape(reconstructed, images)
    sigma = 1.5 if min(images.shape[-2:]) >= 11 else 0.6  # torchmetrics derives the window from sigma: 11 and 5 pixels
    value = structural_similarity_index_measure(
        _shown(reconstructed), _shown(images), sigma=sigma, data_range=1.0, reduction="none"
    )
    return value.reshape(-1)


def match_batches(raw: Tensor, images: Tensor) -> Tensor:
    """For every true image of a batch, the index of the reconstruction assigned to it (Hungarian, smallest total MSE).

    A batch's gradient does not change when its images change places, so an attack can recover them only up to order.
    raw, images: [T, B, C, H, W]. Returns [T, B] int64; `raw[t, result[t, i]]` belongs to `images[t, i]`.
    """
    _same_shape(raw, images)
    trials, size = raw.shape[:2]
    if size == 1:
        return torch.zeros(trials, 1, dtype=torch.long)
    assignment = torch.empty(trials, size, dtype=torch.long)
    for t in range(trials):
        cost = mse(raw[t, None].expand(size, *raw[t].shape), images[t, :, None].expand(size, *raw[t].shape))
        # No two images in [0, 1] differ by more than 1. Without the cap a diverged reconstruction, at 1e16, would
        # drown the differences between all others.
        assignment[t] = torch.from_numpy(linear_sum_assignment(cost.clamp(max=1.0).numpy())[1])
    return assignment


def label_overlap(inferred: Tensor, labels: Tensor) -> Tensor:
    """Share of a batch's labels recovered, as multisets: order does not count, repetitions do. [T, B] twice -> [T]."""
    if inferred.shape != labels.shape:
        raise ValueError(f"inferred has shape {tuple(inferred.shape)}, expected that of labels, {tuple(labels.shape)}")
    shares = []
    for guess, truth in zip(inferred.tolist(), labels.tolist(), strict=True):
        shares.append(sum(min(guess.count(c), truth.count(c)) for c in set(truth)) / len(truth))
    return torch.tensor(shares)


def identify(
    reconstructed: Tensor,
    images: Tensor,
    pool: Tensor,
    seen_as: Callable[[Tensor], Tensor] = lambda candidates: candidates[None],
) -> tuple[Tensor, Tensor]:
    """Rank of each truth among a pool of candidates, by MSE to the reconstruction; 1 identifies the image.

    reconstructed, images: [N, C, H, W] in [0, 1]. pool: [M, C, H, W], distractors of the same distribution; the truth
    joins them, and where the pool already holds it, it counts once. Ties count against the attacker, so that a grey
    or broken reconstruction identifies nothing. Returns ranks [N] and the number of candidates [N] (chance is one over
    it), both int64. seen_as: candidates -> [V, N, C, H, W], the forms in which a client may have trained on each; the
    nearest form counts, for the truth as for all others.
    """
    _same_shape(reconstructed, images)
    if pool.dim() != 4 or pool.shape[1:] != images.shape[1:] or len(pool) == 0:
        raise ValueError(
            f"pool has shape {tuple(pool.shape)}, expected [M, {', '.join(map(str, images.shape[1:]))}] with M >= 1"
        )
    guess, truth, others = (_shown(x).double().flatten(1) for x in (reconstructed, images, pool))
    known = torch.stack([(row == others).all(1) for row in truth])
    forms = [[view.double().flatten(1) for view in seen_as(_shown(x))] for x in (pool, images)]
    # Differences, not the expanded square: a perfect reconstruction is at distance 0 and must not drown in rounding.
    exact = "donot_use_mm_for_euclid_dist"
    to_others = torch.stack([torch.cdist(guess, view, compute_mode=exact) for view in forms[0]]).amin(0)
    to_truth = torch.stack([(guess - view).norm(dim=1, keepdim=True) for view in forms[1]]).amin(0)
    ranks = 1 + ((to_others <= to_truth) & ~known).sum(1)
    return ranks, 1 + (~known).sum(1)


def registered_psnr(reconstructed: Tensor, images: Tensor) -> Tensor:
    """PSNR after the reconstruction was moved onto the truth by an affine map, where that raises it: [N].

    For attacks that find a picture in another place; an evaluator's measure, the attacker has no truth to register to.
    """
    moved = registered(_shown(reconstructed), _shown(images), "affine")
    return torch.maximum(psnr(reconstructed, images), psnr(moved, images))


def feature_distance(reconstructed: Tensor, images: Tensor, features: Callable[[Tensor], Tensor]) -> Tensor:
    """One minus the cosine between the features of reconstruction and truth, [N, C, H, W] -> [N] in [0, 2].

    features: images -> [N, F]; say which network they come from: distances in different networks do not compare.
    """
    _same_shape(reconstructed, images)
    return 1 - cosine_similarity(features(_shown(reconstructed)), features(_shown(images)))


def identify_in_class(
    reconstructed: Tensor,
    images: Tensor,
    labels: Tensor,
    gallery: ImageSet,
    features: Callable[[Tensor], Tensor],
    gallery_features: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Whether the nearest image of the same class is the original one: hits [N] bool, and the chance of each [N].

    The candidates are the gallery's images of the label and the original itself, once. Distance: one minus the cosine
    of the features. Ties count against the attacker. The mean of the hits is the image identification precision (IIP)
    of Yin et al. 2021.
    features: images -> [N, F]. gallery_features: `features(gallery.images)`, where many calls share it.
    """
    _same_shape(reconstructed, images)
    guess, truth = _shown(reconstructed), _shown(images)
    if gallery_features is None:
        gallery_features = features(gallery.images)
    found, own = features(guess), features(truth)
    hits, chances = [], []
    for i, label in enumerate(labels.tolist()):
        others = (gallery.labels == label) & (gallery.images != truth[i]).flatten(1).any(1)
        candidates = torch.cat([own[i : i + 1], gallery_features[others]])
        away = 1 - cosine_similarity(candidates, found[i : i + 1])
        hits.append(bool((away[0] < away[1:]).all()))
        chances.append(1 / len(candidates))
    return torch.tensor(hits), torch.tensor(chances, dtype=torch.float64)


def score(reconstruction: Any, images: Tensor, labels: Tensor, pool: Tensor | ImageSet | None = None) -> pd.DataFrame:
    """One row an image: how well it, its label and its identity were recovered.

    reconstruction: a `Reconstruction`; images: [T, B, C, H, W] in [0, 1]; labels: [T, B], classes from 0 on; in the
    reconstruction's a negative one is a class that was not found.
    Batches are matched once (`match_batches`), and every column uses that assignment.

    Columns: trial, image, label, label_inferred, label_correct, mse (raw pixels), mse_clamped, psnr and ssim (clamped),
    objective, evaluations, diverged; lost, from attacks that count it; with a pool also rank, identified, chance. A
    diverged trial is a row like any other, with mse = +inf where its pixels are not finite.
    Errors: ValueError for other shapes, and for labels that are no classes: soft targets, fractions, negative ones.

    >>> import torch
    >>> from reprolib import attacks
    >>> from reprolib.measure import metrics
    >>> truth, labels, none = torch.rand(2, 1, 3, 8, 8), torch.tensor([[3], [5]]), torch.zeros(2)
    >>> grey = attacks.Reconstruction(
    ...     raw=torch.full_like(truth, 0.5), labels=labels, objective=none, evaluations=none, starts=none,
    ...     diverged=none.bool(), seconds=0.0,
    ... )
    >>> scores = metrics.score(grey, truth, labels, pool=torch.rand(99, 3, 8, 8))
    >>> scores.label_correct.tolist(), scores.chance.tolist()
    ([True, True], [0.01, 0.01])
    """
    raw = reconstruction.raw.detach().cpu()
    images, labels = images.detach().cpu(), labels.detach().cpu()
    if raw.shape != images.shape:
        raise ValueError(
            f"images has shape {tuple(images.shape)}, the reconstruction {tuple(raw.shape)}: both are [T, B, C, H, W]"
        )
    for name, given in (("labels", labels), ("the reconstruction's labels", reconstruction.labels)):
        if given.shape != images.shape[:2]:
            soft = ": these are targets of every class; give the classes" if given.ndim == 3 else ""
            raise ValueError(
                f"{name} has shape {tuple(given.shape)}, expected [T, B] = {tuple(images.shape[:2])}{soft}"
            )
        if given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
            raise ValueError(f"{name} is of dtype {given.dtype}, expected classes as integers")
    if (labels < 0).any():
        raise ValueError(f"labels holds {labels.min()}, expected classes from 0 on")
    trials, size = labels.shape
    order = match_batches(raw, images)
    raw = raw[torch.arange(trials)[:, None], order].flatten(0, 1)
    inferred = reconstruction.labels.detach().cpu().gather(1, order).flatten()
    truth, shown = images.flatten(0, 1), _shown(raw)

    def per_image(values: Tensor) -> np.ndarray:
        return values.detach().cpu().repeat_interleave(size).numpy()

    table = pd.DataFrame(
        {
            "trial": per_image(torch.arange(trials)),
            "image": np.tile(np.arange(size), trials),
            "label": labels.flatten().numpy(),
            "label_inferred": inferred.numpy(),
            "label_correct": (inferred == labels.flatten()).numpy(),
            "mse": mse(raw, truth).numpy(),
            "mse_clamped": mse(shown, truth).numpy(),
            "psnr": psnr(shown, truth).double().numpy(),
            "ssim": ssim(shown, truth).double().numpy(),
            "objective": per_image(reconstruction.objective.double()),
            "evaluations": per_image(reconstruction.evaluations),
            "diverged": per_image(reconstruction.diverged),
        }
    )
    if reconstruction.lost is not None:
        table["lost"] = reconstruction.lost.cpu().gather(1, order).flatten().numpy()
    if pool is not None:
        ranks, candidates = identify(shown, truth, pool if isinstance(pool, Tensor) else pool.images)
        table["rank"], table["identified"], table["chance"] = (
            ranks.numpy(),
            (ranks == 1).numpy(),
            (1 / candidates.double()).numpy(),
        )
    return table


def units(scores: pd.DataFrame) -> pd.Series:
    """What the rows of `score` are independent by, for the clusters of an interval: [n].

    The drawn network, in the column `network`, where there are several; under one network the trial, a client's batch:
    such an interval speaks of that network.
    """
    several = "network" in scores and scores["network"].nunique() > 1
    return scores["network" if several else "trial"]


def summarise(scores: pd.DataFrame, by: str | Sequence[str], threshold: float = 1e-3) -> pd.DataFrame:
    """One row a group of `score`'s rows: the success rate with its interval, medians and means.

    by: column or columns to group by, in order of appearance. The clusters of the interval are each group's `units`.
    Medians count a failure as +inf; psnr and ssim are means over all images, diverged ones included.
    """
    by = [by] if isinstance(by, str) else list(by)
    if missing := [name for name in by if name not in scores]:
        raise ValueError(f"by names {missing}, but scores has the columns {list(scores.columns)}")
    rows = []
    for key, group in scores.groupby(by, sort=False, dropna=False):
        rate = intervals.below(group["mse"], threshold, units(group))
        row = dict(zip(by, key, strict=True))
        row |= {"images": len(group), "success": rate.value, "low": rate.low, "high": rate.high}
        row |= {"median mse": float(group["mse"].median()), "psnr": group["psnr"].mean(), "ssim": group["ssim"].mean()}
        row |= {"labels right": group["label_correct"].mean(), "diverged": group["diverged"].mean()}
        if "identified" in group:
            row["identified"] = group["identified"].mean()
        rows.append(row)
    return pd.DataFrame(rows)


def fidelity_curve(mse: Any, thresholds: Sequence[float] = THRESHOLDS, clusters: Any = None) -> pd.DataFrame:
    """Share of runs below each threshold (iDLG, Figure 1), one row a threshold: threshold, value, low, high, n."""
    rows = []
    for threshold in thresholds:
        rate = intervals.below(mse, threshold, clusters)
        rows.append({"threshold": threshold, "value": rate.value, "low": rate.low, "high": rate.high, "n": rate.n})
    return pd.DataFrame(rows)


def baselines(images: Tensor, auxiliary: ImageSet, seed: int = 0, threshold: float = 1e-2) -> pd.DataFrame:
    """What knowing nothing of the gradient achieves, one row a baseline: a reconstruction below these is no leak.

    images: [..., C, H, W], the victims' images. auxiliary: images of the same kind that the attacker may own.
    Rows: constant grey, mean image of the auxiliary set, a random auxiliary image, the auxiliary image nearest to the
    truth (an oracle: content that was public already) and the attack's own start, N(0, 1).
    Columns: baseline, mean mse, median mse (raw), psnr, ssim (means, clamped), success (share below the threshold).
    """
    truth = images.detach().cpu().flatten(0, -4).float()
    known = auxiliary.images.cpu().float()
    if known.shape[1:] != truth.shape[1:]:
        raise ValueError(
            f"auxiliary holds images of {tuple(known.shape[1:])}, the victims are {tuple(truth.shape[1:])}"
        )
    generator = torch.Generator().manual_seed(seed)
    nearest = torch.cdist(truth.flatten(1), known.flatten(1)).argmin(1)
    guesses = {
        "constant grey": torch.full_like(truth, 0.5),
        "mean image": known.mean(0, keepdim=True).expand_as(truth),
        "random auxiliary image": known[torch.randint(len(known), (len(truth),), generator=generator)],
        "nearest auxiliary image (oracle)": known[nearest],
        "random start N(0, 1)": torch.randn(truth.shape, generator=generator),
    }
    rows = []
    for name, guess in guesses.items():
        error = mse(guess, truth)
        row = {"baseline": name, "mean mse": error.mean().item(), "median mse": error.median().item()}
        row |= {"psnr": psnr(guess, truth).mean().item(), "ssim": ssim(guess, truth).mean().item()}
        rows.append(row | {"success": (error < threshold).double().mean().item()})
    return pd.DataFrame(rows)


def _shown(images: Tensor) -> Tensor:
    """Images as a screen shows them: clamped to [0, 1], pixels that are not a number black."""
    return torch.nan_to_num(images.detach().cpu().float(), nan=0.0).clamp(0, 1)


def _same_shape(reconstructed: Tensor, images: Tensor) -> None:
    if reconstructed.shape != images.shape:
        raise ValueError(
            f"reconstructed has shape {tuple(reconstructed.shape)}, expected that of images, {tuple(images.shape)}"
        )
