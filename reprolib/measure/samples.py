"""Values with the cluster that each belongs to: what intervals are drawn from, and how much a sample is worth.

The variances and sizes work on totals [..., clusters] and sizes [clusters], so that many samples of one design go at
once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from scipy import special, stats

LEAST_CORRELATION = 0.1
"""Two trials of one cluster are taken to be correlated at least this much, whatever a few clusters happen to show."""


@dataclass(frozen=True)
class Sample:
    """Values and the number of the cluster that each belongs to. own: every value is a cluster of its own."""

    values: np.ndarray
    index: np.ndarray

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def count(self) -> int:
        return int(self.index.max()) + 1

    @property
    def own(self) -> bool:
        return self.count == self.n

    @property
    def sizes(self) -> np.ndarray:
        return np.bincount(self.index).astype(float)

    @property
    def over(self) -> str:
        return f"over {self.count} {'values' if self.own else 'clusters'}"

    def totals(self, of: np.ndarray | None = None) -> np.ndarray:
        """The sum over each cluster, of the values or of something else that there is one of for each value."""
        return np.bincount(self.index, weights=self.values if of is None else of, minlength=self.count)


def sampled(name: str, values: Any, clusters: Any) -> Sample:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} has shape {values.shape}, no values in a row: expected [n] with n >= 1")
    if clusters is None:
        return Sample(values, np.arange(len(values)))
    index, _ = pd.factorize(np.asarray(clusters).reshape(-1))
    if len(index) != len(values):
        raise ValueError(f"clusters has {len(index)} entries for {len(values)} values: expected one for each")
    if (index < 0).any():
        raise ValueError(f"clusters lacks a name for {int((index < 0).sum())} of {len(index)} values")
    return Sample(values, index)


def check_several(name: str, sample: Sample) -> None:
    if sample.count == 1:
        raise ValueError(f"{name}: all values belong to one cluster, and an interval needs at least two of them")


def two_sampled(a: Any, b: Any, clusters_a: Any, clusters_b: Any) -> tuple[Sample, Sample]:
    first, second = sampled("a", a, clusters_a), sampled("b", b, clusters_b)
    for name, sample in (("a", first), ("b", second)):
        check_finite(name, sample.values)
        check_several(name, sample)
    return first, second


def check_finite(name: str, values: np.ndarray) -> None:
    if bad := int((~np.isfinite(values)).sum()):
        raise ValueError(f"{name} holds {bad} values that are not finite: use `below` or `median` for errors")


def check_hits(name: str, values: np.ndarray) -> None:
    if not np.isin(values, (0, 1)).all():
        raise ValueError(f"{name} must be 0 or 1, true or false")


def logarithms(name: str, values: Any) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    if not (np.isfinite(values) & (values > 0)).all():
        raise ValueError(f"{name} holds values that are not positive and finite: they have no logarithm")
    return np.log(values)


def t_quantile(level: float, freedom: Any) -> Any:
    return stats.t.ppf(0.5 + level / 2, freedom)


def variance_of_mean(totals: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """The variance of the mean over all values, by leaving out one cluster after the other."""
    n, count = sizes.sum(), len(sizes)
    residual = totals - sizes * (totals.sum(-1, keepdims=True) / n)
    return (count - 1) / count * ((residual / (n - sizes)) ** 2).sum(-1)


def degrees_of_freedom(sizes: np.ndarray) -> float:
    return sizes.sum() ** 2 / (sizes**2).sum() - 1


def effective_size(totals: np.ndarray, sizes: np.ndarray, level: float) -> np.ndarray:
    """How many independent trials are worth as much as these."""
    n, count = sizes.sum(), len(sizes)
    size = (sizes**2).sum() / n
    least = 1 + LEAST_CORRELATION * (size - 1)
    if count == 1:
        return np.full(totals.shape[:-1], n / least)
    if count == n:
        return np.full(totals.shape[:-1], n)
    share = totals.sum(-1) / n
    alone = share * (1 - share) / n
    effect = np.divide(variance_of_mean(totals, sizes), alone, out=np.zeros_like(alone), where=alone > 0)
    return (
        n
        / np.clip(effect, least, size)
        * (t_quantile(level, n - 1) / t_quantile(level, degrees_of_freedom(sizes))) ** 2
    )


def beta_binomial(totals: np.ndarray, sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares between clusters from 0 to 1, and the largest log likelihood for each over all rates of success."""
    shares = np.linspace(0, 1, 101)
    rate = special.expit(np.linspace(-8, 8, 161))[:, None]
    pairs, times = np.unique(np.stack([totals, sizes]), axis=1, return_counts=True)
    hits, misses = pairs[0], pairs[1] - pairs[0]
    profile = []
    for share in shares:
        if share == 0:
            each = special.xlogy(hits, rate) + special.xlog1py(misses, -rate)
        elif share == 1:
            mixed = (hits > 0) & (misses > 0)
            each = np.where(mixed, -np.inf, np.where(hits > 0, np.log(rate), np.log1p(-rate)))
        else:
            a, b = rate * (1 - share) / share, (1 - rate) * (1 - share) / share
            each = special.betaln(hits + a, misses + b) - special.betaln(a, b)
        profile.append((each * times).sum(1).max())
    return shares, np.array(profile)
