"""Measures of the chapter on GGL.

`psnr` gives the PSNR (dB) of each image: called with case, attack, and the attacker, who is informed unless named.
`runs` holds what was attacked: (case, attacker, attack) -> `Attacked`.
"""

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

Runs = Mapping[tuple[str, str, str], "Attacked"]

WHO = ("plain", "informed")
"""The attacker who ignores a defense, and the one who knows it."""


FACES = {("l2", "kl"): 15.6814, ("cosine", "kl"): 15.3471, ("l2", "norm"): 15.5405, ("cosine", "norm"): 14.3249}
"""(distance, regulariser) -> PSNR (dB, pixels in [-1, 1]) that the paper prints for faces; its own pair is first."""


def gated(measure: str, better: np.ndarray, worse: np.ndarray, undefended: np.ndarray, grey: np.ndarray) -> Entries:
    """PSNR of GGL minus that of a rival, where the rival works undefended: a decibel over a grey card."""
    over, interval = (undefended - grey).mean(), intervals.difference(better, worse)
    if over >= 1:
        return {measure: interval}
    why = f"the rival compared fails undefended, {over:.2g} dB above a grey card; measured {interval}"
    return {measure: Unmeasured(why, "gate")}


def fewer(*scores: pd.DataFrame) -> Interval:
    """The share of images identified by the one of several attacks that identifies fewest."""
    return min((intervals.proportion(own.identified) for own in scores), key=lambda share: share.value)


def planted(scores: pd.DataFrame) -> Entries:
    """The shares of planted images that the two searches find."""
    names = {"planted": "CMA-ES", "planted_adam": "Adam"}
    return {name: intervals.below(scores[scores.attack == attack].mse, 1e-3) for name, attack in names.items()}


def race(path: pd.DataFrame, ends: pd.DataFrame, fair: int) -> Entries:
    """PSNR of Adam less that of CMA-ES, where each ends, and after as many gradients, `fair`; as `race` gives them."""
    end = {name: own.psnr.to_numpy() for name, own in ends.groupby("attack")}
    equal = path[(path.attack == "CMA-ES") & (path.spent <= fair)]
    return {
        "adam_minus_cma": intervals.difference(end["Adam"], end["CMA-ES"]),
        "adam_minus_cma_equal": intervals.difference(end["Adam"], equal[equal.spent == equal.spent.max()].psnr),
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
    """GGL against the best on average of the searches for pixels behind each defense; of what is declared.

    The rival that is compared must work undefended.
    """
    found: dict[str, Entry] = {}
    short = {"noise": "noise", "sparsification": "sparsify", "Soteria": "soteria"}
    for case in (case for case in short if case in cases):
        for who, stem in {"plain": "over_baselines", "informed": "over_informed"}.items():
            if (measure := f"{stem}_{short[case]}") in declared:
                rival = max(others, key=lambda name: psnr(case, name, who).mean())
                found |= gated(measure, psnr(case, "GGL"), psnr(case, rival, who), psnr("no defense", rival), grey)
    return found


def losses(psnr: PSNR, cases: Collection[str], best: str, floor: np.ndarray) -> Entries:
    """What each defense costs GGL, and what the best search for pixels has over the prior's floor; best: its name."""
    found: dict[str, Entry] = {}
    for measure, (case, name, who) in {
        "plain_loss_noise": ("noise", "GGL", "plain"),
        "informed_loss_clip": ("clipping", "GGL", "informed"),
        "cosine_loss_clip": ("clipping", "GGL, cosine", "plain"),
        "informed_loss_sparsify": ("sparsification", "GGL", "informed"),
        "ggl_loss_soteria": ("Soteria", "GGL", "informed"),
        "ggl_dropped_loss": ("Soteria", "GGL", "dropped"),
    }.items():
        if case in cases:
            found[measure] = intervals.difference(psnr("no defense", "GGL"), psnr(case, name, who))
    for case, key in {"clipping": "clip", "Soteria": "soteria"}.items():
        if case in cases:
            found[f"informed_pixels_over_floor_{key}"] = intervals.difference(psnr(case, best), floor)
    return found


def undefended(runs: Runs, best: str) -> Entries:
    """What the attacks identify without a defense, which is the control of most claims; best: of those on pixels."""
    scores = {name: run.scores for (case, _, name), run in runs.items() if case == "no defense"}
    names = {"ggl": "GGL", "adam": "GGL, Adam", "pixels": best}
    found = {f"{key}_undefended_identified": fewer(scores[name]) for key, name in names.items()}
    return found | {"fewer_pixels_undefended_identified": fewer(scores["iDLG"], scores["IG"])}


def clipping_and_noise(psnr: PSNR, cases: Collection[str], runs: Runs) -> Entries:
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


def soteria(at_ten: Mapping[str, pd.DataFrame]) -> Entries:
    """What searches for pixels identify at a Soteria rate of 10 % that they do not know of; attack -> scores."""
    shares = {name.lower(): intervals.proportion(own.identified) for name, own in at_ten.items()}
    return {f"{name}_soteria_10_identified": share for name, share in shares.items()}


def landscape(ranks: pd.DataFrame) -> Entries:
    """Rank correlation of the defended objective with the undefended one; nothing on a single image."""
    by = ranks.pivot(index="trial", columns=["case", "attacker"], values="rank")
    if len(by) < 2:
        return {}
    keys = {"noise": ("noise", "plain"), "sparsify": ("sparsification", "plain")}
    keys |= {f"{key}_{who}": (case, who) for case, key in (("clipping", "clip"), ("Soteria", "soteria")) for who in WHO}
    return {f"landscape_{measure}": intervals.mean(by[key]) for measure, key in keys.items()}


def pose(upright: pd.DataFrame, turned: pd.DataFrame) -> Entries:
    """PSNR that images lose upside down, under the same networks."""
    return {"pose_loss": intervals.difference(upright.psnr, turned.psnr)}


def others(before: pd.DataFrame, after: pd.DataFrame, four: pd.DataFrame, local: pd.DataFrame) -> Entries:
    """What a trained network, batches of four and five local steps change."""
    return {
        "trained_loss": intervals.difference(before.psnr, after.psnr, before.network),
        "batch_identified": intervals.proportion(four.identified, four.network),
        "local_identified": intervals.proportion(local.identified, local.network),
    }


def residual(runs: Mapping[tuple[str, str], Attacked]) -> Entries:
    """The two kinds of search on a residual network; nothing where it is left out.

    Inverting Gradients does not see clipping: its run under it is its undefended control as well.
    """
    if not runs:
        return {}
    ig, ggl, bare = (
        runs[key].scores
        for key in (("clipping", "IG, plain"), ("clipping", "GGL, Adam, informed"), ("no defense", "GGL, Adam"))
    )
    return {
        "both_work_undefended": fewer(ig, bare),
        "ig_minus_ggl_clip": intervals.difference(ig.psnr, ggl.psnr),
    }


def left_out(missing: Sequence[str]) -> Entries:
    """Why this run lacks the measures that are missing."""
    return {name: Unmeasured("this profile leaves that level or case out", "budget") for name in missing}
