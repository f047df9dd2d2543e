"""Measures of the chapter on GGL. `psnr` gives the PSNR (dB) of each image: called with case, attack, attacker."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from reprolib.experiments.ggl import of_the_picture
from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Entry, Unmeasured
from reprolib.measure.intervals import Interval

if TYPE_CHECKING:
    from reprolib.experiments.networks import Attacked

PSNR = Callable[..., np.ndarray]


WHO = ("plain", "informed")
"""The attacker who ignores a defense, and the one who knows it."""


FACES = {("l2", "kl"): 15.6814, ("cosine", "kl"): 15.3471, ("l2", "norm"): 15.5405, ("cosine", "norm"): 14.3249}
"""(distance, regulariser) -> PSNR (dB, pixels in [-1, 1]) that the paper prints for faces; its own pair is first."""


def gated(measure: str, better: np.ndarray, worse: np.ndarray, undefended: np.ndarray, grey: np.ndarray) -> Entries:
    """PSNR of one attack minus that of another, where the attack works undefended: a decibel over a grey card."""
    over, interval = (undefended - grey).mean(), intervals.difference(better, worse)
    if over >= 1:
        return {measure: interval}
    why = f"the attack fails undefended, {over:.2g} dB above a grey card; measured {interval}"
    return {measure: Unmeasured(why, "gate")}


def planted(scores: pd.DataFrame) -> Entries:
    """The share of planted images that CMA-ES finds."""
    return {"planted": intervals.below(scores[scores.attack == "CMA-ES"].mse, 1e-3)}


def race(marks: pd.DataFrame, fair: int) -> Entries:
    """PSNR of Adam less that of CMA-ES, where each ends and after as many gradients, `fair`; marks: a row a mark."""
    ends = {name: own[own.spent == own.spent.max()].psnr.to_numpy() for name, own in marks.groupby("attack")}
    equal = marks[(marks.attack == "CMA-ES") & (marks.spent <= fair)]
    adam = ends["Adam, signed"]
    return {
        "adam_minus_cma": intervals.difference(adam, ends["CMA-ES"]),
        "adam_minus_cma_equal": intervals.difference(adam, equal[equal.spent == equal.spent.max()].psnr),
    }


def pairs(psnr: Mapping[tuple[str, str], np.ndarray]) -> Entries:
    """The paper's distance and regulariser against three others; (distance, regulariser) -> PSNR."""
    own, *others = FACES
    return {f"kl_minus_{d}_{r}": intervals.difference(psnr[own], psnr[d, r]) for d, r in others}


def labels(share: Interval) -> Entries:
    """The share of labels read without a defense."""
    return {"label_clean": share}


def controls(scores: pd.DataFrame, nulls: Sequence[str], best: str) -> Entries:
    """What the gradient adds to answers that never saw it, of which `best` is the best."""
    control = dict(tuple(scores.groupby("control")))
    gains = {name: intervals.difference(control["gradient"].psnr, control[name].psnr) for name in (*nulls[:2], best)}
    named = [control[name].identified for name in ("gradient", nulls[1])]
    return {
        "over_gaussian": gains[nulls[0]],
        "over_other": gains[nulls[1]],
        "over_best_null": gains[best],
        "share_of_picture": intervals.median(of_the_picture(scores, best)),
        "identified_over_other": intervals.difference(*named),
    }


def rivals(
    psnr: PSNR, cases: Collection[str], others: Collection[str], grey: np.ndarray, declared: Collection[str]
) -> Entries:
    """GGL against the best of the searches for pixels behind each defense; of what is declared."""
    found: dict[str, Entry]
    top, found = max((psnr("no defense", name) for name in others), key=np.mean), {}
    short = {"noise": "noise", "clipping": "clip", "sparsification": "sparsify", "Soteria": "soteria"}
    for case in (case for case in short if case in cases):
        for who, stem in {"plain": "over_baselines", "informed": "over_informed"}.items():
            if (measure := f"{stem}_{short[case]}") in declared:
                rival = max(others, key=lambda name: psnr(case, name, who).mean())
                found |= gated(measure, psnr(case, "GGL"), psnr(case, rival, who), top, grey)
    return found


