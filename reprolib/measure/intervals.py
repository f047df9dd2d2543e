"""Intervals that cover: estimates over images and networks, each with its 95 % and its 99 % interval.

Trials that share a drawn network, a batch or a training run are not independent. Every function therefore takes
`clusters`: [n], the name of the unit that each value belongs to. The units are independent of each other; values of one
unit may be alike. Without `clusters` each value is a unit of its own.

Values that are all 0 or 1 are hits, and are judged as shares: a run of nothing but successes has an interval with a
width. Everything else is judged by Student's t over the clusters. `tests/test_intervals.py` simulates how often the
intervals hold the truth in every design that the book uses. This file knows nothing of images, papers or criteria.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from reprolib.measure.ends import korn_graubard, left_out, recovered, student_ends
from reprolib.measure.samples import (
    Sample,
    beta_binomial,
    check_finite,
    check_hits,
    check_several,
    degrees_of_freedom,
    effective_size,
    logarithms,
    sampled,
    t_quantile,
    two_sampled,
    variance_of_mean,
)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % and 99 % intervals.

    value, low, high: the estimate and its 95 % ends; an end may be infinite where an error can diverge. n: how many
    observations, such as images. method: how the interval was made, in words. clusters: how many independent units it
    rests on; of two samples, those of the smaller one. low99, high99: the 99 % ends, None in records older than they
    are. skewed: the measure is skewed, so that a verdict must stand at 99 % too.
    Raises ValueError for ends that are not numbers or in the wrong order.
    """

    value: float
    low: float
    high: float
    n: int
    method: str
    clusters: int | None = None
    low99: float | None = None
    high99: float | None = None
    skewed: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("", self.low, self.high), ("99", self.low99, self.high99)):
            if low is None and high is None and name:
                continue
            if low is None or high is None or not low <= high:  # also where one of them is NaN
                raise ValueError(f"low{name}={low} and high{name}={high}: expected two numbers, low <= high")

    def __str__(self) -> str:
        return f"{self.value:.3g} {self.ends()}"

    @property
    def width(self) -> float:
        """From the lower to the upper 95 % end."""
        return self.high - self.low

    def ends(self, scale: float = 1.0) -> str:
        """The 95 % ends in words; a single value has none, whatever its numbers say."""
        if self.n == 1 and self.low == self.high:
            return "(one value)"
        return f"[{scale * self.low:.3g}, {scale * self.high:.3g}]"


# --- shares -----------------------------------------------------------------------------------------------------------


def proportion(hits: Any, clusters: Any = None) -> Interval:
    """Share of hits, for trials that succeed or fail: labels that are right, images identified.

    hits: [n], 0 or 1. For independent trials the interval is Clopper and Pearson's exact one (1934). For trials in
    clusters it is Korn and Graubard's (Survey Methodology 24, 1998): Clopper and Pearson's on the effective sample
    n / deff, made smaller still by (t(n - 1) / t(clusters - 1))². The design effect deff is estimated, at least
    1 + 0.1 (m - 1) and at most m, the clusters' mean size weighted by itself (Kish 1965). So all successes has a width.
    It covers while trials of a cluster are correlated by up to about 0.3. Where whole clusters fail, and few of them, a
    handful of clusters that all succeed promises too much: with 10 clusters of 64, correlated by 0.5, a true share of
    0.9 is held in 88 % of cases. With one cluster that least effect is all there is to go by, and the interval says
    nothing of other clusters: the method names it "one network".
    Raises ValueError for no hits, and for values other than 0 and 1.

    >>> from reprolib.measure import intervals
    >>> intervals.proportion([1] * 50).ends()
    '[0.929, 1]'
    >>> intervals.proportion([1] * 50, clusters=[network for network in range(5) for _ in range(10)]).ends()
    '[0.765, 1]'
    """
    sample = sampled("hits", hits, clusters)
    check_hits("hits", sample.values)
    totals, sizes = sample.totals(), sample.sizes
    if sample.own:
        method = "Clopper-Pearson"
    elif sample.count == 1:
        effective = float(effective_size(totals, sizes, 0.95))
        method = f"Clopper-Pearson on an effective n of {effective:.3g}, one network"
    else:
        method = f"Korn-Graubard {sample.over}"
    return _interval(
        sample.values.mean(), lambda level: korn_graubard(totals, sizes, level), sample.n, method, sample.count
    )


