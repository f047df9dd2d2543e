"""Measures of the chapter on the Cocktail Party Attack; scores: what `experiments.unmixed` returned as "scores"."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from reprolib.experiments.measures import NOT_RUN, iterations
from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Measured, Unmeasured
from reprolib.measure.intervals import Interval

SHIELDS = {
    "none": "no defense",
    "clipping": "clipping to 0.1",
    "noise_2e-4": "noise, std 2e-4",
    "noise_2e-3": "noise, std 2e-3",
    "noise_2e-2": "noise, std 2e-2",
    "pruned_50": "50 % pruned",
    "pruned_90": "90 % pruned",
    "pruned_99": "99 % pruned",
    "int8": "8-bit integers",
    "signs": "signs",
    "dpsgd": "DP-SGD, z = 0.01",
    "precode": "PRECODE",
}
"""Part of a measure's name -> the defense's."""


def of(scores: pd.DataFrame, attack: str) -> pd.DataFrame:
    """An attack's rows, in an order that is the same for every attack."""
    return scores[scores.attack == attack].sort_values(["trial", "image"])


def psnr(scores: pd.DataFrame, attack: str) -> Interval:
    """Mean PSNR (dB) with its interval over batches."""
    own = of(scores, attack)
    return intervals.mean(own.psnr, own.trial)


def identified(scores: pd.DataFrame, attack: str) -> Interval:
    """The share of images identified, with its interval over batches."""
    own = of(scores, attack)
    return intervals.proportion(own.identified, own.trial)


def gain(first: pd.DataFrame, a: str, second: pd.DataFrame, b: str) -> Interval:
    """PSNR (dB) of attack a minus that of b, paired over the images of the same batches."""
    own, other = of(first, a), of(second, b)
    return intervals.difference(own.psnr.to_numpy(), other.psnr.to_numpy(), own.trial.to_numpy())


def chance(guesses: pd.DataFrame) -> pd.DataFrame:
    """The rows of the guess that identifies more images; guesses: what `experiments.by_chance` returned."""
    luckier = guesses.groupby("attack").identified.mean().idxmax()
    return of(guesses, luckier)


def over_chance(scores: pd.DataFrame, attack: str, guesses: pd.DataFrame) -> Interval:
    """The share of images identified less that of the better guess, paired over the images of the same batches."""
    own, other = of(scores, attack), chance(guesses)
    hits, lucky = (t.identified.to_numpy(dtype=float) for t in (own, other))
    return intervals.difference(hits, lucky, own.trial.to_numpy())


def farthest(first: pd.DataFrame, *others: pd.DataFrame) -> Measured:
    """The largest difference (dB) between the mean PSNR of a batch in one table and in another, of bands."""
    base = of(first, "bands").groupby("trial").psnr.mean()
    apart = [abs(of(t, "bands").groupby("trial").psnr.mean() - base).dropna() for t in others]
    most = float(pd.concat(apart).max())
    count, images = sum(map(len, apart)), sum(len(of(t, "bands")) for t in others)
    return Measured(Interval(most, most, most, n=count, method=f"the largest of {count} batches"), images=images)


def span(tables: Mapping[int, pd.DataFrame]) -> Entries:
    """What the gradient's rows and rank say of the batch; tables: size of the batch -> `experiments.spectra`."""
    first = {size: table.groupby("trial").first() for size, table in tables.items()}
    outside = np.concatenate([own.span.to_numpy() for own in first.values()])
    excess = np.concatenate([(own["rank"] - size).to_numpy() for size, own in first.items()])
    count = sum(size * len(own) for size, own in first.items())
    entries = {}
    for measure, values in {"span_error": outside, "rank_excess": excess}.items():
        most = float(values[np.abs(values).argmax()])
        found = Interval(most, most, most, n=len(values), method=f"the largest of {len(values)} batches")
        entries[measure] = Measured(found, images=count)
    return entries


def rank_in_single(tables: Mapping[int, pd.DataFrame]) -> Entries:
    """As `span`'s "rank_excess", of clients that compute in float32."""
    return {"rank_excess_float32": span(tables)["rank_excess"]}