def losses(psnr: PSNR, cases: Collection[str], best: str, grey: np.ndarray) -> Entries:
    """What each defense costs GGL, and what the best search for pixels has over it; best: its name."""
    found: dict[str, Entry] = {}
    for measure, (case, name, who) in {
        "plain_loss_noise": ("noise", "GGL", "plain"),
        "informed_loss_clip": ("clipping", "GGL", "informed"),
        "cosine_loss_clip": ("clipping", "GGL, cosine", "plain"),
        "informed_loss_sparsify": ("sparsification", "GGL", "informed"),
        "ggl_loss_soteria": ("Soteria", "GGL", "informed"),
    }.items():
        if case in cases:
            start = psnr("no defense", name)
            found |= gated(measure, start, psnr(case, name, who), start, grey)
    for case, key in {"clipping": "clip", "Soteria": "soteria"}.items():
        if case in cases:
            gap = intervals.difference(psnr(case, best), psnr(case, "GGL"))
            found[f"informed_pixels_minus_ggl_{key}"] = gap
    return found


def clipping_and_noise(psnr: PSNR, cases: Collection[str], runs: Mapping[tuple[str, str, str], Attacked]) -> Entries:
    """What is identified behind clipping, and behind clipping with noise, against each alone."""
    found = {}
    if "clipping" in cases:
        named = runs["clipping", "plain", "GGL"].scores.identified
        found["clip_plain_identified"] = intervals.proportion(named)
    if "clipping and noise" in cases:
        both = psnr("clipping and noise", "GGL")
        for case, key in {"noise": "noise", "clipping": "clip"}.items():
            found[f"{key}_minus_both"] = intervals.difference(psnr(case, "GGL"), both)
        named = runs["clipping and noise", "informed", "GGL"].scores.identified
        found["both_identified"] = intervals.proportion(named)
    return found


def soteria(
    start: np.ndarray, dropped: np.ndarray, grey: np.ndarray, at_ten: pd.DataFrame | None, undefended: pd.DataFrame
) -> Entries:
    """What dropping Soteria's tensor costs GGL, and what a search for pixels identifies at a rate of 10 % and bare."""
    found = dict(gated("ggl_dropped_loss", start, dropped, start, grey))
    if at_ten is not None:
        found["pixels_soteria_10_identified"] = intervals.proportion(at_ten.identified)
    return found | {"pixels_undefended_identified": intervals.proportion(undefended.identified)}


def landscape(ranks: pd.DataFrame) -> Entries:
    """Rank correlation of the defended objective with the undefended one; nothing on a single image."""
    by = ranks.pivot(index="trial", columns=["case", "attacker"], values="rank")
    if len(by) < 2:
        return {}
    keys = {"noise": ("noise", "plain"), "sparsify": ("sparsification", "plain")}
    keys |= {f"{key}_{who}": (case, who) for case, key in (("clipping", "clip"), ("Soteria", "soteria")) for who in WHO}
    return {f"landscape_{measure}": intervals.mean(by[key]) for measure, key in keys.items()}


def unseen(by: Mapping[str, pd.DataFrame]) -> Entries:
    """PSNR that a prior loses which has not seen the classes; prior -> scores."""
    every, without = (part.psnr for part in by.values())
    return {"unseen_loss": intervals.difference(every, without, by["all classes"].pair)}


def others(before: pd.DataFrame, after: pd.DataFrame, four: pd.DataFrame, local: pd.DataFrame) -> Entries:
    """What a trained network, batches of four and five local steps change."""
    return {
        "trained_loss": intervals.difference(before.psnr, after.psnr, before.network),
        "batch_identified": intervals.proportion(four.identified, four.network),
        "local_identified": intervals.proportion(local.identified),
    }


def residual(runs: Mapping[tuple[str, str], Attacked]) -> Entries:
    """The two kinds of search on a residual network; nothing where it is left out."""
    if not runs:
        return {}
    pair = (runs["clipping", name].scores.psnr for name in ("IG, plain", "GGL, Adam, informed"))
    return {
        "ig_undefended_identified": intervals.proportion(runs["no defense", "IG"].scores.identified),
        "ig_minus_ggl_clip": intervals.difference(*pair),
    }


def left_out(missing: Sequence[str]) -> Entries:
    """Why this run lacks the measures that are missing."""
    return {name: Unmeasured("this profile leaves that level or case out", "budget") for name in missing}