def below(errors: Any, threshold: float, clusters: Any = None) -> Interval:
    """Share of errors below the threshold with the interval of `proportion`; NaN and inf are failures.

    errors: [n], for instance mean squared errors. The threshold itself is not below the threshold.

    >>> from reprolib.measure import intervals
    >>> found = intervals.below([1e-4, 2e-4, 0.3, float("nan")], threshold=1e-3)
    >>> found.value, found.ends()
    (0.5, '[0.0676, 0.932]')
    """
    errors = np.asarray(errors, dtype=np.float64)
    return proportion((errors < threshold).astype(float), clusters)


def pooled(shares: Any, each: int) -> Interval:
    """`proportion` for clusters of `each` trials, of which only the share of hits is known: labels of a batch.

    shares: [clusters], each a whole number of hits over `each`. n counts trials.
    Raises ValueError for shares outside [0, 1] or between two whole numbers of hits.
    """
    sample = sampled("shares", shares, None)
    counts = np.round(sample.values * each)
    if not ((counts >= 0) & (counts <= each) & (abs(counts - sample.values * each) < 1e-3)).all():
        raise ValueError(f"shares must be whole numbers of {each} trials, over {each}")
    hits = np.arange(each) < counts[:, None]
    return proportion(hits.reshape(-1), np.repeat(sample.index, each))


def over_chance(hits: Any, chance: Any, clusters: Any = None) -> Interval:
    """Share of hits less the mean chance of a hit, with the interval of `proportion`, moved by as much.

    chance: one number, or [n]: what guessing would reach on each trial. It is known and not estimated: `difference`
    of hits and chance would have next to no width where every trial is a hit.
    Raises ValueError for chances outside [0, 1] and for another number of them than of hits.
    """
    chance = np.asarray(chance, dtype=np.float64)
    if chance.ndim and chance.shape != np.shape(hits):
        raise ValueError(f"chance has shape {chance.shape}, expected one number or that of hits, {np.shape(hits)}")
    if not ((chance >= 0) & (chance <= 1)).all():
        raise ValueError("chance must lie in [0, 1]")
    rate, guess = proportion(hits, clusters), float(chance.mean())
    moved: dict[str, Any] = {name: getattr(rate, name) - guess for name in _SCALED}
    return replace(rate, **moved, method=f"{rate.method}, less chance")


# --- means ------------------------------------------------------------------------------------------------------------


def mean(values: Any, clusters: Any = None, within: tuple[float, float] | None = None) -> Interval:
    """Mean of a measure that is not skewed, such as PSNR, with Student's t interval over the clusters.

    values: [n], finite. within: the least and the largest value that the measure can have, such as -1 and 1 of a
    correlation; no end lies beyond them. The standard error is the jackknife's over clusters, for clusters of one size
    that of their means; t has one degree of freedom less than Kish's effective number of clusters, (sum of sizes)² /
    sum of squared sizes, so that one cluster with most of the values does not pass for many (MacKinnon, Nielsen and
    Webb, Journal of Applied Econometrics 38, 2023, call the jackknife CV3). Where nothing varies the width is zero, and
    decides nothing. For costs and errors use `log_mean` or `median`, for hits `proportion`.
    Raises ValueError for fewer than two clusters and for values that are not finite, or not within the range.

    >>> from reprolib.measure import intervals
    >>> found = intervals.mean([20.0, 22.0, 21.0, 23.0], clusters=["a", "a", "b", "b"])
    >>> found.value, found.clusters, found.method
    (21.5, 2, 'cluster t over 2 clusters')
    """
    sample = sampled("values", values, clusters)
    check_finite("values", sample.values)
    found = _student(sample, "t")
    if within is None:
        return found
    least, most = sample.values.min(), sample.values.max()
    if not within[0] - 1e-9 <= least <= most <= within[1] + 1e-9:  # rounding may leave a correlation of 1 above 1
        raise ValueError(f"values lie in [{least:g}, {most:g}], beyond within={list(within)}")
    ends: dict[str, Any] = {name: float(np.clip(getattr(found, name), *within)) for name in _SCALED[1:]}
    return replace(found, **ends)


