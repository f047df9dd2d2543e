"""Measures of the chapter on Soteria."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from reprolib.experiments.measures import identified, iterations, outer_steps
from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Entry, Measured, Unmeasured
from reprolib.measure.intervals import Interval

if TYPE_CHECKING:
    from reprolib.experiments.networks import Attacked


def mean(run: Attacked) -> Interval:
    """The mean PSNR (dB)."""
    return intervals.mean(run.scores.psnr, run.scores.network)


def lost(a: Attacked, b: Attacked | pd.DataFrame, what: str = "psnr") -> Interval:
    """What a has more than b, over the trials of both: same image, network and start."""
    pairs = a.scores.merge(getattr(b, "scores", b), on="trial", suffixes=("_a", "_b"))
    network = pairs.network_a if "network_a" in pairs else pairs.network
    return intervals.difference(pairs[f"{what}_a"].astype(float), pairs[f"{what}_b"].astype(float), network)


def effective_rates(width_64: pd.DataFrame, one: pd.DataFrame) -> Entries:
    """What a rate of 40 % takes from a ConvNet of width 64, and how many columns a rate of 1 % keeps in a LeNet."""
    forty = width_64.query("rate == 40")
    return {
        "untouched_40_convnet": intervals.proportion(forty.pruned_live == 0, forty.network),
        "effective_40_convnet": intervals.mean(forty.effective_rate, forty.network),
        "kept_one_percent": intervals.mean(one.features - one.pruned),
    }


def cost_of_the_truth(truth: pd.DataFrame) -> Entries:
    """How often the true image costs what the closed form says, and nothing who knows the defense."""
    fits = (truth.plain - truth.floor).abs() < 1e-6
    fits &= (truth.dropped.abs() < 1e-6) & (truth["columns"].abs() < 1e-6)
    return {"residual": intervals.proportion(fits, truth.image)}


def lenet(
    plain: Mapping[tuple[str, int], Attacked],
    columns: Mapping[int, Attacked],
    dropped: Mapping[str, Attacked],
    grey: pd.DataFrame,
    spent: int,
) -> Entries:
    """Three attackers on the LeNet by initialisation and rate; grey: a grey card on the same images.

    spent: iterations of the attacks under uniform weights.
    """
    base, top = plain["torch", 0], plain["torch", 80]
    uniform = {
        "plain_uniform_identified_0": identified(plain["uniform", 0]),
        "plain_uniform_identified_80": identified(plain["uniform", 80]),
        "plain_uniform_loss_80": lost(plain["uniform", 0], plain["uniform", 80]),
        "dropped_uniform_loss_80": lost(plain["uniform", 0], dropped["uniform"]),
    }
    found: dict[str, Entry] = {measure: Measured(value, iterations(spent)) for measure, value in uniform.items()}
    found |= {
        "plain_identified_0": identified(base),
        "plain_identified_80": identified(top),
        "plain_over_grey_80": lost(top, grey),
        "dropped_over_grey_80": lost(dropped["torch"], grey),
        "dropped_identified_80": identified(dropped["torch"]),
        "dropped_loss_80": lost(base, dropped["torch"]),
        "columns_loss_80": lost(base, columns[80]),
    }
    if ("torch", 10) in plain:
        found["plain_loss_10"] = lost(base, plain["torch", 10])
    if ("torch", 40) in plain:
        found["plain_identified_40"] = identified(plain["torch", 40])
    return found


def raw_pixels(runs: Mapping[str, Attacked]) -> Entries:
    """What is identified on a LeNet without a normalisation."""
    return {
        "raw_identified_0": identified(runs["plain, 0 %"]),
        "raw_identified_80": identified(runs["plain, 80 %"]),
        "raw_dropped_identified_80": identified(runs["dropped, any rate"]),
    }


def dlg(against: Mapping[tuple[str, str], Attacked], outers: int) -> Entries:
    """DLG with and without Soteria of 1 %, by the official settings and by the stable variant."""
    found: dict[str, Entry]
    spent, found = outer_steps(outers), {}
    for rate, name in ((0, "no defense"), (1, "Soteria, 1 %")):
        found[f"dlg_official_identified_{rate}"] = Measured(identified(against["official", name]), spent)
        found[f"dlg_stable_identified_{rate}"] = identified(against["stable", name])
    loud = against["official", "Soteria, 1 %"].scores
    found["dlg_official_diverged_1"] = Measured(intervals.proportion(loud.diverged, loud.network), spent)
    ratio = np.log10((loud.mse / loud.mse_clamped).clip(upper=1e9))
    known = against["stable", "Soteria, 1 %, dropped"]
    return found | {
        "dlg_official_objective_1": stays_high(loud, outers),
        "dlg_dropped_identified_loss": lost(against["stable", "no defense"], known, "identified"),
        "dlg_clamped_minus_raw": intervals.median(ratio, loud.network),
    }


def stays_high(loud: pd.DataFrame, outers: int) -> Entry:
    """The median objective of the searches that stay finite, where at least half do."""
    finite = loud[~loud.diverged]
    if 2 * len(finite) < len(loud) or finite.network.nunique() < 2:
        return Unmeasured("most of these searches diverge, and what the others end with says little", "out of scope")
    return Measured(intervals.median(finite.objective, finite.network), outer_steps(outers))


def untrained_convbig(runs: Mapping[str, Attacked], features: int, spent: int) -> Entries:
    """Attackers on ConvBig at initialisation."""
    found = {
        "big_identified_0": identified(runs["undefended"]),
        "big_identified_40": identified(runs["plain, 40 %"]),
        "dropped_loss_80_big": lost(runs["undefended"], runs["dropped"]),
    }
    return _on_convbig(found, features, spent)


def early(moments: Mapping[tuple[int, str], Attacked], grey: pd.DataFrame, features: int, spent: int) -> Entries:
    """Who drops the tensor, and who meets no defense, before training and after its last number of steps."""
    first, last = (at(step for step, _ in moments) for at in (min, max))
    found = {
        "early_identified": identified(moments[first, "dropped"]),
        "early_over_grey": lost(moments[first, "dropped"], grey),
        "early_loss": lost(moments[first, "dropped"], moments[last, "dropped"]),
        "early_loss_undefended": lost(moments[first, "undefended"], moments[last, "undefended"]),
    }
    return _on_convbig(found, features, spent)


def _on_convbig(found: Mapping[str, Interval], features: int, spent: int) -> Entries:
    at = {"model": f"ConvBig, {features} features"} | iterations(spent)
    return {measure: Measured(interval, at) for measure, interval in found.items()}


def ranking(runs: Mapping[str, Attacked], spent: int) -> Entries:
    """What ranking the columns at random lets be identified more than the paper's score."""
    gain = lost(runs["random"], runs["row"], "identified")
    return {"ranking_identified_gain": Measured(gain, iterations(spent))}


def price(plain: pd.DataFrame, defended: pd.DataFrame, images: int, steps: int) -> Entries:
    """Test accuracy that training on defended gradients loses; images: size of the test set."""
    loss = intervals.difference(plain.accuracy, defended.accuracy)
    return {"accuracy_loss": Measured(loss, {"budget": f"{steps:,} steps of SGD"}, images)}


def left_out(missing: Sequence[str]) -> Entries:
    """Why this run lacks the measures that are missing."""
    return {name: Unmeasured("this profile leaves that rate out", "budget") for name in missing}
