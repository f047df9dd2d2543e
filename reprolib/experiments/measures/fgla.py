"""Measures of the chapter on FGLA. `found` is what `experiments.decoded` or `experiments.compared` returned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Entry, Measured, Unmeasured
from reprolib.measure.intervals import Interval

Found = Mapping[str, Any]

RECOGNISED = {
    "8_dense": ("trained", 8, "whole"),
    "8_kept": ("trained", 8, "each"),
    "8_untrained": ("untrained", 8, "whole"),
    "large_dense": ("trained", 64, "whole"),
    "large_tensor": ("trained", 64, "each"),
    "large_weights": ("trained", 64, "weights"),
    "large_joint": ("trained", 64, "joint"),
    "large_imputed": ("trained", 64, "filled"),
    "large_untrained": ("untrained", 64, "whole"),
    "large_untrained_weights": ("untrained", 64, "weights"),
    "large_untrained_joint": ("untrained", 64, "joint"),
}
"""End of a measure's name -> trunk, size of the batch, what is left of the gradient."""


def values(found: Found, name: str, column: str = "psnr") -> np.ndarray:
    """A column of an attack's scores: an entry an image, in an order that is the same for every attack."""
    return found["scores"].query("attack == @name").sort_values(["trial", "image"])[column].to_numpy()


def mean(found: Found, name: str) -> Interval | float:
    """An attack's mean PSNR (dB), with its interval over batches where there are several."""
    own, trial = values(found, name), values(found, name, "trial")
    return intervals.mean(own, trial) if trial.max() else own.mean()


def gain(
    measure: str,
    found: Found,
    a: str,
    b: str,
    other: Found | None = None,
    conditions: Mapping[str, str] | None = None,
) -> Entries:
    """PSNR of attack a minus that of b, paired over images; b may come from another run on the same batches."""
    if not (trial := values(found, a, "trial")).max():
        return {measure: Unmeasured("this profile has a single batch of that size", "few")}
    return {measure: Measured(intervals.difference(values(found, a), values(other or found, b), trial), conditions)}


def restored(labels: pd.DataFrame) -> Entries:
    """How often the row minimum names all labels of a batch, by the head's classes."""
    found = {}
    for classes in sorted({10, 1000} & set(labels.classes)):
        own = labels[(labels.classes == classes) & (labels.rule == "minimum")]
        share = intervals.proportion(own.right > 1 - 1e-6, own.draw)
        found[f"labels_{classes}"] = Measured(share, images=int(own.batch.sum()))
    return found


def heads(errors: Mapping[str, np.ndarray]) -> Entries:
    """What smoothed labels and a head without bias add to the error of separated features."""
    plain, found = errors["nothing changed"], {}
    for measure, name in {"smoothing": "labels smoothed by 0.1", "no_bias": "no bias"}.items():
        found[measure] = Measured(intervals.difference(errors[name], plain), images=8 * len(errors[name]))
    return found


def noise(errors: pd.DataFrame) -> Entries:
    """How much larger the error of a batch of 64 is than that of 8 under noise of 1e-4; nothing without both."""
    if not {8, 64} <= set(errors.batch):
        return {}
    few, many = (errors[(errors.noise == 1e-4) & (errors.batch == size)].error for size in (8, 64))
    ratio = intervals.log_mean_ratio(many, few)
    return {"noise_ratio": Measured(ratio, images=8 * len(few) + 64 * len(many))}


def oracles(psnr: Mapping[str, np.ndarray]) -> Entries:
    """What a decoder makes of true features, and what average pooling costs it."""
    plain = psnr["untrained trunk"]
    loss = intervals.difference(plain, psnr["untrained, average pooling"])
    return {"oracle": intervals.mean(plain), "pooled_loss": loss}


def dense(found: Mapping[int, Found], ten: Found, clipped: Found) -> Entries:
    """FGLA against its decoder, against no gradient and against its own other forms.

    found: size of the batch -> result; ten: of a head of ten classes; clipped: of clipped gradients, batches of 8.
    """
    eight = found[8]
    change = np.abs(values(clipped, "FGLA") - values(eight, "FGLA"))
    largest = change.max()
    most = Interval(largest, largest, largest, n=len(change), method=f"the largest of {len(change)}")
    whole = eight["scores"].query("attack == 'FGLA'").groupby("trial")[["psnr_whole", "psnr_dim0"]].first()
    excess = intervals.difference(whole.psnr_dim0, whole.psnr_whole)
    return {
        **gain("oracle_gap_8", eight, "oracle", "FGLA"),
        **gain("oracle_gap_32", found[32], "oracle", "FGLA"),
        **gain("over_mean_dense", eight, "FGLA", "mean image"),
        **gain("factor_1000", eight, "full offset", "FGLA"),
        **gain("ghosts_10", ten, "oracle", "no offset"),
        **gain("refined_gap_10", ten, "self-consistent", "oracle"),
        "clipping": most,
        "dim0_excess": Measured(excess, images=len(values(eight, "FGLA"))),
    }


def modes(found: Mapping[tuple[str, str], Found]) -> Entries:
    """What a decoder in train mode costs, with the victim in eval mode and in train mode; found: (victim, decoder)."""
    return {
        **gain("decoder_mode", found["eval", "eval"], "FGLA", "FGLA", found["eval", "train"]),
        **gain("decoder_mode_train", found["train", "eval"], "FGLA", "FGLA", found["train", "train"]),
    }


