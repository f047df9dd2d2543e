"""Measures of the chapter on GRNN, of the scores that `experiments.grnn.attack_drawn` returns."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Measured
from reprolib.measure.intervals import Interval


def _pair(better: pd.DataFrame, worse: pd.DataFrame) -> Interval:
    """PSNR of one run minus that of another on the same images, batches the clusters; over the images of both."""
    count = min(len(better), len(worse))
    return intervals.difference(better.psnr[:count], worse.psnr[:count], better.network[:count])


def own_images(one: pd.DataFrame, four: pd.DataFrame, eight: pd.DataFrame, dlg: Mapping[int, pd.DataFrame]) -> Entries:
    """What comes back on the paper's own images, and how much better than DLG's; dlg: batch size -> scores."""
    hits, rival = four.identified.astype(float), dlg[4].identified.astype(float)
    return {
        "single_identified": intervals.proportion(one.identified),
        "single_labels": intervals.proportion(one.label_correct),
        "four_identified": intervals.proportion(four.identified, four.network),
        "eight_identified": intervals.proportion(eight.identified, eight.network),
        "over_dlg_single": _pair(one, dlg[1]),
        "over_dlg_four": _pair(four, dlg[4]),
        "identified_over_dlg_four": intervals.difference(hits, rival, four.network),
    }


def unspent(scores: pd.DataFrame, gradients: int, objective: float) -> list[int]:
    """The trials that ended ten gradients or more before their budget and above this objective."""
    early = (scores.evaluations <= gradients - 10) & (scores.objective > objective)
    return sorted(set(scores.trial[early]))


def renewed(scores: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """The scores with the rows of the trials that ran again in their places."""
    kept = scores[~scores.trial.isin(again.trial)]
    return pd.concat([kept, again]).sort_values("trial", kind="stable", ignore_index=True)


RIVALS = {"Inverting Gradients": "ig", "GGL": "ggl"}
"""The rivals of GRNN that a claim names, and what their measures are called."""


def race(runs: Mapping[tuple[str, int], pd.DataFrame], grey: Mapping[int, pd.DataFrame]) -> Entries:
    """GRNN against the searches for pixels and for latents on the same updates, and these against a grey card.

    runs: (attack, batch size) -> scores. grey: batch size -> what a grey card is worth to the same images.
    """
    found = {"untrained_identified": intervals.proportion(runs["GRNN", 1].identified)}
    for name, key in RIVALS.items():
        for size, word in {1: "single", 4: "four"}.items():
            found[f"over_{key}_{word}"] = _pair(runs["GRNN", size], runs[name, size])
            found[f"{key}_over_grey_{word}"] = _pair(runs[name, size], grey[size])
    return found


def controls(by: Mapping[str, pd.DataFrame], nulls: Sequence[str]) -> Entries:
    """What the gradient adds to answers that never saw it; by: control -> scores. The best is so on average.

    A null control that is worse than that best answer proves little: each image is compared with the better of both.
    """
    own = by["gradient"]
    best = by[max((name for name in by if name != "gradient"), key=lambda name: by[name].psnr.mean())].psnr
    over = {name: intervals.difference(own.psnr, np.maximum(by[name].psnr, best)) for name in nulls}
    card = {name: intervals.difference(by["grey card"].psnr, by[name].psnr) for name in nulls}
    return {
        "over_gaussian": over[nulls[0]],
        "over_other": over[nulls[1]],
        "over_best_null": intervals.difference(own.psnr, best),
        "grey_over_gaussian": card[nulls[0]],
        "grey_over_other": card[nulls[1]],
        "identified_over_other": intervals.difference(
            own.identified.astype(float), by[nulls[1]].identified.astype(float)
        ),
    }


def trained(scores: pd.DataFrame, accuracy: Sequence[float]) -> Entries:
    """What comes back from trained networks, and how good these are."""
    return {
        "trained_identified": intervals.proportion(scores.identified),
        "accuracy": Measured(intervals.mean(accuracy, within=(0.0, 1.0))),
    }


def units(pixels: pd.DataFrame, normalised: pd.DataFrame, reach: pd.DataFrame) -> Entries:
    """What it costs to take the sigmoid's output for normalised values, and what it cannot say then."""
    return {
        "normalised_loss": _pair(pixels, normalised),
        "pixels_identified": intervals.proportion(pixels.identified, pixels.network),
        "range_lost": intervals.mean(reach.below, within=(0.0, 1.0)),
        "short_of_reach": intervals.difference(reach.psnr, normalised.psnr),
    }


def network(one: pd.DataFrame, four: pd.DataFrame) -> Entries:
    """What comes back under a network of ReLUs."""
    return {
        "cnn_single_identified": intervals.proportion(one.identified),
        "cnn_four_identified": intervals.proportion(four.identified, four.network),
    }


def defended(bare: pd.DataFrame, runs: Mapping[tuple[str, str], pd.DataFrame]) -> Entries:
    """What each defense costs, and what is identified in spite of it; (defense, attacker) -> scores."""
    keys = {("noise", "plain"): "noise", ("clipping", "plain"): "clip_plain", ("clipping", "informed"): "clip_informed"}
    keys |= {("pruning", "plain"): "prune_plain", ("pruning", "informed"): "prune_informed"}
    losses = {f"{name}_loss": _pair(bare, runs[key]) for key, name in keys.items()}
    every = {"bare": bare} | {name: runs[key] for key, name in keys.items()}
    return losses | {f"{name}_identified": intervals.proportion(t.identified, t.network) for name, t in every.items()}


def rows(runs: Mapping[tuple[str, ...], pd.DataFrame], titles: Collection[str]) -> pd.DataFrame:
    """A row a run under these titles of its key: PSNR, SSIM, and the shares of images identified and labels right."""
    table = []
    for key, own in runs.items():
        row: dict[str, Any] = dict(zip(titles, key, strict=True))
        row |= {"images": len(own), "PSNR": intervals.mean(own.psnr, own.network), "SSIM": np.mean(own.ssim)}
        row |= {"identified": intervals.proportion(own.identified, own.network)}
        row |= {"labels right": intervals.proportion(own.label_correct, own.network)}
        table.append(row)
    return pd.DataFrame(table)
