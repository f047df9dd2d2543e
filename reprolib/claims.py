"""The ledger of claims: what a paper states, the criterion it is judged by, and what a run's intervals make of it.

A file of claims, `claims/<paper>.yml`:

    paper: idlg
    title: "iDLG: Improved Deep Leakage from Gradients"
    measures:                       # every number the chapter records, with one line on what it is
      label_accuracy: share of images whose label the row-sum rule infers
    claims:
      - id: label-accuracy
        says: the label of a single sample is recovered from the gradient of the last layer
        where: Table 1
        published: {value: 100.0, unit: "% of labels"}   # a unit that starts with % : the measure is a share in [0, 1]
        provenance: read            # read in the source | plot (read off a figure) | recalled (unverified) | own
        needs: {data: [cifar10, mnist], profile: cpu, images: 1000}
        criterion: {measure: label_accuracy, at_least: 0.99}
      - ...
        criterion: null             # cannot be decided by this chapter, and
        undecidable: the reason

Criteria are in the measure's own scale (shares in [0, 1]); tables show them in the published unit.
"""

from __future__ import annotations

import math
import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from reprolib.metrics import Interval

PROFILES = ("smoke", "cpu", "gpu", "paper")
"""From the smallest to the paper's own sizes; a claim names the least one at which it can be decided."""

SYMBOLS = {"reproduced": "✔", "partly": "◐", "not reproduced": "✘", "not decided here": "○"}

_PROVENANCE = {"read": "", "plot": " (off the plot)", "recalled": " (recalled, unverified)", "own": ""}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Published(_Strict):
    """What the paper prints: a number with its unit, or a short statement such as "no protection"."""

    value: float | str | None
    unit: str = ""

    @property
    def percent(self) -> bool:
        return self.unit.startswith("%")

    def __str__(self) -> str:
        if self.value is None:
            return "—"
        return self.value if isinstance(self.value, str) else f"{self.value:g} {self.unit}".strip()


class Needs(_Strict):
    """What a run must have for the claim to be decided by it."""

    data: tuple[str, ...] = ()  # any one of these; empty: any images will do
    profile: Literal["smoke", "cpu", "gpu", "paper"]
    images: int = Field(ge=1)


class Criterion(_Strict):
    """A measure and one bound on it."""

    measure: str
    at_least: float | None = None
    at_most: float | None = None
    between: tuple[float, float] | None = None
    above: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Criterion:
        given = [name for name in ("at_least", "at_most", "between", "above") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"expected exactly one of at_least, at_most, between, above; got {given or 'none'}")
        if self.between is not None and not self.between[0] < self.between[1]:
            raise ValueError(f"between={list(self.between)}: expected [smaller, larger]")
        return self

    def judge(self, interval: Interval) -> str:
        """reproduced if the whole interval satisfies the bound, not reproduced if none of it does, partly otherwise."""
        low, high = interval.low, interval.high
        if self.between is not None:
            every, none = (
                self.between[0] <= low and high <= self.between[1],
                high < self.between[0] or low > self.between[1],
            )
        elif self.at_least is not None:
            every, none = low >= self.at_least, high < self.at_least
        elif self.at_most is not None:
            every, none = high <= self.at_most, low > self.at_most
        else:
            every, none = low > self.above, high <= self.above
        return "reproduced" if every else "not reproduced" if none else "partly"

    def words(self, percent: bool = False) -> str:
        if self.between is not None:
            return f"between {_number(self.between[0], percent)} and {_number(self.between[1], percent)}"
        bound = next(name for name in ("at_least", "at_most", "above") if getattr(self, name) is not None)
        return f"{bound.replace('_', ' ')} {_number(getattr(self, bound), percent)}"


class Claim(_Strict):
    """One statement or number of a paper (or of this book), with the criterion it is judged by."""

    id: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")
    says: str
    where: str
    published: Published
    provenance: Literal["read", "plot", "recalled", "own"]
    origin: Literal["paper", "book"] = "paper"
    needs: Needs
    criterion: Criterion | None
    undecidable: str | None = None

    @model_validator(mode="after")
    def _decidable_or_said_why(self) -> Claim:
        if self.criterion is None and not self.undecidable:
            raise ValueError("criterion is null: say why in `undecidable: the reason`")
        if self.criterion is not None and self.undecidable:
            raise ValueError("undecidable is given beside a criterion: keep one of them")
        if (self.origin == "book") != (self.provenance == "own"):
            raise ValueError(
                f"provenance={self.provenance!r} with origin={self.origin!r}: own goes with origin book only"
            )
        if self.provenance == "recalled" and self.criterion is not None:
            published, scale = self.published.value, 0.01 if self.published.percent else 1.0
            bounds = [self.criterion.at_least, self.criterion.at_most, self.criterion.above]
            copied = isinstance(published, float) and any(
                b is not None and math.isclose(b, published * scale) for b in bounds
            )
            if copied or self.criterion.between is not None:
                raise ValueError("a recalled number cannot decide: judge the direction, or use `criterion: null`")
        return self


