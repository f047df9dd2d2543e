"""Measures of the chapter on defenses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from reprolib.defenses import reconstruction_bound
from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Entry, Measured, Unmeasured
from reprolib.measure.intervals import Interval

if TYPE_CHECKING:
    from reprolib.experiments.networks import Attacked

COSTS = {
    "clipping": "clipping",
    "dual_pruning": "dual_pruning",
    "dpsgd": "dpsgd_1",
    "outpost": "outpost",
    "mixup": "mixup",
    "ats": "ats",
    "prune_99_feedback": "prune_99_feedback",
}
"""End of a measure's name -> the defense whose training it compares with the plain one."""

FEWER = {
    "gaussian": "gaussian_1e-1",
    "graddefense": "graddefense_strong",
    "soteria": "soteria",
    "precode": "precode",
    "partial": "partial",
    "sign": "sign",
}
"""The same of those that no claim rests on, trained fewer times."""


def identified(run: Attacked) -> Interval:
    """The share of images identified."""
    return intervals.proportion(run.scores.identified)


def paired(a: pd.Series, b: pd.Series) -> Interval:
    """What a has more than b on the images that both met: the first ones."""
    least = min(len(a), len(b))
    return intervals.difference(a[:least], b[:least])


def both_attackers(both: Mapping[str, Mapping[str, Attacked]], declared: Collection[str]) -> Entries:
    """What is identified under each defense by who ignores it and who knows it; attacker -> defense -> run.

    declared: the measures of the claims.
    """
    static, adaptive = both["static"], both["adaptive"]
    found = {f"{name}_{who}": run for who, runs in both.items() for name, run in runs.items()}
    return {measure: identified(run) for measure, run in found.items() if measure in declared} | {
        "map_minus_static": paired(
            adaptive["gaussian_1e-1"].scores.identified, static["gaussian_1e-1"].scores.identified
        ),
    }


def weighed(table: pd.DataFrame) -> Entries:
    """What who weighs all candidates names under DP-SGD, and how far that is above the bound of `reconstruction_bound`.

    table: `experiments.rivals.weighed_candidates`, with multipliers of 0.1 and 1 among others.
    """
    at = dict(list(table.groupby("multiplier")))
    bounds = [reconstruction_bound(chance, 1.0) for chance in at[1.0].chance]
    return {
        "dpsgd_weighed": intervals.proportion(at[0.1].identified),
        "dpsgd_over_bound": intervals.over_chance(at[1.0].identified, bounds),
    }


def rival(kind: str, own: Attacked, other: Attacked) -> Entries:
    """What the maximum a posteriori identifies beyond a rival of it."""
    return {f"map_minus_{kind}": paired(own.scores.identified, other.scores.identified)}


def direction(seen: Mapping[str, Attacked]) -> Entries:
    """What an attack on directions identifies, and what clipping changes for it."""
    clipped, none = seen["clipped"].scores.identified, seen["none"].scores.identified
    return {"clipping_cosine": paired(clipped, none), "direction_none": identified(seen["none"])}


def walkthrough(weak: Mapping[str, Attacked], early: pd.Series, drawn: pd.DataFrame) -> Entries:
    """GradDefense as its walkthrough runs it: DLG, the noise's floor, and the noise drawn again from the seed.

    early: objective after ten steps on plain updates. drawn: `experiments.without_noise`.
    """
    floor, worst = weak["static"].scores.objective / (5e-4**2 * drawn.entries), drawn.error.max()
    return {
        "graddefense_plain": identified(weak["plain"]),
        "graddefense_static": identified(weak["static"]),
        "graddefense_plain_converged": intervals.below(early, 5e-5),
        "graddefense_floor": intervals.log_mean(floor),
        "graddefense_seed_error": Interval(worst, worst, worst, len(drawn), "largest of all"),
    }


def compensation(cleaned: pd.DataFrame, first: Sequence[str], clients: int) -> Entries:
    """Distance of an aggregate from the clean one, after the server's denoising over before; first: tensors."""
    found = {}
    some = cleaned[cleaned.tensor.isin(first)]
    for measure, rows, way in (
        ("official", some, "official"),
        ("whole", cleaned, "official"),
        ("fixed", cleaned, "fixed"),
    ):
        length = rows.groupby("aggregate")[["before", way]].agg(lambda errors: (errors**2).sum() ** 0.5)
        ratio = intervals.log_ratio(length[way], length.before)
        found[f"compensation_{measure}"] = Measured(ratio, images=len(length) * clients * 32)
    return found