def compressed(found: Mapping[tuple[int, float, str], Found]) -> Entries:
    """FGLA under compression: against no gradient, and the share of images lost; found: (size, share kept, scope)."""
    entries: dict[str, Entry]
    each, entries = "each tensor", {}
    for measure, key, a, b in (
        ("compressed_8", (8, 0.008, each), "FGLA", "mean image"),
        ("compressed_256_tensor", (256, 0.008, each), "FGLA", "mean image"),
        ("compressed_256_weights", (256, 0.008, "weights only"), "FGLA", "mean image"),
        ("imputed_gap", (8, 0.004, each), "oracle", "imputed"),
    ):
        if key in found:
            entries |= gain(measure, found[key], a, b)
    for measure, key in {"lost_at_cliff": (8, 0.008, each), "lost_below_cliff": (8, 0.004, each)}.items():
        if key in found:
            lost = values(found[key], "FGLA", "lost").astype(bool)
            entries[measure] = intervals.proportion(lost, values(found[key], "FGLA", "trial"))
    if (key := (256, 0.008, each)) in found:
        left = 1 - values(found[key], "FGLA", "lost").astype(float)
        entries["divisors_256"] = intervals.proportion(left, values(found[key], "FGLA", "trial"))
    return entries


def recognised(tables: Mapping[tuple[str, int, str], pd.DataFrame]) -> Entries:
    """The share of images identified; tables: (trunk, size of the batch, what is left of the gradient)."""
    return {
        f"identified_{measure}": intervals.proportion(tables[key].identified, tables[key].trial)
        for measure, key in RECOGNISED.items()
        if key in tables
    }


def searches(runs: Mapping[tuple[str, str], Found], short: Mapping[str, str], size: int) -> Entries:
    """Three searches against no gradient and against FGLA, and how much longer one takes.

    runs: (gradient, attack) -> result; short: key of the measure -> attack; size: of the batches.
    """
    entries: dict[str, Entry] = {}
    for key, name in short.items():
        for share in dict.fromkeys(share for share, _ in runs):
            over = "over_mean" if share == "dense" else "over_mean_compressed"
            entries |= gain(f"{key}_{over}", runs[share, name], name, "mean image", runs[share, "FGLA"])
            entries |= gain(f"{key}_{share.split()[0]}", runs[share, "FGLA"], "FGLA", name, runs[share, name])
    own, theirs = (
        runs["dense", name]["scores"].query("attack == @name").groupby("trial").seconds.first()
        for name in ("FGLA", short["ig"])
    )
    if len(own) > 1:
        entries["speedup"] = Measured(intervals.log_ratio(theirs, own), images=len(own) * size)
    return entries


def speed(seconds: pd.DataFrame) -> Entries:
    """Seconds a batch, in all and of the separation alone; seconds: a row a (stage, batch, draw)."""
    both, entries = seconds.groupby(["batch", "draw"]).seconds.sum(), {}
    sizes = set(seconds.batch)
    for size in sorted({8, 256} & sizes):
        entries[f"seconds_{size}"] = Measured(intervals.log_mean(both[size]), images=size * len(both[size]))
    if 8 in sizes:
        alone = seconds[(seconds.batch == 8) & (seconds.stage == "separation")].seconds
        entries["separation_seconds"] = Measured(intervals.log_mean(alone), images=8 * len(alone))
    return entries


def blended(rows: pd.DataFrame) -> Entries:
    """How often two images of one label come out as their mean feature decoded."""
    return {"blended": intervals.proportion(rows.blended)}


def repeated(sides: Mapping[str, pd.DataFrame]) -> Entries:
    """PSNR that an image loses whose label another of its batch has; nothing where too few batches have both."""
    unique, twice = sides["unique"], sides["repeated"]
    if min(own.trial.nunique() for own in (unique, twice)) < 2:
        return {}
    loss = intervals.mean_difference(unique.psnr, twice.psnr, unique.trial, twice.trial)
    return {"repeated_loss": Measured(loss, images=len(unique) + len(twice))}


def learned(errors: pd.DataFrame, steps: Sequence[int]) -> Entries:
    """How the error of separated features grows while the head learns, from its first to its last step."""
    ends = [errors[(errors.offset == "full") & (errors.steps == step)].error for step in (steps[-1], 0)]
    return {"trained_head_error": Measured(intervals.log_ratio(*ends), images=4 * len(ends[0]))}


def unseen(rows: pd.DataFrame) -> Entries:
    """What a decoder loses on two classes that it has not seen: one pair of decoders."""
    less = intervals.difference(rows["all"], rows["without"])
    return {"unseen_classes": replace(less, clusters=1, method=f"{less.method} of one pair of decoders")}


def masked(found: Found, budget: str) -> Entries:
    """HCGLA and what is left without its parts."""
    pairs = {
        "over_mean": ("HCGLA", "mean image"),
        "single_over_mean": ("mean of all rows", "mean image"),
        "start_over_mean": ("its start", "mean image"),
        "start_gain": ("HCGLA", "random start"),
        "search_gain": ("HCGLA", "its start"),
        "mask_gain": ("HCGLA", "no mask"),
    }
    entries: dict[str, Entry] = {}
    for measure, (a, b) in pairs.items():
        entries |= gain(f"hcgla_{measure}", found, a, b, conditions={"budget": budget})
    return entries


def left_out(missing: Sequence[str]) -> Entries:
    """Why this run lacks the measures that are missing."""
    small = Unmeasured("this profile leaves that cell out", "budget")
    return dict.fromkeys(missing, small)