def difference(a: Any, b: Any, clusters: Any = None) -> Interval:
    """Mean of a - b over pairs: the same image, network and start under two attacks.

    a, b: [n], finite. Measures have Student's t interval over the clusters' mean differences, as in `mean`. Hits have
    the share of pairs that only a hits less the share that only b hits, each with the interval of `proportion`, put
    together by the method of variance estimates recovery (Zou and Donner, Statistics in Medicine 27, 2008; Newcombe
    1998): t over clusters holds the truth in as few as 76 % of cases where nearly all pairs agree. Other values in
    [0, 1] are judged so too where every pair differs by -1, 0 or 1, for they vary no more than hits. Beyond [0, 1]
    nothing bounds what was not seen: where no pair differs the width is zero, and decides nothing.
    Raises ValueError for different lengths, for values that are not finite and for fewer than two clusters.
    """
    first, second = sampled("a", a, clusters), sampled("b", b, None)
    if first.n != second.n:
        raise ValueError(f"a has {first.n} values and b {second.n}: a paired difference needs as many, in one order")
    check_finite("a", first.values)
    check_finite("b", second.values)
    delta = replace(first, values=first.values - second.values)
    within = all(((x.values >= 0) & (x.values <= 1)).all() for x in (first, second))
    if not (within and np.isin(delta.values, (-1, 0, 1)).all()):
        return _student(delta, "paired t")
    check_several("a", delta)
    better, worse = ((delta.totals(delta.values == sign), delta.sizes) for sign in (1, -1))
    return _interval(
        delta.values.mean(),
        lambda level: recovered(better, worse, level, paired=True),
        delta.n,
        f"paired hits, Korn-Graubard {delta.over}",
        delta.count,
    )


def mean_difference(a: Any, b: Any, clusters_a: Any = None, clusters_b: Any = None) -> Interval:
    """Mean of a minus mean of b, two independent samples; for the same images under two attacks use `difference`.

    a, b: [n_a] and [n_b], finite. Measures have Welch's interval (1947) over the clusters' means, with the standard
    errors and degrees of freedom of `mean`; hits have the two intervals of `proportion`, put together as in
    `difference`. n counts both samples.
    Raises ValueError for values that are not finite and for a sample of fewer than two clusters.
    """
    first, second = two_sampled(a, b, clusters_a, clusters_b)
    if not (np.isin(first.values, (0, 1)).all() and np.isin(second.values, (0, 1)).all()):
        return _welch(first, second)
    of_a, of_b = ((sample.totals(), sample.sizes) for sample in (first, second))
    return _interval(
        first.values.mean() - second.values.mean(),
        lambda level: recovered(of_a, of_b, level, paired=False),
        first.n + second.n,
        f"two shares, Korn-Graubard over {first.count} and {second.count} clusters",
        min(first.count, second.count),
    )


