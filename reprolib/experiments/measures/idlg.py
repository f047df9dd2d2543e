"""Measures of the chapter on iDLG."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import pandas as pd

from reprolib.data import ImageSet
from reprolib.experiments.measures import recovered
from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Measured, Unmeasured
from reprolib.measure.intervals import Interval

DEFENDED = {
    "noise_1e-2": ("noise 1e-2", "row_sum"),
    "noise_1e-1": ("noise 1e-1", "row_sum"),
    "noise_1": ("noise 1", "row_sum"),
    "noise_1e-2_pairwise": ("noise 1e-2", "pairwise"),
    "prune_99": ("prune 99 %", "row_sum"),
}
"""End of a measure's name -> the defense and the rule."""


def clean_labels(name: str, pairs: pd.DataFrame) -> Entries:
    """The share of a set's labels that the row sums name."""
    return {f"label_accuracy_{name}": intervals.proportion(pairs.row_sum, pairs.network)}


def other_rules(pairs: pd.DataFrame) -> Entries:
    """The argument of the signs, and the share of labels that two more rules name."""
    columns = {
        "sign_argument_share": pairs.one_negative,
        "label_accuracy_bias": pairs.bias,
        "label_accuracy_pairwise": pairs.pairwise,
    }
    return {measure: intervals.proportion(hit, pairs.network) for measure, hit in columns.items()}


def signed_features(shares: Mapping[str, Interval]) -> Entries:
    """The share of labels that each rule names where the features' sum is negative; shares: rule -> interval."""
    rules = ("row_sum", "pairwise", "bias")
    return {f"label_accuracy_signed_{rule}": shares[rule] for rule in rules}


def joint_search(name: str, runs: pd.DataFrame, budget: Mapping[str, str]) -> Entries:
    """DLG's labels, both methods' success, and the paired differences, on one set."""
    d, i = (runs[runs.method == method].reset_index(drop=True) for method in ("DLG", "iDLG"))
    right, other = (t.label_correct.astype(float) for t in (i, d))
    below, above = recovered(i), recovered(d)
    found = {
        "dlg_label_accuracy": intervals.proportion(d.label_correct, d.network),
        "label_difference": intervals.difference(right, other, i.network),
        "fidelity_idlg": intervals.below(i.mse, 1e-3, i.network),
        "fidelity_dlg": intervals.below(d.mse, 1e-3, d.network),
        "fidelity_difference": intervals.difference(below, above, i.network),
    }
    return {f"{stem}_{name}": Measured(interval, budget) for stem, interval in found.items()}


def sets_left_out(attacked: Collection[str], read: Collection[str]) -> Entries:
    """Why the other sets were not attacked; read: those whose labels were read."""
    lfw = Unmeasured("LFW is not attacked here: only the paper profile asks for it, and it must be brought", "data")
    small = Unmeasured("this profile does not attack that data set", "budget")
    stems = ("dlg_label_accuracy", "label_difference", "fidelity_idlg", "fidelity_dlg", "fidelity_difference")
    gone = [name for name in ("mnist", "cifar100", "lfw", "cifar10") if name not in attacked]
    found = {f"{stem}_{name}": lfw if name == "lfw" else small for name in gone for stem in stems}
    if "lfw" not in read:
        why = "LFW's labels are read in the paper profile, where LFW is at hand"
        found["label_accuracy_lfw"] = Unmeasured(why, "data")
    return found


def controls(tables: Mapping[str, pd.DataFrame], budget: Mapping[str, str]) -> Entries:
    """Whether DLG with the label given is iDLG, and what a looser tolerance changes."""
    plain, loose = tables["iDLG"], tables["tolerance 1e-5"]
    same = intervals.proportion(plain.mse == tables["label given"].mse, plain.network)
    found = {"known_label_same": Measured(same, budget)}
    if plain.network.nunique() < 2:
        return found | {"tolerance_difference": Unmeasured("this profile attacks a single network", "few")}
    gain = intervals.difference(recovered(loose), recovered(plain), plain.network)
    return found | {"tolerance_difference": Measured(gain, budget)}


def race(scores: Mapping[str, pd.DataFrame], faces: ImageSet | None, budget: Mapping[str, str]) -> Entries:
    """Evaluations that DLG takes over those of iDLG, on the runs in which both arrive."""
    if faces is None:
        return {"evaluations_ratio_dlg_idlg": Unmeasured("this profile does not attack faces", "budget")}
    dlg, idlg = (scores[method].evaluations_to for method in ("DLG", "iDLG"))
    arrived = (dlg < float("inf")) & (idlg < float("inf"))
    ratio = intervals.log_ratio(dlg[arrived], idlg[arrived], scores["DLG"].network[arrived])
    scale = {"scale": f"{faces.image_shape[-1]} px"}
    return {"evaluations_ratio_dlg_idlg": Measured(ratio, {**budget, **scale})}


def batch_labels(counted: pd.DataFrame, classes: int) -> Entries:
    """Labels of a batch of eight that the corrected rule restores, of those that blind naming would leave."""
    eight = counted[(counted.batch == 8) & (counted.rule == "bias_corrected")].right
    if not len(eight):
        return {"batch_labels_8": Unmeasured("this profile has no batch of 8", "budget")}
    # what naming different classes blindly has right, on average
    chance = min(8, classes) / 8 * (1 - (1 - 1 / classes) ** 8)
    above = intervals.mean((eight - chance) / (1 - chance), within=(-chance / (1 - chance), 1))
    return {"batch_labels_8": Measured(above, images=8 * len(eight))}


def defended(tables: Mapping[str, pd.DataFrame]) -> Entries:
    """The share of labels that rules name under defenses; tables: name of the defense -> hits of every rule."""
    hits = {measure: (tables[name][rule], tables[name].network) for measure, (name, rule) in DEFENDED.items()}
    return {f"label_accuracy_{measure}": intervals.proportion(*hit) for measure, hit in hits.items()}
