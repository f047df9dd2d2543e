"""Measures of the chapter on PRECODE."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from reprolib.experiments.measures import identified, iterations
from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Measured
from reprolib.measure.intervals import Interval

if TYPE_CHECKING:
    from reprolib.experiments.networks import Attacked

COUNTERED = {
    "omit_mlp": ("MLP", "B2 upstream, fresh noise"),
    "omit_lenet": ("LeNet", "B2 upstream, fresh noise"),
    "omit_zero_lenet": ("LeNet", "B2+B3 upstream, no noise"),
    "zero_mlp": ("MLP", "B3 all, no noise"),
    "joint_mlp": ("MLP", "B4 all, joint noise"),
    "joint_lenet": ("LeNet", "B4 all, joint noise"),
    "recovered_mlp": ("MLP", "B5 upstream, recovered noise"),
    "recovered_lenet": ("LeNet", "B5 upstream, recovered noise"),
    "averaged_mlp": ("MLP", "B6 all, averaged draws"),
}
"""Beginning of a measure's name -> the victim and the attacker who knows."""

CONVERGED = 0.0102
"""The largest of the ten distances that the official notebook prints of the undefended MLP."""


def good(run: Attacked) -> Interval:
    """The share of images with an SSIM of at least 0.6, the paper's bound for a success."""
    return intervals.proportion(run.scores.ssim >= 0.6, run.scores.network)


def mean(run: Attacked, column: str) -> Interval:
    """The mean of a column."""
    return intervals.mean(run.scores[column], run.scores.network)


def unchanged(plain: Mapping[str, Attacked], naive: Mapping[str, Attacked], spent: int) -> Entries:
    """The unchanged attack without PRECODE and with it; victim -> run; spent: iterations."""
    found = {}
    for victim in plain:
        for kind, runs in {"plain": plain, "naive": naive}.items():
            found[f"{kind}_{victim.lower()}_identified"] = identified(runs[victim])
        found[f"naive_{victim.lower()}_success"] = good(naive[victim])
    found |= {"plain_mlp_ssim": mean(plain["MLP"], "ssim"), "naive_mlp_ssim": mean(naive["MLP"], "ssim")}
    found["naive_mlp_cost"] = mean(naive["MLP"], "objective")
    return {measure: Measured(interval, iterations(spent)) for measure, interval in found.items()}


def patient(runs: Mapping[tuple[str, str], Attacked], spent: int) -> Entries:
    """The same two with more iterations; runs: (victim, "plain" or "unchanged"); spent: iterations."""
    mlp = runs["MLP", "plain"].scores
    found = {
        f"naive_{victim.lower()}_long_identified": identified(runs[victim, "unchanged"]) for victim in ("MLP", "LeNet")
    }
    found["plain_mlp_long_within"] = intervals.proportion(mlp.objective <= CONVERGED, mlp.network)
    found["plain_lenet_long_identified"] = identified(runs["LeNet", "plain"])
    return {measure: Measured(interval, iterations(spent)) for measure, interval in found.items()}


def hundred_classes(runs: Mapping[tuple[str, str], Attacked], spent: int) -> Entries:
    """The same on CIFAR-100; runs: (victim, "plain" or "unchanged")."""
    kinds = {"plain": "plain", "unchanged": "naive"}
    return {
        f"{kinds[kind]}_{victim.lower()}_cifar100_identified": Measured(identified(run), iterations(spent))
        for (victim, kind), run in runs.items()
    }


def truth(distances: pd.DataFrame, reached: Attacked) -> Entries:
    """Distance at the true image under fresh noise, minus what the unchanged attack reached."""
    chosen = distances.query("tensors == 'all' and image == 'true' and noise == 'fresh'")
    fresh, found = chosen.set_index("trial").distance, reached.scores.set_index("trial").objective
    return {"truth_minus_reached": intervals.difference(fresh, found[fresh.index])}


def closed_form(tables: Mapping[str, pd.DataFrame]) -> Entries:
    """What needs no search: image, label and noise; tables: victim -> errors."""
    both = pd.concat(tables.values())
    found = {
        "closed_image": intervals.proportion(tables["MLP"].image <= 1e-5),
        "closed_label": intervals.proportion(both.label, both.index),
    }
    return found | {f"closed_noise_{name.lower()}": intervals.proportion(t.noise <= 1e-3) for name, t in tables.items()}


