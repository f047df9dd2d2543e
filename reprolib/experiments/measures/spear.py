"""Measures of the chapter on exact batches; batches: the tables that `experiments.spear.compared` and others return."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from reprolib.experiments.measures import NOT_RUN, share
from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Entry, Measured
from reprolib.measure.intervals import Interval

VARIANTS = ("plain", "trained", "float32", "bfloat16", "steps", "noise", "pruned")


def of(batches: pd.DataFrame, attack: str) -> pd.DataFrame:
    """An attack's rows."""
    return batches[batches.attack == attack]


def _share(batches: pd.DataFrame) -> Measured:
    return Measured(share(batches), images=int(batches.images.sum()))


def _seconds(batches: pd.DataFrame) -> Entry:
    if batches.network.nunique() < 2:
        return NOT_RUN
    return Measured(intervals.log_mean(batches.cpu, batches.network), images=int(batches.images.sum()))


def _counted(values: pd.Series | np.ndarray, batches: pd.DataFrame) -> Measured:
    found = float(np.mean(values))
    exact = Interval(found, found, found, n=len(batches), method=f"all of {len(batches)} batches")
    return Measured(exact, images=int(batches.images.sum()))


def main(batches: pd.DataFrame, sampled: pd.DataFrame) -> Entries:
    """Batches of 64, and the certificate over them and SPEAR's."""
    own, ica = of(batches, "mask-guided"), of(batches, "derivative ICA")
    every = pd.concat([own, sampled])
    right = every.certified.astype(bool) == (every.exact == every.images)
    if int(own.images.iloc[0]) != 64 or own.network.nunique() < 2:
        return dict.fromkeys(("exact_64", "seconds_64", "over_ica"), NOT_RUN) | {"certificate": _counted(right, every)}
    gain = intervals.difference(own.psnr.to_numpy(), ica.psnr.to_numpy(), own.network.to_numpy())
    return {
        "exact_64": _share(own),
        "seconds_64": _seconds(own),
        "over_ica": Measured(gain, images=int(own.images.sum())),
        "certificate": _counted(right, every),
    }


def large(tables: Mapping[int, pd.DataFrame]) -> Entries:
    """Larger batches, by their size."""
    entries: dict[str, Entry] = {
        f"exact_{size}": _share(tables[size]) if size in tables else NOT_RUN for size in (128, 192, 256)
    }
    return entries | {"seconds_128": _seconds(tables[128]) if 128 in tables else NOT_RUN}


def sampled(batches: pd.DataFrame, without: pd.DataFrame) -> Entries:
    """SPEAR over the size of the batch, and without its second stage at 8."""
    by_size = dict(iter(batches.groupby("images")))
    entries: dict[str, Entry] = {
        f"spear_{size}": _share(by_size[size]) if size in by_size else NOT_RUN for size in (8, 12)
    }
    if 8 in by_size and by_size[8].network.nunique() > 1:
        own = by_size[8]
        gain = intervals.difference(own.exact / 8, without.exact.to_numpy() / 8, own.network.to_numpy())
        entries["second_stage"] = Measured(gain, images=int(own.images.sum()))
    else:
        entries["second_stage"] = NOT_RUN
    if {8, 10} <= by_size.keys() and by_size[8].network.nunique() > 1:
        few, many = by_size[8].tried.to_numpy(float), by_size[10].tried.to_numpy(float)
        ratio = intervals.log_mean(np.sqrt(many / few), by_size[8].network.to_numpy())
        entries["samples_growth"] = Measured(ratio, images=int(by_size[8].images.sum() + by_size[10].images.sum()))
    else:
        entries["samples_growth"] = NOT_RUN
    return entries


def variants(tables: Mapping[str, pd.DataFrame], refused: pd.DataFrame) -> Entries:
    """Batches of 32 whose update or network is another; refused: those under activations without zeros."""
    every = pd.concat(tables.values())
    false = every.certified.astype(bool) & (every.exact < every.images)
    entries: dict[str, Entry] = {name: _share(tables[name]) for name in VARIANTS}
    entries["noisy_certificate"] = _counted(false, every)
    return entries | {"leaky": _counted(refused.refused.str.contains("gradients are zero"), refused)}


def other(tables: Mapping[str, pd.DataFrame]) -> dict[str, Measured]:
    """Other image sets, by the measure's name."""
    return {name: _share(table) for name, table in tables.items()}


def trunk(batches: pd.DataFrame) -> Entries:
    """Batches behind a convolutional trunk."""
    sure = Measured(
        intervals.proportion(batches.certified.astype(bool), batches.trial), images=int(batches.images.sum())
    )
    if len(batches) < 2:
        return {"trunk": sure, "trunk_gap": NOT_RUN}
    gap = intervals.mean((batches.oracle - batches.psnr).to_numpy(), batches.trial.to_numpy())
    return {"trunk": sure, "trunk_gap": Measured(gap, images=int(batches.images.sum()))}