def batches(tables: Mapping[int, pd.DataFrame], guesses: Mapping[int, pd.DataFrame]) -> Entries:
    """How well batches are read, by their size; tables, guesses: size of the batch -> scores, and those of guesses."""
    entries: dict[str, Interval] = {}
    for size, scores in tables.items():
        for attack, name in (("derivatives", "derivative"), ("bands", "bands")):
            if size in {"derivative": (8, 16, 64), "bands": (8, 16, 64, 128)}[name]:
                entries[f"{name}_{size}"] = psnr(scores, attack)
    if 64 in tables:
        for attack, name in (("derivatives", "derivative"), ("bands", "bands")):
            own = of(tables[64], attack)
            entries[f"share_{name}_64"] = intervals.proportion(own.psnr >= 19, own.trial)
        entries["bands_over_derivative_64"] = gain(tables[64], "bands", tables[64], "derivatives")
    if 16 in tables and "pixels" in set(tables[16].attack):
        entries["derivative_over_pixels_16"] = gain(tables[16], "derivatives", tables[16], "pixels")
    if 256 in tables:
        entries["identified_256"] = identified(tables[256], "bands")
        entries["over_chance_256"] = over_chance(tables[256], "bands", guesses[256])
        entries["bands_256"] = psnr(tables[256], "bands")
    return entries


def searches(scores: pd.DataFrame, size: int, budget: int) -> Entries:
    """The objective's variants and what reads the same batches without a search, where these hold 16 images."""
    if size != 16:
        return {}
    pairs = {
        "contrast_gain": ("paper", "released"),
        "decorrelation_gain": ("paper", "without decorrelation"),
        "variation_gain": ("paper", "without total variation"),
        "derivative_over_released": ("derivatives", "released"),
        "bands_over_swept": ("bands", "swept"),
        "derivative_over_released_alike": ("derivatives, stretched", "released"),
        "bands_over_swept_alike": ("bands, stretched", "swept"),
        "variation_over_contrast": ("released", "without total variation"),
        "decorrelation_over_contrast": ("released", "without decorrelation"),
    }
    on, count = iterations(budget), len(of(scores, "paper"))
    entries = {name: Measured(gain(scores, a, scores, b), on, count) for name, (a, b) in pairs.items()}
    return entries | {"released_16": Measured(psnr(scores, "released"), on, count)}


def matching(scores: pd.DataFrame, size: int, budget: int) -> Entries:
    """The paper's objective against gradient matching, and that against no gradient, for batches of 8.

    budget: of the shorter search.
    """
    if size != 8:
        return {}
    on, count = iterations(budget), len(of(scores, "paper"))
    over = gain(scores, "Inverting Gradients", scores, "mean image")
    return {
        "party_over_matching": Measured(gain(scores, "paper", scores, "Inverting Gradients"), on, count),
        "matching_over_mean": Measured(over, on, count),
    }


def invariance(tables: Mapping[str, pd.DataFrame]) -> Entries:
    """What local steps, training and precision change: the largest difference of a batch from one step in float64.

    tables: row of the chapter's table -> scores.
    """
    one, twenty = tables["one step"], [t for name, t in tables.items() if name.startswith("20 steps")]
    return {
        "steps_20": farthest(one, *twenty),
        "trained_gap": farthest(one, tables["trained"]),
        "float32_gap": farthest(one, tables["one step, in float32"]),
    }


def clients(one: pd.DataFrame, *means: pd.DataFrame) -> Entries:
    """Means of 16 clients, of gradients and of local steps, against one gradient of all their images."""
    return {"clients_gap": farthest(one, *means)}


def wall(below: pd.DataFrame, beyond: pd.DataFrame, guesses: pd.DataFrame) -> Entries:
    """Images recognised on either side of the layer's width; guesses: on the batches beyond it."""
    return {
        "below_wall": identified(below, "bands"),
        "beyond_wall": identified(beyond, "bands"),
        "beyond_wall_over_chance": over_chance(beyond, "bands", guesses),
    }


def defended(tables: Mapping[tuple[str, str], pd.DataFrame]) -> Entries:
    """Images recognised under defenses; tables: (defense, "static" or "informed") -> scores."""
    keys = {shown: key for key, shown in SHIELDS.items()}
    return {f"read_{keys[name]}_{who}": identified(t, "bands") for (name, who), t in tables.items()}


def features(scores: pd.DataFrame) -> Entries:
    """Separated features against true ones and against FGLA's, decoded; scores: of `experiments.decoded_features`.

    repeated_gain counts the images whose label occurs again in their batch.
    """
    again = scores[scores.repeated]
    return {
        "features_gap": gain(scores, "oracle", scores, "hidden layer"),
        "oracle_over_mean": gain(scores, "oracle", scores, "mean image"),
        "oracle_identified": identified(scores, "oracle"),
        "repeated_gain": gain(again, "head", again, "FGLA") if again.trial.nunique() > 1 else NOT_RUN,
    }


def left_out(missing: list[str]) -> Entries:
    """Why this run lacks the measures that are missing."""
    return {name: Unmeasured("this profile leaves that size out", "budget") for name in missing}