def countered(
    found: Mapping[str, Mapping[str, Attacked]], plans: Mapping[str, Mapping[str, tuple[Any, int]]]
) -> Entries:
    """What attackers who know identify; victim -> attacker -> run. plans: the same with (search, images)."""
    entries = {}
    for measure, (victim, name) in COUNTERED.items():
        run, spent = found[victim][name], iterations(plans[victim][name][0].iterations)
        entries[f"{measure}_identified"] = Measured(identified(run), spent)
        entries[f"{measure}_success"] = Measured(good(run), spent)
    zero, drawn = (found["MLP"][name].scores for name in ("B2+B3 upstream, no noise", "B2 upstream, fresh noise"))
    return entries | {"omit_zero_gain": intervals.difference(zero.ssim, drawn.ssim, zero.network)}


def trained(scores: pd.DataFrame) -> Entries:
    """Attacks on trained networks, with PRECODE and without; scores with a column `aim`."""
    informed = {"upstream, no noise": "omit", "upstream, recovered noise": "recovered"}
    found = {}
    for aim, key in ({"no defense": "plain", "unchanged": "unchanged"} | informed).items():
        t = scores[scores.aim == aim]
        found[f"trained_{key}_identified"] = intervals.proportion(t.identified, t.network)
        if aim in informed:
            found[f"trained_{key}_success"] = intervals.proportion(t.ssim >= 0.6, t.network)
    return found


def batches(grown: Mapping[tuple[int, str], Attacked], largest: int) -> Entries:
    """SSIM that the largest batches lose against single images; grown: (size, case) -> run."""
    found = {}
    for name, measure in {"plain": "batch_loss_plain", "PRECODE, upstream, no noise": "batch_loss"}.items():
        one, most = (grown[size, name].scores for size in (1, largest))
        loss = intervals.mean_difference(one.ssim, most.ssim, one.network, most.network)
        found[measure] = Measured(loss, images=len(most))
    return found


def costs(tables: Mapping[tuple[str, str], pd.DataFrame], images: int) -> Entries:
    """Test accuracy that training with PRECODE loses; tables: (victim, training); images: size of the test set."""
    drops = {
        victim: intervals.difference(tables[victim, "plain"].accuracy, tables[victim, "precode"].accuracy)
        for victim in dict.fromkeys(victim for victim, _ in tables)
    }
    return {f"accuracy_drop_{name.lower()}": Measured(drop, images=images) for name, drop in drops.items()}


def overfitting(losses: pd.DataFrame, epochs: int, amount: int, images: int) -> Entries:
    """What long training on few images ends with, without PRECODE and with it: losses and accuracy on test images."""
    last = {kind: t[t.epochs == epochs].set_index("run") for kind, t in losses.groupby("case")}
    plain, precode = last["plain"], last["PRECODE"]
    found = {
        "test_loss_ratio": intervals.log_ratio(plain.test_loss, precode.test_loss),
        "test_entropy_ratio": intervals.log_ratio(plain.test_entropy, precode.test_entropy),
        "overfit_accuracy_drop": intervals.difference(plain.test_accuracy, precode.test_accuracy),
    }
    at = {"scale": f"{amount:,} training images", "budget": f"{epochs} epochs of Adam"}
    return {measure: Measured(interval, at, images) for measure, interval in found.items()}


def perturbed(swept: Mapping[tuple[str, str], Attacked], levels: Sequence[float], images: int, spent: int) -> Entries:
    """What perturbing upstream alone leaves identified less than perturbing all; (level, kind) -> run."""
    found = {}
    for kind, measure in {"partial": "ppp_identified_gain", "partial, all": "ppp_all_identified_gain"}.items():
        whole, part = (pd.concat([swept[f"std {std:g}", one].scores for std in levels]) for one in ("whole", kind))
        named = intervals.difference(whole.identified.astype(float), part.identified.astype(float), whole.network)
        found[measure] = Measured(named, iterations(spent), images)
    whole, part = (swept["std 0.01", kind].scores for kind in ("whole", "partial"))
    gain = intervals.difference(whole.psnr, part.psnr, whole.network)
    return found | {"ppp_gain": Measured(gain, iterations(spent))}


def lengths(plain: pd.DataFrame, precode: pd.DataFrame) -> Entries:
    """How much longer an MLP's gradients upstream are without a bottleneck; tables of `noise_by_layer`."""
    upstream = ["hidden1.weight", "hidden2.weight"]
    one, other = (
        t[t.parameter.isin(upstream)].groupby("trial").length.agg(lambda part: part.pow(2).sum() ** 0.5)
        for t in (plain, precode)
    )
    return {"upstream_length_ratio": intervals.log_ratio(one, other)}


def placed(omitted: Attacked, recovered: Attacked, spent: int) -> Entries:
    """What two attackers who know identify where the bottleneck stands early."""
    found = {"early_omit_identified": identified(omitted), "early_recovered_identified": identified(recovered)}
    return {measure: Measured(interval, iterations(spent)) for measure, interval in found.items()}
