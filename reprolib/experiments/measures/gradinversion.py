"""Measures of the chapter on GradInversion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from reprolib.attacks.labels import distinct_ceiling
from reprolib.experiments.measures import iterations
from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Measured, Unmeasured
from reprolib.measure.intervals import Interval


def of(scores: pd.DataFrame, attack: str) -> pd.DataFrame:
    """The rows of one attack; every attack met the same images in the same order."""
    return scores[scores.attack == attack].reset_index(drop=True)


def restored_labels(restored: pd.DataFrame, classes: int) -> Entries:
    """Labels of batches of eight that the row minimum restores, by network, mode and drawing; nothing without them."""
    if 8 not in set(restored.batch):
        return {}

    def shares(rule: str, state: str = "trained", mode: str = "train", drawing: str = "distinct") -> np.ndarray:
        t = restored.query("batch == 8 and rule == @rule and state == @state and mode == @mode and labels == @drawing")
        return t.right.to_numpy()

    minimum, total, uniform = shares("yin"), shares("yin_sum"), shares("yin", drawing="uniform")
    gap = distinct_ceiling(classes, 8) - shares("yin", "untrained", drawing="uniform")
    by_mode = intervals.difference(minimum, shares("yin", mode="eval"))
    return {
        "labels_minimum_distinct": intervals.pooled(minimum, 8),
        "labels_sum_distinct": intervals.pooled(total, 8),
        "labels_minimum_uniform": intervals.pooled(uniform, 8),
        "labels_minimum_minus_sum": Measured(intervals.difference(minimum, total), images=8 * len(total)),
        "labels_mode_gap": Measured(by_mode, images=8 * len(total)),
        "labels_ceiling_gap": Measured(intervals.mean(gap), images=8 * len(gap)),
    }


def negative_features(read: pd.DataFrame) -> Entries:
    """Labels that row minimum and row sum lose where the head's features can be negative."""
    found = {}
    for rule, measure in (("yin", "labels_tanh_loss"), ("yin_sum", "labels_tanh_loss_sum")):
        relu, tanh = (read[(read.rule == rule) & (read.activation == name)] for name in ("relu", "tanh"))
        lost = intervals.difference(relu.right.to_numpy(), tanh.right.to_numpy())
        found[measure] = Measured(lost, images=int(relu.batch.sum()))
    return found


def hundred_classes(shares: Mapping[tuple[str, str], Interval]) -> Entries:
    """Labels of a hundred classes restored beyond chance; shares: (network, rule) -> interval."""
    return {f"labels_hundred_{state}" + "_sum" * (rule == "yin_sum"): share for (state, rule), share in shares.items()}


def singles(scores: pd.DataFrame, budget: Mapping[str, Any]) -> Entries:
    """The strong attack on single images, against other losses and without statistics.

    scores: of the attacks "strong", "strong, no statistics", "norms for the cosine", and of the first images alone "no
    statistics, smoother" and "the paper's recipe".
    """
    alone, norm, paper = (of(scores, name) for name in ("strong", "norms for the cosine", "the paper's recipe"))
    withheld = (of(scores, name) for name in ("strong, no statistics", "no statistics, smoother"))
    first = alone[: len(paper)]
    named, without, smoother = (t.identified.astype(float) for t in (alone, *withheld))
    found = {
        "strong_identified": intervals.proportion(alone.identified, alone.network),
        "strong_psnr": intervals.mean(alone.psnr, alone.network),
        "strong_minus_norm": intervals.difference(alone.psnr, norm.psnr, alone.network),
        "strong_minus_paper": intervals.difference(first.psnr, paper.psnr, first.network),
        "withheld_identified_loss": intervals.difference(named, without, alone.network),
        "withheld_smoother_loss": intervals.difference(named[: len(first)], smoother, first.network),
    }
    return {measure: Measured(interval, budget) for measure, interval in found.items()}


def long_search(scores: pd.DataFrame | None, spent: int) -> Entries:
    """PSNR of the strong attack in a longer search."""
    if scores is None:
        return {"strong_long_psnr": Unmeasured("this profile has no long search", "budget")}
    return {"strong_long_psnr": Measured(intervals.mean(scores.psnr, scores.network), iterations(spent))}


def steps(scores: pd.DataFrame, best: pd.DataFrame) -> Entries:
    """What each term of the objective adds, and the whole against the best guess without a gradient."""
    first, last = of(scores, "gradient alone"), of(scores, "+ registered group")
    compared = {
        "step_fidelity": ("+ batch norm", "gradient alone"),
        "step_priors": ("+ image priors", "gradient alone"),
        "step_batch_norm": ("+ batch norm", "+ image priors"),
        "step_group": ("+ lazy group", "+ batch norm"),
        "step_registered": ("+ registered group", "+ lazy group"),
        "batch_norm_alone": ("+ batch norm", "statistics alone"),
    }
    gained = {m: (of(scores, a).psnr, of(scores, b).psnr) for m, (a, b) in compared.items()}
    for measure in ("step_group", "step_registered"):
        after, before = (of(scores, name).features for name in compared[measure])
        gained[f"{measure}_features"] = before, after
    return {measure: intervals.difference(*pair, last.network) for measure, pair in gained.items()} | {
        "full_over_baseline": intervals.difference(last.psnr, best.best, last.network),
        "iip_full": intervals.over_chance(last.in_class, last.in_class_chance, last.network),
        "feature_full": intervals.difference(first.features, last.features, last.network),
    }


def sources(scores: pd.DataFrame, best: pd.DataFrame) -> Entries:
    """Statistics of the batch against those of the model, and against the best guess."""
    exact, running = of(scores, "exact"), of(scores, "running")
    return {
        "exact_minus_running": intervals.difference(exact.psnr, running.psnr, exact.network),
        "trained_over_baseline": intervals.difference(exact.psnr, best.best, exact.network),
    }


def mismatch(gradients: pd.DataFrame, buffers: pd.DataFrame) -> Entries:
    """How far off a gradient with buffers is, and whether a batch's statistics follow from two states of them."""
    wrong = gradients[gradients.attacker.str.endswith("buffers")].mismatch
    return {
        "mode_mismatch": Measured(intervals.log_mean(wrong), images=2 * len(wrong)),
        "buffers_exact": intervals.below(buffers.error, 1e-4, buffers.trial),
    }


def weighed(terms: pd.DataFrame) -> Entries:
    """How far batch norm outweighs the gradient at the start, under the paper's weights."""
    ratio = intervals.log_ratio(terms.batch_norm, terms.gradient, terms.network)
    return {"batch_norm_outweighs": Measured(ratio, images=2 * len(terms))}


def grown(tables: Mapping[int, pd.DataFrame]) -> Entries:
    """What is identified in its class of single images, and what batches of two lose."""
    alone, pairs = tables[1], tables[2]
    return {
        "iip_single": intervals.over_chance(alone.in_class, alone.in_class_chance, alone.network),
        "iip_batch": intervals.mean_difference(alone.in_class, pairs.in_class, alone.network, pairs.network),
    }


def left_out(missing: Sequence[str]) -> Entries:
    """Why this run lacks the measures that are missing."""
    return {name: Unmeasured("this profile has no batches of that size", "budget") for name in missing}