class Paper(_Strict):
    """A file of claims."""

    paper: str
    title: str
    measures: dict[str, str]
    claims: tuple[Claim, ...]

    @field_validator("claims")
    @classmethod
    def _distinct(cls, claims: tuple[Claim, ...]) -> tuple[Claim, ...]:
        ids = [claim.id for claim in claims]
        if twice := sorted({name for name in ids if ids.count(name) > 1}):
            raise ValueError(f"ids used twice: {twice}")
        return claims

    @model_validator(mode="after")
    def _declared(self) -> Paper:
        for claim in self.claims:
            if claim.criterion is not None and claim.criterion.measure not in self.measures:
                raise ValueError(
                    f"claim {claim.id!r}: criterion.measure={claim.criterion.measure!r} is not declared in measures; "
                    f"declared: {', '.join(self.measures)}"
                )
        return self

    def claim(self, name: str) -> Claim:
        for claim in self.claims:
            if claim.id == name:
                return claim
        raise ValueError(f"unknown claim {name!r}; known: {', '.join(claim.id for claim in self.claims)}")


def load(path: str | os.PathLike) -> Paper:
    """Read and check a file of claims.

    Raises FileNotFoundError, and ValueError naming the file, the claim and the key for malformed YAML, unknown or
    missing keys, keys given twice, and criteria on undeclared measures.
    """
    path = Path(path)
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"{path.name} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise ValueError(f"{path.name}: expected the keys {', '.join(Paper.model_fields)} at the top")
    try:
        return Paper.model_validate(document)
    except ValidationError as error:
        faults = "\n".join(f"  {_explain(fault, document)}" for fault in error.errors())
        raise ValueError(f"{path.name} holds no valid claims:\n{faults}") from error


class _Loader(yaml.SafeLoader):
    """The safe loader, refusing a key given twice: YAML keeps the last one silently, and with it another criterion."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if twice := [key for i, key in enumerate(keys) if key in keys[:i]]:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_PARTS = {"claims": Claim, "published": Published, "needs": Needs, "criterion": Criterion}


def _explain(fault: Mapping[str, Any], document: Mapping[str, Any]) -> str:
    """A fault found by pydantic, in the terms of the file."""
    place, model = [], Paper
    for step in fault["loc"]:
        if isinstance(step, int) and place == ["claims"]:
            entry = document["claims"][step]
            name = entry.get("id", f"number {step + 1}") if isinstance(entry, dict) else f"number {step + 1}"
            place = [f"claim {name!r}"]
        else:
            place.append(str(step))
    parents = [step for step in fault["loc"][:-1] if step in _PARTS]
    model = _PARTS[parents[-1]] if parents else Paper
    where = ", ".join(place) or "file"
    if fault["type"] == "extra_forbidden":
        return f"{where}: unknown key; known: {', '.join(model.model_fields)}"
    if fault["type"] == "missing":
        hint = (
            " (a measure with a bound, or null with `undecidable: the reason`)"
            if fault["loc"][-1] == "criterion"
            else ""
        )
        return f"{where}: missing{hint}"
    return f"{where}: {fault['msg'].removeprefix('Value error, ')} (got {str(fault['input'])[:80]!r})"


# --- judging a run ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Record:
    """A measured interval and what it was measured on."""

    interval: Interval
    images: int
    data: str | None
    substitute_for: str | None = None


@dataclass(frozen=True)
class Verdict:
    """A claim's verdict in this run: one of the words in `SYMBOLS`, and the reason where it is not decided."""

    claim: Claim
    word: str
    reason: str = ""
    record: Record | None = None

    def __str__(self) -> str:
        return f"{SYMBOLS[self.word]} {self.word}" + (f": {self.reason}" if self.reason else "")


