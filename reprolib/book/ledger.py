"""The ledger: what a chapter measures, with the verdicts on the paper's claims that follow from it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from numbers import Integral, Real
from typing import Any

import pandas as pd

from reprolib.book.claims import Paper
from reprolib.book.criteria import CONDITIONS
from reprolib.book.judge import judge
from reprolib.book.measured import Record, known_profile
from reprolib.book.verdicts import REASONS, SYMBOLS, Verdict
from reprolib.measure.intervals import Interval

_PROVENANCE = {"read": "", "plot": " (off the plot)", "recalled": " (recalled, unverified)", "own": ""}


# --- the ledger of a run ----------------------------------------------------------------------------------------------


@dataclass
class Ledger:
    """Collects a chapter's measures and judges the paper's claims by them.

    profile: the run's profile. substitutes: image set that stands in -> the set that was asked for. seed, time: the
    run's; time is a date and time in ISO's form, now where it is "".
    """

    paper: Paper
    profile: str
    substitutes: dict[str, str] = field(default_factory=dict)
    seed: int | None = None
    time: str = ""
    records: dict[str, Record] = field(default_factory=dict)
    skipped: dict[str, tuple[str, str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known_profile(self.profile)

    def record(
        self,
        measure: str,
        interval: Interval,
        images: int,
        data: str | None,
        conditions: Mapping[str, str | int | float] | None = None,
    ) -> None:
        """Note a measure. images: how many the interval rests on; data: the set's name, None where no images are used.

        conditions: what this run measured it on, any of `criteria.CONDITIONS`; they come before what
        the measure's `on` says. Measuring again replaces the record, so that a cell can be run twice.
        Raises ValueError for undeclared measures and conditions, and for numbers that are none.
        """
        self._known(measure)
        if not isinstance(interval, Interval):
            raise ValueError(f"interval={interval!r} for {measure!r}: expected one of `reprolib.measure.intervals`")
        if math.isnan(interval.value):
            raise ValueError(f"interval={interval} for {measure!r}: its value must be a number")
        if images < 1:
            raise ValueError(f"images={images} for {measure!r}: expected at least 1")
        told = {}
        for name, value in (conditions or {}).items():
            if name not in CONDITIONS:
                raise ValueError(f"unknown condition {name!r} for {measure!r}; known: {', '.join(CONDITIONS)}")
            told[name] = _plain(value, f"conditions[{name!r}] for {measure!r}")
        self.skipped.pop(measure, None)
        self.records[measure] = Record(
            _own_numbers(interval), int(images), data, self.substitutes.get(data or ""), told
        )

    def skip(self, measure: str, why: str, reason: str = "missing") -> None:
        """Say why this run does not take a measure, for example that the profile is too small for it.

        reason: a code of `REASONS`.
        """
        self._known(measure)
        if not why:
            raise ValueError(f"the reason for skipping {measure!r} is empty: say why it was not measured")
        if reason not in REASONS:
            raise ValueError(f"reason={reason!r} for skipping {measure!r}; known: {', '.join(REASONS)}")
        self.records.pop(measure, None)
        self.skipped[measure] = (reason, why)

    def missing(self) -> list[str]:
        """The declared measures that were neither recorded nor skipped."""
        return [name for name in self.paper.measures if name not in self.records and name not in self.skipped]

    def check(self) -> None:
        """Raise ValueError naming every measure that is missing."""
        if forgotten := self.missing():
            raise ValueError(
                f"measures declared in claims/{self.paper.paper}.yml but never recorded: {', '.join(forgotten)}; "
                f"measure them, or give the reason with Unmeasured(why)"
            )

    def filled(self, text: str) -> str:
        """A text with what was measured in the places of their {names}: "{recovery} come back" tells the number.

        What is shown is the value with its interval, shares and accuracies in per cent; a dash where this run did not
        measure it.
        Raises ValueError for a name that the paper's claims do not declare.
        """
        return self.paper.filled(text, {name: record.interval for name, record in self.records.items()})

    def verdicts(self) -> list[Verdict]:
        made = {"seed": self.seed, "time": self.time or datetime.now(UTC).isoformat(timespec="seconds")}
        return judge(self.paper, {"profile": self.profile, "provenance": made, **self._measured()})

    def table(self, reference: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The claims with verdict, published value, this run's and the reference run's, criterion and place.

        reference: the reference run's results file; its verdicts are drawn anew, by the claims as they are now.
        """
        judged = {verdict.id: verdict for verdict in judge(self.paper, reference)} if reference else {}
        rows = []
        for claim, verdict in zip(self.paper.claims, self.verdicts(), strict=True):
            stored = judged[claim.id].measured() if judged else ""
            rows.append(
                {
                    "claim": claim.says,
                    "verdict": str(verdict),
                    "published": f"{claim.published}{_PROVENANCE[claim.provenance]}",
                    "this run": verdict.measured() or "—",
                    "reference run": f"{stored} {SYMBOLS[judged[claim.id].verdict]}" if stored else "—",
                    "criterion": verdict.criterion or "—",
                    "where": claim.where if claim.origin == "paper" else "this book",
                }
            )
        return pd.DataFrame(rows)

    def payload(self) -> dict[str, Any]:
        """The ledger as it goes into the results file: measures, skipped, verdicts (a dictionary a claim)."""
        return {**self._measured(), "verdicts": [verdict.model_dump() for verdict in self.verdicts()]}

    def _measured(self) -> dict[str, Any]:
        return {
            "measures": {name: record.stored() for name, record in self.records.items()},
            "skipped": {name: {"reason": code, "why": why} for name, (code, why) in self.skipped.items()},
        }

    def _known(self, measure: str) -> None:
        if measure not in self.paper.measures:
            raise ValueError(
                f"unknown measure {measure!r}; claims/{self.paper.paper}.yml declares: {', '.join(self.paper.measures)}"
            )


def _plain(value: Any, name: str) -> str | int | float:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bool) or not isinstance(value, Real):
        raise ValueError(f"{name} is {value!r}: expected text or a number")
    return int(value) if isinstance(value, Integral) else float(value)


def _own_numbers(interval: Interval) -> Interval:
    """The same with Python's own numbers: those of NumPy differ from what a results file gives back."""
    given = {key.name: getattr(interval, key.name) for key in dataclasses.fields(interval)}
    return Interval(**{key: value.item() if hasattr(value, "item") else value for key, value in given.items()})
