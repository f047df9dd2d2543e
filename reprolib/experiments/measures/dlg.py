"""Measures of the chapter on DLG."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from reprolib.experiments.measures import outer_steps, recovered
from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Entry, Measured, Unmeasured

if TYPE_CHECKING:
    from reprolib.experiments.networks import Attacked

SETS = ("mnist", "cifar100", "svhn", "lfw")
"""The image sets besides CIFAR-10 that the paper attacks."""


def correlations(layers: pd.DataFrame) -> list[float]:
    """Of each image's run, the rank correlation of its error and the layers' distances, a mean over the layers."""
    weights = [name for name in layers if name.endswith("weight")]
    return [run[weights].corrwith(run.image, method="spearman").mean() for _, run in layers.groupby("trial")]


def layer_correlation(layers: pd.DataFrame, outers: int) -> Entries:
    """Rank correlation over a run of the image's error and the layers' distances, a mean over the images."""
    if layers.outer.nunique() <= 4 or layers.trial.nunique() <= 1:
        return {"layer_correlation": Unmeasured("too few iterations or images for a correlation")}
    together = intervals.mean(correlations(layers), within=(-1, 1))
    return {"layer_correlation": Measured(together, outer_steps(outers))}


def success(runs: Mapping[str, Attacked], presets: Mapping[str, Any]) -> Entries:
    """How often each preset recovers and identifies an image, and the two compared on the same images."""
    found = {}
    for name, run in runs.items():
        t, spent = run.scores, outer_steps(presets[name].iterations)
        found[f"recovery_{name}"] = Measured(intervals.below(t.mse, 1e-3, t.network), spent)
        found[f"identified_{name}"] = Measured(intervals.proportion(t.identified, t.network), spent)
    official, stable = runs["official"].scores, runs["stable"].scores
    gain = intervals.difference(recovered(stable), recovered(official), stable.network)
    share = intervals.between_share(recovered(official), official.network)
    return found | {"stable_minus_official": gain, "network_variance_share": share}


def engine(ours: pd.DataFrame, plain: pd.DataFrame) -> Entries:
    """Success of the batched engine minus that of the plain loop, on the same images."""
    return {"official_minus_plain": intervals.difference(recovered(ours), recovered(plain), plain.network)}


def other_set(name: str, scores: pd.DataFrame, outers: int) -> Entries:
    """How often the official attack recovers an image of another set."""
    return {f"recovery_{name}": Measured(intervals.below(scores.mse, 1e-3, scores.network), outer_steps(outers))}


def sets_left_out(attacked: Collection[str]) -> Entries:
    """Why the other sets were not attacked."""
    svhn = Unmeasured("SVHN is not at hand: only the paper profile asks for it, and it must be brought", "data")
    small = Unmeasured("this profile does not attack that data set", "budget")
    return {f"recovery_{name}": svhn if name == "svhn" else small for name in SETS if name not in attacked}


def victims(tables: Mapping[str, pd.DataFrame], named: Mapping[str, str], outers: int) -> Entries:
    """How often an image is identified when one thing about the victim changes; named: key of the measure -> table."""
    found: dict[str, Entry] = {}
    for key, name in named.items():
        if name in tables:
            t = tables[name]
            units = t.trial if key == "shipped" else t.network
            found[f"identified_{key}"] = Measured(intervals.proportion(t.identified, units), outer_steps(outers))
        else:
            found[f"identified_{key}"] = Unmeasured("this profile leaves the ResNet out", "budget")
    no_control = Unmeasured("Inverting Gradients has not attacked this victim yet")
    return found | {"control_resnet": no_control, "control_shipped": no_control}


def control(key: str, scores: pd.DataFrame) -> Entries:
    """How often another attack identifies an image of that victim."""
    return {f"control_{key}": intervals.proportion(scores.identified, scores.network)}


def batch_lengths(grouped: pd.DataFrame, outers: int) -> Entries:
    """Evaluations that a larger batch takes until it is recovered, over those of a smaller one."""
    per = {key: g.drop_duplicates("network").evaluations_to for key, g in grouped.groupby(["batch", "rule"])}
    arrived = {size: spent[spent < float("inf")] for (size, rule), spent in per.items() if rule == "joint"}
    hardly = Unmeasured(f"of larger batches hardly one comes back whole in {outers} outer steps", "budget")
    found = {}
    for small, large in ((1, 2), (2, 4), (4, 8), (1, 8)):
        few, many = arrived.get(small, ()), arrived.get(large, ())
        several = min(len(few), len(many)) > 1
        measure = f"batch_ratio_{large}_{small}"
        found[measure] = Measured(intervals.log_mean_ratio(many, few), images=len(grouped)) if several else hardly
    return found


def batches_of_8(grouped: pd.DataFrame, outers: int) -> Entries:
    """How often an image of a batch of eight is recovered, and what updating one image at a time gains."""
    why = "nothing of a batch of eight comes back at this budget, and no batch was looked for in its set"
    found: dict[str, Entry] = {"batch_identified_8": Unmeasured(why, "budget")}
    eight = {rule: g for rule, g in grouped[grouped.batch == 8].groupby("rule")}
    if not eight:
        none = Unmeasured("this profile has no batch of 8", "budget")
        return found | {"batch_recovery_8": none, "batch_cyclic_minus_joint": none}
    joint, networks = recovered(eight["joint"]), eight["joint"].network
    gain = intervals.difference(recovered(eight["cyclic"]), joint, networks)
    found["batch_recovery_8"] = Measured(intervals.proportion(joint, networks), outer_steps(outers))
    return found | {"batch_cyclic_minus_joint": Measured(gain, outer_steps(outers))}


def large(scores: pd.DataFrame | None, outers: int) -> Entries:
    """How often an image of 64 x 64 pixels is recovered, and identified where there are enough to choose from."""
    few = Unmeasured("identifying takes a pool of at least 100 images", "budget")
    if scores is None:
        none = Unmeasured("this profile attacks no images of 64 × 64 pixels", "budget")
        return {"recovery_64": none, "identified_64": few}
    spent = outer_steps(outers)
    named = Measured(intervals.proportion(scores.identified, scores.network), spent)
    found = {"recovery_64": Measured(intervals.below(scores.mse, 1e-3, scores.network), spent)}
    return found | {"identified_64": named if len(scores) >= 100 else few}


def laws(rows: Mapping[tuple[str, str, str], pd.DataFrame]) -> Entries:
    """What Laplacian noise hides beyond Gaussian noise of the same size; nothing where a level is left out."""
    pair = [rows.get((f"{law}_std_3e-2", "stable", "static")) for law in ("laplace", "gaussian")]
    if any(t is None for t in pair):
        return {}
    one, other = (t.identified.astype(float) for t in pair)
    return {"laplace_minus_gaussian": intervals.difference(one, other, pair[0].network)}


def defended(
    rows: Mapping[tuple[str, str, str], pd.DataFrame], presets: Mapping[str, Any], declared: Collection[str]
) -> Entries:
    """What each attacker identifies under each defense, and how many of the official attack's come with artefacts.

    rows: (defense, preset, attacker) -> scores. declared: the measures of the claims; of a defense without one nothing
    is entered.
    """
    found: dict[str, Entry] = {}
    for (name, preset, attacker), t in rows.items():
        if t.network.nunique() < 2:
            continue
        measure = f"control_{preset}" if name == "none" else f"{name}_{preset}_{attacker}"
        back, shares = t[t.identified], {measure: intervals.proportion(t.identified, t.network)}
        if (preset, attacker) == ("official", "static") and back.network.nunique() > 1:
            shares[f"{name}_artefacts"] = intervals.proportion(back.mse > 1e-3, back.network)
        spent = outer_steps(presets[preset].iterations)
        found |= {what: Measured(share, spent) for what, share in shares.items() if what in declared}
    return found


def nearer(rows: Mapping[tuple[str, str, str], pd.DataFrame], bar: float) -> Entries:
    """How many pictures that name their image at 30 % pruning are nearer to it than the mean image, of bar dB."""
    found: dict[str, Entry] = {}
    for name in ("prune_30", "prune_30_global"):
        t = rows.get((name, "official", "static"))
        if t is not None and (back := t[t.identified]).network.nunique() > 1:
            found[f"{name}_nearer"] = intervals.proportion(back.psnr > bar, back.network)
    return found


def costs(trained: Mapping[str, pd.DataFrame], images: int) -> Entries:
    """Test accuracy that training with each defense loses, a pair a seed; images: size of the test set.

    A training that collapses loses many times what the others lose, so that the measure is skewed.
    """
    plain = trained["none"].accuracy.to_numpy()
    lost = {name: plain - np.asarray(t.accuracy) for name, t in trained.items() if name != "none" and len(t) > 1}
    means = {name: replace(intervals.mean(drop), skewed=True) for name, drop in lost.items()}
    return {f"utility_drop_{name}": Measured(mean, images=images) for name, mean in means.items()}


def left_out(missing: Sequence[str], defenses: Sequence[str]) -> Entries:
    """Why this run lacks the measures that are missing."""
    few = Unmeasured("hardly an image is identified whose artefacts could be counted", "few")
    small = Unmeasured("this profile leaves out that level, or trains one seed only", "budget")
    artefacts = {f"{name}_artefacts" for name in defenses}
    return {name: few if name in artefacts else small for name in missing}