@dataclass
class Ledger:
    """Collects a chapter's measures and judges the paper's claims by them.

    profile: the run's profile. substitutes: image set that stands in -> the set that was asked for.
    """

    paper: Paper
    profile: str
    substitutes: dict[str, str] = field(default_factory=dict)
    records: dict[str, Record] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.profile not in PROFILES:
            raise ValueError(f"unknown profile {self.profile!r}; known: {', '.join(PROFILES)}")

    def record(self, measure: str, interval: Interval, images: int, data: str | None) -> None:
        """Note a measure. images: how many the interval rests on; data: the set's name, None where no images are used.

        Measuring again replaces the record, so that a cell can be run twice.
        """
        self._known(measure)
        if not isinstance(interval, Interval):
            raise ValueError(
                f"interval={interval!r} for {measure!r}: expected an Interval (metrics.wilson, success, …)"
            )
        if math.isnan(interval.low) or math.isnan(interval.high):
            raise ValueError(f"interval={interval} for {measure!r}: its ends must be numbers")
        if images < 1:
            raise ValueError(f"images={images} for {measure!r}: expected at least 1")
        self.skipped.pop(measure, None)
        self.records[measure] = Record(interval, int(images), data, self.substitutes.get(data or ""))

    def skip(self, measure: str, reason: str) -> None:
        """Say why this run does not take a measure, for example that the profile is too small for it."""
        self._known(measure)
        if not reason:
            raise ValueError(f"reason for skipping {measure!r} is empty: say why it was not measured")
        self.records.pop(measure, None)
        self.skipped[measure] = reason

    def check(self) -> None:
        """Raise ValueError naming every declared measure that was neither recorded nor skipped."""
        forgotten = [name for name in self.paper.measures if name not in self.records and name not in self.skipped]
        if forgotten:
            raise ValueError(
                f"measures declared in claims/{self.paper.paper}.yml but never recorded: {', '.join(forgotten)}; "
                f"record them, or give the reason with skip(measure, reason)"
            )

    def verdicts(self) -> list[Verdict]:
        return [self._judge(claim) for claim in self.paper.claims]

    def table(self, reference: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """The claims with verdict, published value, this run's and the reference run's, criterion and place.

        reference: what `payload` gave in the reference run, as stored in results/reference.
        """
        rows = []
        for verdict in self.verdicts():
            claim, record = verdict.claim, verdict.record
            rows.append(
                {
                    "claim": claim.says,
                    "verdict": str(verdict),
                    "published": f"{claim.published}{_PROVENANCE[claim.provenance]}",
                    "this run": value_words(record.interval, claim.published.percent) if record else "—",
                    "reference run": _reference_cell(claim, reference),
                    "criterion": claim.criterion.words(claim.published.percent) if claim.criterion else "—",
                    "where": claim.where if claim.origin == "paper" else "this book",
                }
            )
        return pd.DataFrame(rows)

    def payload(self) -> dict[str, Any]:
        """The ledger as it goes into the results file: measures, skipped, verdicts (a dictionary a claim)."""
        measures = {
            name: {
                "value": record.interval.value,
                "low": record.interval.low,
                "high": record.interval.high,
                "n": record.interval.n,
                "method": record.interval.method,
                "images": record.images,
                "data": record.data,
                "substitute_for": record.substitute_for,
            }
            for name, record in self.records.items()
        }
        verdicts = [
            {
                "id": v.claim.id,
                "says": v.claim.says,
                "where": v.claim.where,
                "origin": v.claim.origin,
                "published": str(v.claim.published),
                "provenance": v.claim.provenance,
                "measure": v.claim.criterion.measure if v.claim.criterion else None,
                "criterion": v.claim.criterion.words(v.claim.published.percent) if v.claim.criterion else None,
                "measured": value_words(v.record.interval, v.claim.published.percent) if v.record else None,
                "verdict": v.word,
                "reason": v.reason,
            }
            for v in self.verdicts()
        ]
        return {"measures": measures, "skipped": dict(self.skipped), "verdicts": verdicts}

    def _known(self, measure: str) -> None:
        if measure not in self.paper.measures:
            raise ValueError(
                f"unknown measure {measure!r}; claims/{self.paper.paper}.yml declares: {', '.join(self.paper.measures)}"
            )

    def _judge(self, claim: Claim) -> Verdict:
        undecided = "not decided here"
        if claim.criterion is None:
            return Verdict(claim, undecided, claim.undecidable)
        measure, needs = claim.criterion.measure, claim.needs
        if measure in self.skipped:
            return Verdict(claim, undecided, self.skipped[measure])
        if measure not in self.records:
            return Verdict(claim, undecided, "not measured in this run")
        record = self.records[measure]
        if PROFILES.index(self.profile) < PROFILES.index(needs.profile):
            reason = f"decided from the {needs.profile} profile on, this run is {self.profile}"
        elif needs.data and record.data not in needs.data:
            stand_in = f", a stand-in for {record.substitute_for}" if record.substitute_for else ""
            reason = f"needs {' or '.join(needs.data)}, this run has {record.data or 'no images'}{stand_in}"
        elif record.images < needs.images:
            reason = f"needs {needs.images} images, this run has {record.images}"
        else:
            return Verdict(claim, claim.criterion.judge(record.interval), record=record)
        return Verdict(claim, undecided, reason, record)


def value_words(interval: Interval, percent: bool = False) -> str:
    """An interval as the tables print it: "97.7 % [91.2, 99.8]"."""
    return f"{_number(interval.value, percent)} {interval.ends(100 if percent else 1)}"


def _number(value: float, percent: bool) -> str:
    return f"{100 * value:.3g} %" if percent else f"{value:.3g}"


def _reference_cell(claim: Claim, reference: Mapping[str, Any] | None) -> str:
    """The reference run's value and its own verdict, as a symbol: a laptop's reader sees what full size says."""
    if reference is None or claim.criterion is None:
        return "—"
    stored = reference["measures"].get(claim.criterion.measure)
    if stored is None:
        return "—"
    interval = Interval(*(stored[key] for key in ("value", "low", "high", "n", "method")))
    words = {verdict["id"]: verdict["verdict"] for verdict in reference["verdicts"]}
    symbol = SYMBOLS.get(words.get(claim.id, ""), "")
    return f"{value_words(interval, claim.published.percent)} {symbol}".strip()
