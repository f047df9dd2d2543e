"""Measures of the chapter on exact batches; batches: the tables that `experiments.spear.compared` and others return."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from reprolib.experiments.measures import NOT_RUN, share
from reprolib.measure import intervals
from reprolib.measure.entries import Entries, Entry, Measured
from reprolib.measure.intervals import Interval

WHOLE = ("float32", "steps")
"""Updates of which whole batches are counted: what masks at once are to read."""

BLURRED = ("plain", "noise")
"""Updates on which the gain on the separation counts: of noise no mixing gives exact images; and its control."""

HIDING = ("plain", "bfloat16", "noise")
"""Updates of which the images that are recognised are counted: what should hide them, and its control."""


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
    own = of(batches, "mask-guided")
    if int(own.images.iloc[0]) != 64 or own.network.nunique() < 2:
        return dict.fromkeys(("exact_64", "whole_64", "seconds_64"), NOT_RUN)
    return {"exact_64": _share(own), "whole_64": _whole(own), "seconds_64": _seconds(own)}


def certificate(double: pd.DataFrame, guided: pd.DataFrame, others: pd.DataFrame) -> Entries:
    """How often a certificate is wrong, and how often one is missing; double: batches of the two attacks that give it.

    guided: batches by masks of `experiments.spear.samples`, which calls every attack SPEAR. Rounded, noisy and pruned
    updates and those of several steps, the others, count for the first alone.
    """
    double = pd.concat([double, guided.assign(attack="mask-guided")])
    every, exact = pd.concat([double, others]), double[double.exact == double.images]
    found = {"false_certificate": (every[every.certified.astype(bool)], lambda t: t.exact < t.images)}
    for name, attack in {"certified_masks": "mask-guided", "certified_spear": "SPEAR"}.items():
        found[name] = (exact[exact.attack == attack], lambda t: t.certified.astype(bool))
    return {
        name: _over(intervals.proportion(hit(t).to_numpy(), t.network.to_numpy()), t) if len(t) else NOT_RUN
        for name, (t, hit) in found.items()
    }


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
    """How many more submatrices one image more costs, from batches of 8 and of 12 of the same networks.

    A batch that was not certified was sampled to the end: its number is none, and its network is left out.
    """
    certified = batches[batches.certified.astype(bool)].set_index("network")
    few, many = (certified.tried[certified.images == size] for size in (8, 12))
    both = few.index.intersection(many.index)
    if len(both) < 2:
        return {"samples_growth": NOT_RUN}
    ratio = intervals.log_mean((many[both] / few[both]) ** 0.25, both.to_numpy())
    return {"samples_growth": Measured(ratio, images=20 * len(both))}


def stages(both: pd.DataFrame, one: pd.DataFrame) -> Entries:
    """What the second stage adds where samples are few: batches of 12."""
    if both.network.nunique() < 2 or int(both.images.iloc[0]) != 12:
        return {"second_stage": NOT_RUN}
    gain = intervals.difference(both.exact / 12, one.exact.to_numpy() / 12, both.network.to_numpy())
    return {"second_stage": _over(gain, both)}


def variants(tables: Mapping[str, pd.DataFrame]) -> Entries:
    """Batches of 32 under other networks, by columns that are tested."""
    return {"plain": _share(tables["plain"]), "trained": _whole(tables["trained"])}


def at_once(tables: Mapping[str, pd.DataFrame]) -> Entries:
    """Batches of 32 by masks at once, whose update is another."""
    if any(table.network.nunique() < 2 for table in tables.values()):
        names = [*WHOLE, "bfloat16", *(f"{name}_gain" for name in BLURRED), *(f"{name}_ceiling" for name in BLURRED)]
        return dict.fromkeys([*names, *(f"{name}_identified" for name in HIDING)], NOT_RUN)
    own, before, most = (
        {name: of(table, attack) for name, table in tables.items()}
        for attack in ("masks at once", "separation", "true mixing")
    )
    entries: dict[str, Entry] = {name: _whole(own[name]) for name in WHOLE}
    entries["bfloat16"] = _share(own["bfloat16"])
    for name in BLURRED:
        mine, theirs = (table[name].psnr.to_numpy() for table in (own, before))
        entries[f"{name}_gain"] = _over(intervals.difference(mine, theirs, own[name].network.to_numpy()), own[name])
        entries[f"{name}_ceiling"] = _over(intervals.mean(most[name].psnr, most[name].network), own[name])
    return entries | {f"{name}_identified": _over(share(own[name], "identified"), own[name]) for name in HIDING}


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
