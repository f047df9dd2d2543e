"""Measures of the chapter on Robbing the Fed. Batches are the tables that `experiments.rtf.robbed` returned."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from reprolib.attacks.rtf import expected_alone, expected_by_configurations
from reprolib.experiments.measures import NOT_RUN, share
from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Entry, Measured, Unmeasured
from reprolib.measure.intervals import Interval

ONE = Unmeasured("this profile draws one network", "few")


def mean(batches: pd.DataFrame, column: str) -> Interval | float:
    """A column's mean over batches, with its interval over networks where several were drawn."""
    values = batches[column].to_numpy(dtype=float)
    return intervals.mean(values, batches.network) if batches.network.nunique() > 1 else values.mean()


def _several(batches: pd.DataFrame, entry: Interval | float) -> Entry:
    if not isinstance(entry, Interval):
        return ONE
    return Measured(entry, images=int(batches.images.sum()))


def _over(batches: pd.DataFrame, expected: float) -> Entry:
    moved = batches.assign(exact=batches.exact - expected)
    return _several(batches, mean(moved, "exact"))


def _gain(one: pd.DataFrame, other: pd.DataFrame, column: str = "exact") -> Entry:
    """The mean difference of a column, paired over batches."""
    if one.network.nunique() < 2:
        return ONE
    found = intervals.difference(one[column].astype(float), other[column].astype(float), one.network)
    return Measured(found, images=int(one.images.sum()))


def counts(found: Mapping[int, pd.DataFrame]) -> Entries:
    """How many come out exactly, by the number of bins, against both expectations; batches of 64."""
    plain = found.get(128)
    if plain is None or plain.images[0] != 64:
        names = ("exact_128", "excess_128", "excess_over_paper", "share_128", "excess_64", "same_single", "precise")
        return dict.fromkeys(names, NOT_RUN)
    single = np.concatenate([np.arange(n) < hits for n, hits in zip(plain.alone, plain.precise, strict=True)])
    precise = intervals.proportion(single, np.repeat(plain.network.to_numpy(), plain.alone))
    return {
        "exact_128": _several(plain, mean(plain, "exact")),
        "excess_128": _over(plain, expected_alone(64, 128)),
        "excess_64": _over(found[64], expected_alone(64, 64)),
        "excess_over_paper": _over(plain, expected_by_configurations(64, 128)),
        "share_128": share(plain),
        "same_single": _same(plain, "same60"),
        "precise": precise,
    }


def _same(batches: pd.DataFrame, column: str = "same") -> Measured:
    return Measured(intervals.proportion(batches[column], batches.network), images=int(batches.images.sum()))


def variants(found: Mapping[str, pd.DataFrame]) -> Entries:
    """Whether exactly those who are alone in a bin come out, and what the released read-out and connections cost."""
    return {
        "same_double": _same(found["float64"]),
        "same_sparse": _same(found["a row for each bin"]),
        "upward": _gain(found["128 bins, addition"], found["read upward, as released"]),
        "cat_share": share(found["cat"]),
    }


def laws(own: pd.DataFrame, released: pd.DataFrame, average: Mapping[str, pd.DataFrame]) -> Entries:
    """What a wrong law costs. own, released: at the lowest frequency; average: law -> batches, mean of the pixels."""
    return {
        "cdf_laplace": _gain(own, released),
        "cdf_gaussian": _gain(average["empirical"], average["gaussian"]),
        "cdf_fitted": _gain(average["empirical"], average["fitted"]),
    }


def shots(draws: pd.DataFrame, batch: int) -> Entries:
    """How often a target is alone in its batch, and whether it comes out then and only then."""
    read = draws.dropna(subset="exact")
    return {
        "one_shot": Measured(intervals.proportion(draws.alone), {"batch": batch}),
        "one_shot_read": Measured(intervals.proportion(read.exact.astype(bool) == read.alone), {"batch": batch}),
    }


def local(found: Mapping[tuple[int, float], pd.DataFrame]) -> Entries:
    """What 20 local steps cost; found: (steps, rate) -> batches."""
    if not {(1, 0.1), (20, 0.1)} <= found.keys():
        return dict.fromkeys(("local_loss", "local_exact"), NOT_RUN)
    one, many = (
        found[steps, 0.1].assign(share=found[steps, 0.1].exact / found[steps, 0.1].images) for steps in (1, 20)
    )
    return {"local_loss": _gain(one, many, "at least 40 dB"), "local_exact": _gain(one, many, "share")}


def prices(accuracy: pd.DataFrame, rate: float) -> Entries:
    """What the block costs in accuracy at one learning rate, paired over networks."""
    own = accuracy[accuracy.rate == rate].set_index(["server", "network"]).sort_index()
    networks = own.loc["no block"].index
    if len(networks) < 2:
        names = ("price_addition", "price_linear", "official_finite", "accuracy_addition", "finite_linear")
        return dict.fromkeys(names, ONE)
    plain, found = own.loc["no block"].accuracy.to_numpy(), {}
    for measure, server in {"price_addition": "addition", "price_linear": "linear"}.items():
        found[measure] = intervals.difference(plain, own.loc[server].accuracy.to_numpy(), networks)
    for measure, server in {"official_finite": "as released", "finite_linear": "linear"}.items():
        found[measure] = intervals.proportion(own.loc[server].finite, networks)
    return found | {"accuracy_addition": intervals.mean(own.loc["addition"].accuracy.to_numpy(), networks)}


def inspected(seen: pd.DataFrame, hidden: pd.DataFrame, wide: pd.DataFrame) -> Entries:
    """Whether the inspection is right of what it should refuse and pass, and what passes it recovers."""
    expected = {"honest": False, "published block": True, "scattered rows": False}
    own = seen[seen.server.isin(expected)]
    right = own.refused == own.server.map(expected)
    return {
        "inspected_right": Measured(intervals.proportion(right, own.network), images=len(own)),
        "scattered_share": share(hidden),
        "scattered_wide": share(wide),
    }


def traps(block: pd.DataFrame, trap: pd.DataFrame) -> Entries:
    """The share of images that the block recovers exactly, less what trap weights do, paired over batches."""
    one, other = (own.assign(share=own.exact / own.images) for own in (block, trap))
    return {"traps": _gain(one, other, "share")}


def defended(found: Mapping[tuple[str, str], pd.DataFrame]) -> Entries:
    """Shares of images identified; found: (defense, "static" or "adaptive") -> batches."""
    return {f"robbed_{name}_{attacker}": share(batches, "identified") for (name, attacker), batches in found.items()}


def dpsgd(found: Mapping[tuple[str, str], pd.DataFrame], control: pd.DataFrame, guessed: pd.DataFrame) -> Entries:
    """What the reading of rows under DP-SGD is worth: without much noise, over chance, and beside the mean image.

    found: as `defended`'s; control: the same reading at a small multiplier; guessed: of `rtf.guessed`, the same images.
    """
    gained = {}
    for name in ("dpsgd", "dpsgd_1"):
        read = found[name, "adaptive"]
        gained[f"gained_{name}"] = _gain(read, read.assign(identified=read.chance), "identified")
    told = {"robbed_dpsgd_control": control, "guessed_mean": guessed.assign(identified=guessed["mean"])}
    return gained | {name: share(batches, "identified") for name, batches in told.items()}


def imagenet(batches: pd.DataFrame | None) -> Entries:
    """The mean PSNR on ImageNet, over batches."""
    if batches is None or len(batches) < 2:
        return {"psnr_imagenet": NOT_RUN}
    return {"psnr_imagenet": Measured(intervals.mean(batches.psnr), images=int(batches.images.sum()))}
