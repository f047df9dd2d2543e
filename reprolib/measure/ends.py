"""The ends of an interval at a level, from totals [..., clusters] and sizes [clusters], for many samples at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import special

from reprolib.measure.samples import effective_size, t_quantile


def student_ends(value: Any, variance: Any, freedom: Any, level: float) -> tuple[Any, Any]:
    spread = np.sqrt(variance)
    spread = np.where(spread > 1e-12 * abs(value), spread, 0.0)  # less is what rounding leaves of no variation
    half = np.where(spread > 0, t_quantile(level, freedom) * spread, 0.0)
    return value - half, value + half


def korn_graubard(totals: np.ndarray, sizes: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    return clopper_pearson(totals.sum(-1) / sizes.sum(), effective_size(totals, sizes, level), level)


def clopper_pearson(share: np.ndarray, n: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """The exact ends for n trials, where n need not be whole."""
    tail = (1 - level) / 2
    hits, misses = share * n, (1 - share) * n
    low = np.where(hits > 0, special.betaincinv(np.where(hits > 0, hits, 1), misses + 1, tail), 0.0)
    high = np.where(misses > 0, special.betaincinv(hits + 1, np.where(misses > 0, misses, 1), 1 - tail), 1.0)
    return low, high


def recovered(
    first: tuple[np.ndarray, np.ndarray], second: tuple[np.ndarray, np.ndarray], level: float, paired: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The ends of one share less another from the ends of both; shares of the same pairs cannot both be large."""
    (p, (low_p, high_p)), (q, (low_q, high_q)) = (
        (totals.sum(-1) / sizes.sum(), korn_graubard(totals, sizes, level)) for totals, sizes in (first, second)
    )
    together: Any = 0.0
    if paired:  # the correlation of two shares of a multinomial; -1 where one of them is all
        rest = (1 - p) * (1 - q)
        together = -np.sqrt(np.where(rest > 0, p * q / np.where(rest > 0, rest, 1), 1))
    down, up = (p - low_p, high_q - q), (high_p - p, q - low_q)
    lower, upper = (np.sqrt(x**2 - 2 * together * x * y + y**2) for x, y in (down, up))
    return np.maximum(p - q - lower, -1.0), np.minimum(p - q + upper, 1.0)


def left_out(effective: np.ndarray, n: int, level: float) -> np.ndarray:
    """The rank, from either end, of the value that bounds the median of n: 1 is the outermost, 0 lies beyond it."""
    tail = (1 - level) / 2
    known = 0.5**effective < tail  # else one half is not even excluded where no value at all lies below
    least = special.bdtrik(tail, np.where(known, effective, 10.0), 0.5)  # below that, the share excludes one half
    return np.where(known, np.ceil(least * n / effective - 1e-9), 0).astype(int)