def feedback(residual: Mapping[str, Interval]) -> Entries:
    """What updates with the residual of earlier rounds identify, by what the attacker knows."""
    return {"feedback_static": residual["nothing"], "feedback_adaptive": residual["feedback"]}


def mixtures(single: Mapping[str, Interval], together: Mapping[str, Interval], plain: Attacked) -> Entries:
    """What one update of mixtures identifies and what all do together, and `plain` updates to who has no labels."""
    found: dict[str, Entry] = {"none_blind": identified(plain)}
    for name in ("mixup", "instahide"):
        found |= {f"{name}_static": single[name], f"{name}_decoded": together[name]}
    return found


def pruned_mixtures(alone: Attacked, joined: pd.DataFrame) -> Entries:
    """What pruning alone leaves, what it leaves of Intra-InstaHide's mixtures over all rounds, and the difference.

    joined: rows of `decode_client`; the images are the first ones of `alone`, in the same order. A client is a cluster;
    nothing is said of a single one.
    """
    found: dict[str, Entry] = {"prune_90_adaptive": identified(alone)}
    if joined.client.nunique() < 2:
        return found
    pruned, size = alone.scores.identified, min(len(alone.scores), len(joined))
    own, clients = joined.identified[:size], joined.client[:size]
    return found | {
        "instahide_pruned_decoded": intervals.proportion(joined.identified, joined.client),
        "instahide_prune": intervals.difference(pruned[:size], own, clients),
    }


def altered(ats: pd.DataFrame, plain: pd.DataFrame, guessed: Sequence[pd.DataFrame]) -> Entries:
    """Clients that transform their images: what it costs the attack, and what of the original comes back.

    guessed: `encoded_mean_guess` of the images as they are and of those transformed.
    """
    found: dict[str, Entry] = {
        "ats_psnr": paired(plain.psnr, ats.psnr),
        "ats_gain": paired(plain.psnr - guessed[0].psnr, ats.psnr - guessed[1].psnr),
    }
    for key, column in (("identified", "original"), ("undone", "altered"), ("transformed_identified", "transformed")):
        found[f"ats_{key}"] = intervals.proportion(ats[f"{column}_identified"])
    return found


def means_of_4(known: pd.DataFrame, joint: pd.DataFrame) -> Entries:
    """What a mean of four clients identifies with the labels, and beyond a search for them."""
    return {
        "labels_known": intervals.difference(known.identified, joint.identified, known.network),
        "aggregated": intervals.proportion(known.identified, known.network),
    }


def searched(found: Mapping[str, pd.DataFrame], means: Mapping[str, pd.DataFrame]) -> Entries:
    """Policies at both ends of a search, attacked on the network of the search; means: the mean image's PSNR there."""
    gain = {which: run.psnr - means[which].psnr for which, run in found.items()}
    return {
        "direction_searched": intervals.proportion(found["unaltered"].identified),
        "ats_search": paired(gain["least private"], gain["most private"]),
    }


def learned(name: str, run: pd.DataFrame, gain: Interval | None, declared: Collection[str]) -> Entries:
    """What a learned inversion identifies, and its PSNR over the mean image."""
    found: dict[str, Any] = {f"lti_{name}_identified": intervals.proportion(run.identified)}
    return found | ({f"lti_{name}": gain} if f"lti_{name}" in declared else {})


def costs(accuracy: Mapping[str, pd.Series], images: int) -> Entries:
    """Test accuracy without a defense, and what training with one loses of it; nothing of a single training.

    images: size of the test set.
    """
    found = {name: (accuracy["none"] - accuracy[row]).dropna() for name, row in (COSTS | FEWER).items()} | {
        "none": accuracy["none"],
        "prune_99_90": accuracy["prune_90"] - accuracy["prune_99"],
        "instahide": accuracy["mixup"] - accuracy["instahide"],
    }
    several = len(accuracy["none"]) > 1
    entries = {name: intervals.mean(values) for name, values in found.items()} if several else {}
    return {f"utility_{name}": Measured(value, images=images) for name, value in entries.items()}


def left_out(missing: Sequence[str]) -> Entries:
    """Why this run lacks the measures that are missing."""
    return {name: Unmeasured("this profile is too small for it", "budget") for name in missing}
