"""What an experiment hands to the ledger for a measure besides a plain `Interval`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from reprolib.measure.intervals import Interval


class Measured(NamedTuple):
    """A measure with what this run took it on.

    conditions: any of `criteria.CONDITIONS`, as `Ledger.record` takes them. images: how many images the
    interval rests on, where that is not `interval.n`.
    """

    interval: Interval
    conditions: Mapping[str, str | int | float] | None = None
    images: int | None = None


class Unmeasured(NamedTuple):
    """Why a run does not take a measure; reason: one of `verdicts.REASONS`."""

    why: str
    reason: str = "missing"


Entry = Interval | Measured | Unmeasured
Entries = Mapping[str, Entry]
"""Measure -> what the ledger is told of it."""
