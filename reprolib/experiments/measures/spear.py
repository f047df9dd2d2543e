"""Measures of the chapter on exact batches; batches: the tables that `experiments.spear.compared` and others return."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from reprolib.experiments.measures import NOT_RUN, share
from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Entry, Measured
from reprolib.measure.intervals import Interval

READ = ("trained", "float32", "steps")
"""Variants of which whole batches are counted: what is read."""

HIDDEN = ("plain", "bfloat16", "noise", "pruned")
"""Variants of which images are counted: what a defense must hide, and its control."""


def of(batches: pd.DataFrame, attack: str) -> pd.DataFrame:
    """An attack's rows."""
    return batches[batches.attack == attack]


def whole(batches: pd.DataFrame) -> Interval:
    """The share of batches that come out whole: images of a batch are exact together or hardly at all."""
    return intervals.proportion((batches.exact == batches.images).to_numpy(), batches.network.to_numpy())


def _over(found: Interval, batches: pd.DataFrame) -> Measured:
    """What was found, with the number of images that it rests on."""
    return Measured(found, images=int(batches.images.sum()))


def _whole(batches: pd.DataFrame) -> Measured:
    return _over(whole(batches), batches)


def _share(batches: pd.DataFrame) -> Measured:
    return _over(share(batches), batches)


def _seconds(batches: pd.DataFrame) -> Entry:
    if batches.network.nunique() < 2:
        return NOT_RUN
    return _over(intervals.log_mean(batches.cpu, batches.network), batches)


def _counted(values: pd.Series | np.ndarray, batches: pd.DataFrame) -> Measured:
    found = float(np.mean(values))
    exact = Interval(found, found, found, n=len(batches), method=f"all of {len(batches)} batches")
    return _over(exact, batches)


def main(batches: pd.DataFrame) -> Entries:
    """Batches of 64."""
    own, ica = of(batches, "mask-guided"), of(batches, "derivative ICA")
    if int(own.images.iloc[0]) != 64 or own.network.nunique() < 2:
        return dict.fromkeys(("exact_64", "whole_64", "seconds_64", "over_ica"), NOT_RUN)
    gain = intervals.difference(own.psnr.to_numpy(), ica.psnr.to_numpy(), own.network.to_numpy())
    return {
        "exact_64": _share(own),
        "whole_64": _whole(own),
        "seconds_64": _seconds(own),
        "over_ica": _over(gain, own),
    }


def certificate(every: pd.DataFrame) -> Entries:
    """Whether exact batches are certified, and no others; every: batches of both attacks in double precision."""
    return {"certificate": _counted(every.certified.astype(bool) == (every.exact == every.images), every)}


def large(tables: Mapping[int, pd.DataFrame]) -> Entries:
    """Larger batches, by their size."""
    entries: dict[str, Entry] = {
        f"whole_{size}": _whole(tables[size]) if size in tables else NOT_RUN for size in (128, 192, 256)
    }
    return entries | {"seconds_128": _seconds(tables[128]) if 128 in tables else NOT_RUN}


def sampled(batches: pd.DataFrame, guided: pd.DataFrame) -> Entries:
    """SPEAR over the size of the batch, and mask-guided recovery as its control."""
    by_size = dict(iter(batches.groupby("images")))
    entries: dict[str, Entry] = {
        f"spear_{size}": _whole(by_size[size]) if size in by_size else NOT_RUN for size in (8, 12)
    }
    return entries | {"masks_8": _whole(guided[guided.images == 8]) if 8 in by_size else NOT_RUN}


def growth(batches: pd.DataFrame) -> Entries:
    """How many more submatrices one image more costs, from batches of 8 and of 12 of the same networks."""
    by_size = dict(iter(batches.groupby("images")))
    if not {8, 12} <= by_size.keys() or by_size[8].network.nunique() < 2:
        return {"samples_growth": NOT_RUN}
    few, many = by_size[8].tried.to_numpy(float), by_size[12].tried.to_numpy(float)
    ratio = intervals.log_mean((many / few) ** 0.25, by_size[8].network.to_numpy())
    return {"samples_growth": _over(ratio, batches[batches.images.isin([8, 12])])}


def stages(both: pd.DataFrame, one: pd.DataFrame) -> Entries:
    """What the second stage adds where samples are few: batches of 12."""
    if both.network.nunique() < 2 or int(both.images.iloc[0]) != 12:
        return {"second_stage": NOT_RUN}
    gain = intervals.difference(both.exact / 12, one.exact.to_numpy() / 12, both.network.to_numpy())
    return {"second_stage": _over(gain, both)}


def variants(tables: Mapping[str, pd.DataFrame], refused: pd.DataFrame) -> Entries:
    """Batches of 32 whose update or network is another; refused: those under activations without zeros."""
    every = pd.concat(tables.values())
    false = every.certified.astype(bool) & (every.exact < every.images)
    entries: dict[str, Entry] = {name: _whole(tables[name]) for name in READ}
    entries |= {name: _share(tables[name]) for name in HIDDEN}
    entries["noisy_certificate"] = _counted(false, every)
    return entries | {"leaky": _counted(refused.refused.str.contains("gradients are zero"), refused)}


def other(tables: Mapping[str, pd.DataFrame]) -> dict[str, Measured]:
    """Other image sets, by the measure's name."""
    return {name: _whole(table) for name, table in tables.items()}


def trunk(batches: pd.DataFrame) -> Entries:
    """Batches behind a convolutional trunk."""
    right = batches.certified.astype(bool) & (batches.error < 1e-3)
    sure = _over(intervals.proportion(right, batches.trial), batches)
    if len(batches) < 2:
        return {"trunk": sure, "trunk_gap": NOT_RUN}
    gap = intervals.mean((batches.oracle - batches.psnr).to_numpy(), batches.trial.to_numpy())
    return {"trunk": sure, "trunk_gap": _over(gap, batches)}