def median(values: Any, clusters: Any = None) -> Interval:
    """Median with an interval between two of the values, whatever their distribution: for errors that may diverge.

    values: [n]; NaN counts as +inf, so that a diverged run is the worst of all. An end is the value beyond which the
    interval of `proportion` for the share below no longer holds one half (Woodruff, JASA 47, 1952); for independent
    values this is the exact interval of the sign test. Where there are too few values for the level, such as five at
    95 %, the ends are infinite: nothing is known.
    Raises ValueError for fewer than two clusters.
    """
    sample = sampled("values", values, clusters)
    check_several("values", sample)
    values = np.where(np.isnan(sample.values), np.inf, sample.values)
    ranked = np.sort(values)
    middle = ranked[(sample.n - 1) // 2]
    counts = np.stack([sample.totals(values < middle), sample.totals(values <= middle)])

    def ends(level: float) -> tuple[float, float]:
        effective = effective_size(
            counts, sample.sizes, level
        ).min()  # of the two sides that equal values may be put on
        rank = int(left_out(effective, sample.n, level))
        padded = np.concatenate([[-np.inf], ranked, [np.inf]])
        return padded[rank], padded[sample.n + 1 - rank]

    return _interval(np.median(values), ends, sample.n, f"order statistics {sample.over}", sample.count)


# --- skewed measures --------------------------------------------------------------------------------------------------


def log_mean(values: Any, clusters: Any = None) -> Interval:
    """Geometric mean of a skewed positive measure, such as seconds or evaluations: `mean` on logarithms.

    values: [n], positive and finite. `skewed` is set.
    """
    return _exponential(mean(logarithms("values", values), clusters))


def log_ratio(a: Any, b: Any, clusters: Any = None) -> Interval:
    """Geometric mean of a / b over pairs, such as the evaluations that two attacks need for the same image.

    a, b: [n], positive and finite. `skewed` is set.
    """
    a, b = logarithms("a", a), logarithms("b", b)
    if len(a) != len(b):
        raise ValueError(f"a has {len(a)} values and b {len(b)}: a paired ratio needs as many, in one order")
    return _exponential(mean(a - b, clusters))


def log_mean_ratio(a: Any, b: Any, clusters_a: Any = None, clusters_b: Any = None) -> Interval:
    """Geometric mean of a over that of b, two independent samples: Welch's interval on logarithms.

    a, b: [n_a] and [n_b], positive and finite, for instance evaluations until success of the runs that got there.
    n counts both samples. `skewed` is set.
    """
    first, second = two_sampled(logarithms("a", a), logarithms("b", b), clusters_a, clusters_b)
    return _exponential(_welch(first, second))


# --- between clusters -------------------------------------------------------------------------------------------------


def between_share(values: Any, clusters: Any) -> Interval:
    """The share of the variance that lies between clusters, 0 to 1: the correlation of two values of one cluster.

    Hits: the beta-binomial model, in which the clusters' rates of success follow a beta distribution; the interval is
    the likelihood ratio's with t(clusters - 1)² as its bound, in steps of 0.01. Rates that are 0 or 1 in some clusters
    and alike in all others are no beta distribution, and are held less often. Other values: the exact F interval of the
    one-way layout with normal values and cluster means (Searle 1971); for clusters of different sizes that of Thomas
    and Hultquist (Annals of Statistics 6, 1978).
    Raises ValueError for values that are not finite, for fewer than two clusters, where no cluster has two values, and
    for measures that do not vary.
    """
    sample = sampled("values", values, clusters)
    check_finite("values", sample.values)
    check_several("values", sample)
    if sample.sizes.max() == 1:
        raise ValueError("every cluster has one value: the share between clusters needs two values in some of them")
    if np.isin(sample.values, (0, 1)).all():
        shares, profile = beta_binomial(sample.totals(), sample.sizes)

        def held(level: float) -> tuple[float, float]:
            bound = t_quantile(level, sample.count - 1) ** 2
            inside = np.flatnonzero(2 * (profile.max() - profile) <= bound)
            return shares[max(inside[0] - 1, 0)], shares[min(inside[-1] + 1, len(shares) - 1)]

        value = shares[np.argmax(profile)] if np.ptp(sample.values) else 0.0  # all alike: any share is as likely
        return _interval(value, held, sample.n, f"beta-binomial likelihood {sample.over}", sample.count)
    if np.ptp(sample.values) == 0:
        raise ValueError("the values do not vary: no share of their variance lies anywhere")
    means = sample.totals() / sample.sizes
    size, freedom = stats.hmean(sample.sizes), (sample.count - 1, sample.n - sample.count)
    within = ((sample.values - means[sample.index]) ** 2).sum() / freedom[1]
    ratio = size * means.var(ddof=1) / within if within > 0 else math.inf

    def share(f: float) -> float:
        return 1.0 if math.isinf(f) else max(0.0, (f - 1) / (f + size - 1))

    def ends(level: float) -> tuple[float, float]:
        tail = (1 - level) / 2
        return share(ratio / stats.f.isf(tail, *freedom)), share(ratio / stats.f.ppf(tail, *freedom))

    return _interval(share(ratio), ends, sample.n, f"F {sample.over}", sample.count)


# --- how many trials --------------------------------------------------------------------------------------------------


def trials_needed(bound: float, each: int = 1) -> int:
    """The least number of trials that, if all succeed, put `proportion`'s lower 95 % end at the bound or above.

    each: trials a cluster. By symmetry, an upper end at or below b takes `trials_needed(1 - b)` failures.
    Raises ValueError for a bound outside (0, 1) and for fewer than one trial a cluster.

    >>> trials_needed(0.99), trials_needed(0.9), trials_needed(0.9, each=8)
    (368, 36, 80)
    """
    if not 0 < bound < 1 or each < 1:
        raise ValueError(f"bound={bound}, each={each}: expected a bound between 0 and 1 and at least one trial each")

    def reached(count: int) -> float:
        sizes = np.full(count, float(each))
        return float(korn_graubard(sizes, sizes, 0.95)[0])

    counts = range(1 if each == 1 else 2, 10**6)
    return counts[bisect_left(counts, bound, key=reached)] * each


def clusters_needed(sd: float, margin: float) -> int:
    """The least number of clusters whose mean has a 95 % interval of at most ± margin, where their means vary by sd.

    sd: the standard deviation of the clusters' means (of their differences, for pairs), in the unit of the margin.

    >>> clusters_needed(1.0, 0.5)
    18
    """
    if not (sd > 0 and margin > 0):
        raise ValueError(f"sd={sd}, margin={margin}: expected both to be positive")
    counts = range(2, 10**6)
    return counts[bisect_left(counts, -margin, key=lambda g: -t_quantile(0.95, g - 1) * sd / math.sqrt(g))]


def _interval(
    value: float,
    ends: Callable[[float], tuple[Any, Any]],
    n: int,
    method: str,
    clusters: int,
) -> Interval:
    """The interval whose ends at a level are `ends(level)`."""
    found = [float(end) for level in (0.95, 0.99) for end in ends(level)]
    return Interval(float(value), found[0], found[1], n, method, clusters, found[2], found[3])


_SCALED = ("value", "low", "high", "low99", "high99")


def _exponential(of_logarithms: Interval) -> Interval:
    with np.errstate(over="ignore"):
        found: dict[str, Any] = {x: float(np.exp(getattr(of_logarithms, x))) for x in _SCALED}
    return replace(of_logarithms, **found, method=f"{of_logarithms.method}, on logarithms", skewed=True)


def _student(sample: Sample, what: str) -> Interval:
    """t over the clusters of a sample; what: "t", or "paired t"."""
    check_several("values", sample)
    value, variance, freedom = (
        sample.values.mean(),
        variance_of_mean(sample.totals(), sample.sizes),
        degrees_of_freedom(sample.sizes),
    )
    method = f"{what if sample.own else f'cluster {what}'} {sample.over}"
    return _interval(value, lambda level: student_ends(value, variance, freedom, level), sample.n, method, sample.count)


def _welch(first: Sample, second: Sample) -> Interval:
    parts = [(float(variance_of_mean(x.totals(), x.sizes)), degrees_of_freedom(x.sizes)) for x in (first, second)]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / own for part, own in parts) if variance else math.inf
    value = first.values.mean() - second.values.mean()
    return _interval(
        value,
        lambda level: student_ends(value, variance, freedom, level),
        first.n + second.n,
        f"Welch's t over {first.count} and {second.count} clusters",
        min(first.count, second.count),
    )
