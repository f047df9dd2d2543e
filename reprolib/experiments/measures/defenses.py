"""Measures of the chapter on defenses."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

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


def identified(run: Attacked) -> Interval:
    """The share of images identified."""
    return intervals.proportion(run.scores.identified)


def paired(a: pd.Series, b: pd.Series) -> Interval:
    """What a has more than b on the images that both met: the first ones."""
    least = min(len(a), len(b))
    return intervals.difference(a[:least], b[:least])


def both_attackers(both: Mapping[str, Mapping[str, Attacked]], bound: float, declared: Collection[str]) -> Entries:
    """What is identified under each defense by who ignores it and who knows it; attacker -> defense -> run.

    bound: the share that DP-SGD of multiplier 1 lets be identified at most. declared: the measures of the claims.
    """
    static, adaptive = both["static"], both["adaptive"]
    found = {f"{name}_{who}": run for who, runs in both.items() for name, run in runs.items()}
    return {measure: identified(run) for measure, run in found.items() if measure in declared} | {
        "map_minus_static": paired(
            adaptive["gaussian_1e-1"].scores.identified, static["gaussian_1e-1"].scores.identified
        ),
        "dpsgd_over_bound": intervals.over_chance(adaptive["dpsgd_1"].scores.identified, bound),
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


def mixtures(single: Mapping[str, Interval], together: Mapping[str, Interval]) -> Entries:
    """What one update of mixtures identifies, and what all of them do together."""
    found: dict[str, Entry] = {}
    for name in ("mixup", "instahide"):
        found |= {f"{name}_static": single[name], f"{name}_decoded": together[name]}
    return found


def altered(clients: Mapping[str, pd.DataFrame], plain: pd.DataFrame) -> Entries:
    """Clients that alter their data: what it costs the attack, and what of the original comes back."""
    ats, alone = clients["ATS"], clients["pruned"].original_identified
    found = {"ats_psnr": paired(plain.psnr, ats.psnr)}
    for key, column in (("identified", "original"), ("undone", "altered"), ("transformed_identified", "transformed")):
        found[f"ats_{key}"] = intervals.proportion(ats[f"{column}_identified"])
    return found | {
        "prune_90_blind": intervals.proportion(alone),
        "instahide_prune": paired(alone, clients["Intra-InstaHide, pruned"].original_identified),
    }


def means_of_4(known: pd.DataFrame, joint: pd.DataFrame) -> Entries:
    """What a mean of four clients identifies with the labels, and beyond a search for them."""
    return {
        "labels_known": intervals.difference(known.identified, joint.identified, known.network),
        "aggregated": intervals.proportion(known.identified, known.network),
    }


def blind(unseen: Mapping[str, Attacked], joined: pd.DataFrame, mixers: int) -> Entries:
    """What attackers without labels identify: no defense, and the hardest of five against pruned mixtures."""
    found = {"none_blind": identified(unseen["none"])}
    others = [run for name, run in unseen.items() if name != "none"]
    least = min(others, key=lambda run: run.scores.identified.mean()).scores
    size = min(len(least), len(joined))
    if mixers > 1:
        gap = intervals.difference(least.identified[:size], joined.identified[:size], joined.client[:size])
        found["instahide_prune_others"] = gap
    return found


def searched(found: Mapping[str, pd.DataFrame]) -> Entries:
    """Policies at both ends of a search, attacked on the network of the search."""
    return {
        "direction_searched": intervals.proportion(found["unaltered"].identified),
        "ats_search": paired(found["least private"].psnr, found["most private"].psnr),
    }


def learned(name: str, run: pd.DataFrame, gain: Interval | None, declared: Collection[str]) -> Entries:
    """What a learned inversion identifies, and its PSNR over the mean image."""
    found: dict[str, Any] = {f"lti_{name}_identified": intervals.proportion(run.identified)}
    return found | ({f"lti_{name}": gain} if f"lti_{name}" in declared else {})


def costs(accuracy: Mapping[str, pd.Series], images: int) -> Entries:
    """Test accuracy that training with a defense loses; nothing of a single training. images: size of the test set."""
    lost = {name: accuracy["none"] - accuracy[row] for name, row in COSTS.items()}
    lost["prune_99_90"] = accuracy["prune_90"] - accuracy["prune_99"]
    lost["instahide"] = accuracy["mixup"] - accuracy["instahide"]
    several = len(accuracy["none"]) > 1
    entries = {name: intervals.mean(values) for name, values in lost.items()} if several else {}
    return {f"utility_{name}": Measured(value, images=images) for name, value in entries.items()}


def left_out(missing: Sequence[str]) -> Entries:
    """Why this run lacks the measures that are missing."""
    return {name: Unmeasured("this profile is too small for it", "budget") for name in missing}
