"""Measures of the chapter on Inverting Gradients."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

from reprolib.measure import intervals, metrics
from reprolib.measure.entries import Entries, Entry, Measured, Unmeasured
from reprolib.measure.intervals import Interval


def first_layer(rows: pd.DataFrame) -> Entries:
    """How often the closed form reads an image off the first layer: one image, local steps, a pair."""
    cases = {
        "analytic_single": ("batch of 1", "error", 1e-5),
        "analytic_local": ("local steps, float64", "error", 1e-9),
        "analytic_pair": ("batch of 2", "rms", 0.1),
    }
    found = {}
    for measure, (case, column, limit) in cases.items():
        own = rows[rows.case == case]
        found[measure] = intervals.below(own[column], limit, own.network)
    return found


def rows_read(rows: pd.DataFrame, agree: float) -> Entries:
    """The share of images that an attacker keeps who reads row by row; rows: `experiments.ig.read_rows`."""
    sizes = {size: rows[rows.batch == size] for size in (2, 8)}
    return {
        f"rows_{name}": intervals.below(sizes[size].kept, agree, sizes[size].network)
        for name, size in (("pair", 2), ("eight", 8))
    }


def crossover(tables: Mapping[tuple[str, str], pd.DataFrame], cards: np.ndarray, budget: Mapping[str, int]) -> Entries:
    """Both attacks' PSNR on four victims, what Inverting Gradients identifies, and the paired differences.

    tables: (victim, "IG" or "L2") -> scores; on ResNet-20 the older attack meets the first images only. cards: PSNR of
    a grey card on the images, in their order. budget: victim -> iterations.
    """
    found: dict[str, Entry] = {}
    for name in budget:
        key = name.lower().replace("-20", "").replace(", ", "_")
        ig, l2 = tables[name, "IG"], tables[name, "L2"]
        for row, scores in {"ig": ig, "l2": l2}.items():
            found[f"psnr_{row}_{key}"] = intervals.mean(scores.psnr, metrics.units(scores))
        named = intervals.proportion(ig.identified, metrics.units(ig))
        found[f"ig_identified_{key}"] = Measured(named, {"budget": budget[name]})
        both = ig[: len(l2)]
        first, second, measure = (l2, both, "l2_minus_ig") if key == "lenet_untrained" else (both, l2, "ig_minus_l2")
        found[f"{measure}_{key}"] = intervals.difference(first.psnr, second.psnr, metrics.units(l2))
        found[f"ig_over_grey_{key}"] = intervals.difference(ig.psnr, cards[: len(ig)], metrics.units(ig))
    untrained, trained = (tables[f"ResNet-20, {state}", "IG"] for state in ("untrained", "trained"))
    gap = intervals.difference(untrained.psnr, trained.psnr, untrained.network)
    return found | {"untrained_minus_trained_resnet": gap}


def local_steps(
    cells: Mapping[tuple[int, float], pd.DataFrame], small: tuple[int, float], cards: np.ndarray, budget: int
) -> Entries:
    """What is identified after several local steps, and what more steps or a larger rate cost; cells: (steps, rate)."""
    five = cells[small]
    named = intervals.proportion(five.identified, metrics.units(five))
    over = intervals.difference(five.psnr, cards[: len(five)], metrics.units(five))
    found: dict[str, Entry] = {"fedavg_identified": Measured(named, {"budget": budget}), "fedavg_over_grey": over}
    for measure, a, b in (("fedavg_steps", (1, 1e-4), (10, 1e-4)), ("fedavg_rate", small, (5, 1e-1))):
        if a in cells and b in cells:
            few = cells[b]
            found[measure] = intervals.difference(cells[a].psnr[: len(few)], few.psnr, metrics.units(few))
        else:
            found[measure] = Unmeasured("this profile leaves that cell out", "budget")
    return found


def turned(motion: pd.DataFrame, moved: pd.DataFrame) -> Entries:
    """How often local steps turn the update by more than 25 degrees off the first gradient: a cosine below 0.9.

    motion, moved: `experiments.ig.local_motion` of the LeNet and of the ConvNet.
    """
    found: dict[str, Entry] = {}
    for measure, rows, steps, rate in (
        ("turned_five", motion, 5, 1e-4),
        ("turned_ten", motion, 10, 1e-4),
        ("turned_large", motion, 5, 1e-1),
        ("conv_turned_large", moved, 5, 1e-1),
    ):
        own = rows[(rows.steps == steps) & (rows.rate == rate)]
        found[measure] = (
            intervals.below(own.cosine, 0.9, own.network)
            if len(own)
            else Unmeasured("this profile leaves that cell out", "budget")
        )
    least = motion[motion.steps == 5].groupby(["network", "trial"]).cosine.min().reset_index()
    return found | {"turned_ever": intervals.below(least.cosine, 0.9, least.network)}


def local_batches(rows: Mapping[tuple[int, int, int], pd.DataFrame], card: np.ndarray, cards: np.ndarray) -> Entries:
    """PSNR over grey of one image a client less that of eight; rows: (epochs, images, local batch) -> scores.

    card, cards: PSNR of a grey card on single images and on batches of eight, in their order.
    """
    if not {(5, 1, 1), (5, 8, 8)} <= set(rows):
        return {"fedavg_batch": Unmeasured("this profile leaves that row out", "budget")}
    a, b = rows[5, 1, 1], rows[5, 8, 8]
    one, eight = a.psnr - card[: len(a)], b.psnr - cards[: len(b)]
    return {"fedavg_batch": intervals.mean_difference(one, eight, a.network, b.network)}


def moved(name: str, share: Interval, width: int, budget: int) -> Entries:
    """What is identified on a ConvNet after local steps of a small or a large rate."""
    return {f"conv_{name}_rate_identified": Measured(share, {"model": f"ConvNet-{width}", "budget": budget})}


def batches(
    distinct: pd.DataFrame, natural: pd.DataFrame, alone: pd.DataFrame, card: np.ndarray, own: np.ndarray
) -> Entries:
    """Batches of distinct labels against grey and against single images, and what a label that repeats costs.

    alone: single images after as many iterations. card, own: PSNR of a grey card on the images of both kinds of
    batches. An image whose label repeats is compared with those of its own batch whose label does not, all over grey.
    """
    found: dict[str, Entry] = {
        "batch_over_grey": intervals.difference(distinct.psnr, card, distinct.network),
        "batch_identified": intervals.proportion(distinct.identified, distinct.network),
        "alone_identified": intervals.proportion(alone.identified, alone.network),
    }
    over = natural.assign(over=natural.psnr - own)
    again = over.duplicated(["trial", "network", "label"], keep=False)
    singles = over[~again].groupby("network").over.mean()
    twice = over[again & over.network.isin(singles.index)]
    if twice.network.nunique() < 2:
        why = "labels repeat in fewer than two of this profile's batches"
        return found | {"batch_repeated": Unmeasured(why, "few")}
    loss = intervals.difference(twice.network.map(singles), twice.over, twice.network)
    return found | {"batch_repeated": loss}


def hundred(scores: pd.DataFrame | None, card: pd.Series) -> Entries:
    """How many images of a batch of a hundred are a decibel better than a grey card."""
    if scores is None:
        why = "a batch of 100 on a wide ResNet is run at the paper profile only"
        return {"hundred_over_grey": Unmeasured(why, "compute")}
    return {"hundred_over_grey": intervals.proportion(scores.psnr > card + 1, metrics.units(scores))}


def ablation(done: Mapping[str, pd.DataFrame], budget: int) -> Entries:
    """PSNR that each change of the attack costs, on the same images."""
    changed = {name: scores for name, scores in done.items() if name != "published"}
    loss = {name: intervals.difference(done["published"].psnr, scores.psnr) for name, scores in changed.items()}
    return {f"ablation_{name}": Measured(value, {"budget": budget}) for name, value in loss.items()}


def widths(found: Mapping[str, pd.DataFrame], all_widths: Collection[int], card: np.ndarray) -> Entries:
    """What a wider ConvNet gains, what batch norm in train mode costs, and both widths against a grey card."""
    narrow, wide = (found[f"width {width}, eval"].psnr for width in (min(all_widths), max(all_widths)))
    train = found[[*found][-1]].psnr
    pairs = {
        "width_gain": (wide, narrow),
        "train_mode_loss": (narrow, train),
        "wide_over_grey": (wide, card),
        "eval_over_grey": (narrow, card),
    }
    networks = found[f"width {min(all_widths)}, eval"].network
    return {measure: intervals.difference(a, b, networks) for measure, (a, b) in pairs.items()}


def slips(tables: Mapping[str, pd.DataFrame], start: pd.DataFrame, cards: np.ndarray) -> Entries:
    """What a scaled gradient, half the loss and a wrong sign change; start: `experiments.ig.first_distances`."""
    same = (start.distance - start.rescaled).abs() <= 1e-6
    found = {"rescaled_same": intervals.proportion(same, start.network)}
    for measure, a, b in (
        ("rescaled_change", "cosine, gradient times 10", "cosine"),
        ("half_loss_l2", "distance, half the loss", "distance"),
    ):
        found[measure] = intervals.difference(tables[a].psnr, tables[b].psnr, tables[a].network)
    for measure, name in {"whole_loss": "distance", "half_loss": "distance, half the loss"}.items():
        found[f"{measure}_identified"] = intervals.proportion(tables[name].identified, tables[name].network)
    for measure, name in {"wrong_sign": "cosine, wrong sign", "right_sign": "cosine"}.items():
        own = tables[name]
        found[f"{measure}_over_grey"] = intervals.difference(own.psnr, cards[: len(own)], own.network)
    return found


def photographs(scores: pd.DataFrame | None, card: pd.DataFrame | None, budget: int) -> Entries:
    """What is identified of photographs of 224 pixels, and their PSNR over a grey card's."""
    if scores is None:
        none = Unmeasured("this profile attacks no images of 224 pixels", "budget")
        return {"large_identified": none, "large_over_grey": none}
    named, over = intervals.proportion(scores.identified), intervals.difference(scores.psnr, card.psnr)
    spent = {"budget": budget}
    return {"large_identified": Measured(named, spent), "large_over_grey": Measured(over, spent)}


def labels(pairs: pd.DataFrame) -> Entries:
    """The share of labels that the bias rule names."""
    return {"label_accuracy": intervals.proportion(pairs.bias, pairs.network)}
